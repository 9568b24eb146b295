"""The cost model on products that it has not seen, at the borders of what was measured, and on tables of others."""

import json
import os

import numpy as np
import pytest

import tfmot_asp
from tfmot_asp.hardware.cost_model import CostModel, cost_model, estimate
from tfmot_asp.hardware.timing_table import SHIPPED

TABLE = json.loads(SHIPPED["H100"].read_text())
TABLES = {name: json.loads(path.read_text()) for name, path in SHIPPED.items()}
PRECISIONS = pytest.mark.parametrize("precision", ["fp16", "int8"])


def measured(precision, table=TABLE):
    rows = [row for row in table["rows"] if row["precision"] == precision]
    sizes = np.array([[row["M"], row["N"], row["K"]] for row in rows], float)
    return sizes, *(np.array([row[name] for row in rows]) for name in ("dense_us", "sparse_us"))


def off(predicted, true):
    """Median relative error."""
    return float(np.median(np.abs(predicted / true - 1)))


@PRECISIONS
@pytest.mark.parametrize(("gpu", "off_by", "broken"), [("H100", 0.05, 0), ("H100-tuned", 0.06, 1)])
def test_products_that_it_has_not_seen(precision, gpu, off_by, broken):
    table = TABLES[gpu]
    sizes, dense, sparse = measured(precision, table)
    parts = np.random.default_rng(0).permutation(len(sizes)) % 6
    found = np.zeros((len(sizes), 2))
    for part in range(6):
        seen = parts != part
        model = CostModel(sizes[seen], dense[seen], sparse[seen], precision, table["multiprocessors"])
        found[~seen] = np.stack(model.predict(sizes[~seen])[:2], axis=1)
    assert off(found[:, 0], dense) < 0.10
    assert off(found[:, 1], sparse) < 0.10
    gains, predicted = dense / sparse, found[:, 0] / found[:, 1]
    assert off(predicted, gains) < off_by
    assert np.sum((gains <= 1) & (predicted > 1.1 + 1e-9)) <= broken


@PRECISIONS
@pytest.mark.parametrize("gpu", SHIPPED)
def test_what_was_measured_is_known(precision, gpu):
    sizes, dense, sparse = measured(precision, TABLES[gpu])
    found = cost_model(gpu, precision).predict(sizes)
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


def test_gains_over_the_fastest_dense_kernel_are_smaller():
    for precision, most in (("fp16", 1.5), ("int8", 1.3)):
        tuned = estimate(32768, 3072, 768, precision=precision, gpu="h100-Tuned")
        assert tuned.dense_us < estimate(32768, 3072, 768, precision=precision).dense_us
        assert tuned.speedup < most


@PRECISIONS
def test_few_products_are_enough_for_finite_times(precision):
    sizes, dense, sparse = measured(precision, TABLES["H100-tuned"])
    for first in range(0, len(sizes) - 8, 8):
        some = slice(first, first + 8)
        model = CostModel(sizes[some], dense[some], sparse[some], precision, 132)
        assert all(np.all(np.isfinite(found)) for found in model.predict(sizes))


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
    with pytest.raises(ValueError, match=r"gpu='A100'; it must be 'H100', 'H100-tuned' or a \.json file"):
        estimate(8, 8, 8, gpu="A100")
    with pytest.raises(
        TypeError, match=r"gpu must be 'H100', 'H100-tuned' or the path of a \.json file of times, got None"
    ):
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
