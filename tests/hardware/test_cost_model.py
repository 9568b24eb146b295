"""The cost model on products that it has not seen, at the borders of what was measured, and on tables of others."""

import json
import os

import numpy as np
import pytest

import tfmot_asp
from tfmot_asp.hardware.cost_model import CostModel, cost_model, estimate
from tfmot_asp.hardware.timing_table import SHIPPED

TABLE = json.loads(SHIPPED["H100"].read_text())
PRECISIONS = pytest.mark.parametrize("precision", ["fp16", "int8"])


def measured(precision):
    rows = [row for row in TABLE["rows"] if row["precision"] == precision]
    sizes = np.array([[row["M"], row["N"], row["K"]] for row in rows], float)
    return sizes, *(np.array([row[name] for row in rows]) for name in ("dense_us", "sparse_us"))


def off(predicted, true):
    """Median relative error."""
    return float(np.median(np.abs(predicted / true - 1)))


@PRECISIONS
def test_products_that_it_has_not_seen(precision):
    sizes, dense, sparse = measured(precision)
    parts = np.random.default_rng(0).permutation(len(sizes)) % 6
    found = np.zeros((len(sizes), 2))
    for part in range(6):
        seen = parts != part
        model = CostModel(sizes[seen], dense[seen], sparse[seen], precision, TABLE["multiprocessors"])
        found[~seen] = np.stack(model.predict(sizes[~seen])[:2], axis=1)
    assert off(found[:, 0], dense) < 0.10
    assert off(found[:, 1], sparse) < 0.10
    gains, predicted = dense / sparse, found[:, 0] / found[:, 1]
    assert off(predicted, gains) < 0.05
    assert not np.any((gains <= 1) & (predicted > 1.1 + 1e-9))


@PRECISIONS
def test_what_was_measured_is_known(precision):
    sizes, dense, sparse = measured(precision)
    found = cost_model("H100", precision).predict(sizes)
    assert off(found[0], dense) < 0.05
    assert off(found[1], sparse) < 0.05


@PRECISIONS
def test_time_grows_with_work_far_from_what_was_measured(precision):
    sizes = [2**i for i in range(0, 22, 3)]
    times = [estimate(size, size, size, precision=precision) for size in sizes]
    dense = [time.dense_us for time in times]
    assert dense == sorted(dense)
    assert all(0.5 < time.speedup < 3 for time in times)
    assert times[-1].error > estimate(2048, 2048, 2048, precision=precision).error


def test_what_the_table_shows():
    assert estimate(128, 512, 512).speedup < 1.15  # below 3e9 multiply-adds there is next to no gain in fp16
    assert estimate(8192, 4096, 4096).speedup > 1.4
    assert estimate(128, 256, 256, precision="int8").speedup < 1  # int8 loses on small ones
    assert estimate(8192, 4096, 4096, precision="int8").speedup > 1.9


def test_a_table_of_another_gpu(tmp_path):
    slower = [{**row, "dense_us": 3 * row["dense_us"], "sparse_us": 3 * row["sparse_us"]} for row in TABLE["rows"]]
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({**TABLE, "rows": slower}))
    mine, theirs = estimate(2048, 1024, 4096, gpu=path), estimate(2048, 1024, 4096, gpu="h100")
    assert mine.dense_us == pytest.approx(3 * theirs.dense_us, rel=0.05)
    assert mine.speedup == pytest.approx(theirs.speedup, rel=0.05)


def test_what_cannot_be_estimated_is_refused(tmp_path):
    with pytest.raises(TypeError, match=r"m must be a number of rows or channels, got 1\.5"):
        estimate(1.5, 8, 8)
    with pytest.raises(ValueError, match="k must be 1 or more, got 0"):
        estimate(8, 8, 0)
    with pytest.raises(ValueError, match="precision must be one of 'fp16', 'int8', got 'fp8'"):
        estimate(8, 8, 8, precision="fp8")
    with pytest.raises(ValueError, match=r"gpu='A100'; it must be 'H100' or a \.json file"):
        estimate(8, 8, 8, gpu="A100")
    with pytest.raises(TypeError, match=r"gpu must be 'H100' or the path of a \.json file of times, got None"):
        estimate(8, 8, 8, gpu=None)
    with pytest.raises(FileNotFoundError):
        estimate(8, 8, 8, gpu=tmp_path / "none.json")
    bad = tmp_path / "bad.json"
    for content, words in (
        ({"rows": [{"precision": "fp16"}], "multiprocessors": 1}, "is no table of times: KeyError 'sparse_us'"),
        ({**TABLE, "rows": TABLE["rows"][:3]}, "has 3 products in fp16; at least 7"),
        (
            {**TABLE, "rows": [{**row, "dense_us": 0} for row in TABLE["rows"]]},
            "sizes, times and multiprocessors must be positive",
        ),
    ):
        bad.write_text(json.dumps(content))
        with pytest.raises(ValueError, match=words):
            estimate(8, 8, 8, gpu=bad)
    bad.write_text("no json")
    with pytest.raises(ValueError, match="is no table of times: JSONDecodeError"):
        estimate(8, 8, 8, gpu=bad)


def test_a_table_that_is_written_anew_is_read_anew(tmp_path):
    path = tmp_path / "mine.json"
    for factor in (1, 2):
        rows = [{**row, "dense_us": factor * row["dense_us"]} for row in TABLE["rows"]]
        path.write_text(json.dumps({**TABLE, "rows": rows}))
        os.utime(path, ns=(factor, factor))
        assert estimate(4096, 4096, 4096, gpu=path).speedup == pytest.approx(
            factor * estimate(4096, 4096, 4096).speedup, rel=0.05
        )


def test_it_is_public():
    assert tfmot_asp.hardware.estimate is estimate
