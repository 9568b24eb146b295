"""The report of a calibration, where there is little to report."""

import json

import numpy as np

from tfmot_asp.calibration.calibration_report import CalibratedKernel, CalibrationReport, OutputComparison


def report(*outputs):
    kernel = CalibratedKernel("fc", "Dense", 0, None, None, 0.0, "kept its mask by magnitude")
    return CalibrationReport("reconstruction", "fast", 8, 1, (kernel,), outputs, 0, "relative", 1.0)


def compared(name, dense, pruned):
    comparison = OutputComparison(name)
    comparison.add(dense, pruned)
    return comparison.result()


def test_outputs_that_have_no_numbers_or_no_spread_are_null_in_json():
    words = compared("words", np.array([b"a", b"b"]), np.array([b"a", b"b"]))
    flat = compared("flat", np.zeros((4, 3), np.float32), np.ones((4, 3), np.float32))
    same = compared("same", np.ones((4, 3), np.float32), np.ones((4, 3), np.float32))
    data = json.loads(json.dumps(report(words, flat, same).to_dict(), allow_nan=False))
    rows = {row["name"]: row for row in data["outputs"]}
    assert (rows["words"]["relative"], rows["words"]["correlation"]) == (None, None)
    assert (rows["flat"]["relative"], rows["flat"]["correlation"]) == (None, None)
    assert (rows["same"]["relative"], rows["same"]["correlation"]) == (0, 1)
    assert data["layers"][0]["error_after"] is None


def test_a_comparison_is_that_of_all_batches_together():
    rng = np.random.default_rng(0)
    dense, pruned = rng.normal(size=(2, 12, 5))
    comparison = OutputComparison("out")
    for start in (0, 5, 9):
        stop = {0: 5, 5: 9, 9: 12}[start]
        comparison.add(dense[start:stop], pruned[start:stop])
    found = comparison.result()
    np.testing.assert_allclose(found.relative, np.linalg.norm(pruned - dense) / np.linalg.norm(dense))
    np.testing.assert_allclose(found.correlation, np.corrcoef(dense.ravel(), pruned.ravel())[0, 1])
    assert found.agreement == np.mean(dense.argmax(1) == pruned.argmax(1))
