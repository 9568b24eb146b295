"""The quickstart: what each step is worth on real data, from training to the file read back, and two pictures of it."""

import pytest

from tests.examples.run_example import run_example
from tfmot_asp.export import verify

DENSE, GIVEN, PERMUTED, CALIBRATED, TUNED = (
    "dense",
    "2:4, channels as they are",
    "2:4, permuted",
    "2:4, permuted, calibrated",
    "2:4, then fine-tuned",
)


def test_a_small_run(tmp_path, capsys):
    argv = ["--seeds", 2, "--epochs", 4, "--fine-tune-epochs", 1, "--out", tmp_path / "digits"]
    results = run_example("quickstart.py", argv)
    assert list(results) == [DENSE, GIVEN, PERMUTED, CALIBRATED, TUNED]
    assert results[TUNED] > 80
    report = verify(tmp_path / "digits")
    assert report.ok
    assert report.sparse == 6  # all but the scores, of ten outputs
    printed = capsys.readouterr().out
    for picture in ("digits_accuracy.png", "digits_kept_magnitude.png"):
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")
        assert picture in printed
    assert all(f"{value:6.2f} ± " in printed for value in results.values())


@pytest.mark.slow
def test_each_step_shows(tmp_path):
    results = run_example("quickstart.py", ["--out", tmp_path / "digits"])
    assert results[DENSE] >= 97
    assert results[GIVEN] < results[PERMUTED] < results[CALIBRATED]
    assert results[TUNED] >= results[DENSE] - 0.5
