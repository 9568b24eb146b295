"""Two replicas, in one process and as two workers, train as one device does: same permutation, masks and losses."""

import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest

DOORS = ("wrapper", "trained", "trained, Keras 3", "optimizer", "legacy optimizer")
SECONDS = 1500  # for all doors; a worker that waits in vain must not hold up the tests for ever


def start(kind, **environment):
    return subprocess.Popen(
        [sys.executable, "-m", "tests.training.replica", kind],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "-1", **environment},
    )


def results(processes):
    try:
        outputs = [process.communicate(timeout=SECONDS) for process in processes]
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.wait()
    found = []
    for process, (output, errors) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, errors[-3000:]
        found += [json.loads(line.removeprefix("RESULT ")) for line in output.splitlines() if line.startswith("RESULT")]
    assert len(found) == len(processes)
    return found


def workers():
    for attempt in range(3):  # a port that was free may be taken by the time that the worker opens it
        with socket.socket() as first, socket.socket() as second:
            for held in (first, second):
                held.bind(("127.0.0.1", 0))
            addresses = [f"127.0.0.1:{held.getsockname()[1]}" for held in (first, second)]
        processes = [
            start(
                "workers",
                TF_CONFIG=json.dumps({"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}),
            )
            for index in range(2)
        ]
        try:
            return results(processes)
        except AssertionError as error:
            if attempt == 2 or "address" not in str(error).lower():
                raise
    raise AssertionError("unreachable")


@pytest.fixture(scope="module")
def one():
    return results([start("one")])[0]


@pytest.fixture(scope="module")
def mirrored():
    return results([start("mirrored")])


@pytest.fixture(scope="module")
def multi_worker():
    return workers()


def check(one, several, door):
    for found in several:
        assert found["replicas"] == 2
        assert found[door]["start"] == one[door]["start"]  # permuted alike, no broadcast
        assert found[door]["masks"] == one[door]["masks"]
        assert found[door]["weights"] == several[0][door]["weights"]
        np.testing.assert_allclose(found[door]["losses"], one[door]["losses"], rtol=1e-5)
    assert one[door]["losses"][-1] < one[door]["losses"][1]


@pytest.mark.parametrize("door", DOORS)
def test_two_mirrored_replicas_train_as_one_device(one, mirrored, door):
    check(one, mirrored, door)


@pytest.mark.slow
@pytest.mark.parametrize("door", [door for door in DOORS if "Keras 3" not in door])
def test_two_workers_train_as_one_device(one, multi_worker, door):
    check(one, multi_worker, door)


@pytest.mark.slow
def test_parameter_servers(one):
    """Two workers, each at its own pace: the same permutation, and 2:4 when an epoch has ended."""
    found = results([start("servers")])[0]
    dense = found["plain"]["violations"]
    assert min(dense) > 0
    assert "create_per_worker_dataset" in found["plain, Keras 3"]["fit"] == found["trained, Keras 3"]["fit"]
    for door in DOORS:
        if "Keras 3" not in door:
            assert found[door] == {"start": one[door]["start"], "trained": True, "violations": [0] * len(dense)}


@pytest.mark.slow
def test_variables_that_are_split_over_parameter_servers_are_refused():
    found = results([start("split")])[0]
    assert found["plain"]["trained"]
    for door in DOORS:
        assert "make the ParameterServerStrategy without a variable_partitioner" in found[door]["refused"]


@pytest.mark.slow
def test_keras_distribution():
    """On TensorFlow's backend it leaves weights and computations on one device."""
    found = results([start("keras.distribution")])[0]
    assert found["DataParallel"] == found["ModelParallel"] == found["NoneType"]
    assert len(set(found["NoneType"]["masks"])) == 1


def test_the_schedule_was_followed(one):
    """Three updates of the wrapper's masks in six steps; the other doors mask once."""
    changes = [len(set(one[door]["masks"])) for door in DOORS]
    assert changes == [3, 1, 1, 1, 1]


def test_doors_agree(one):
    """The same weights, permutation and masks give the same run, whoever attaches the masks."""
    assert one["trained"]["losses"] == pytest.approx(one["trained, Keras 3"]["losses"], rel=1e-6)
    assert one["optimizer"]["losses"] == pytest.approx(one["legacy optimizer"]["losses"], rel=1e-6)
    assert one["trained"]["masks"] == one["optimizer"]["masks"]
