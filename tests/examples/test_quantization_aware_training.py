"""The example on quantization-aware training: 2:4 in both int8 files, accuracy kept."""

import pytest

from tests.examples.run_example import run_example
from tfmot_asp.export import verify

pytestmark = pytest.mark.filterwarnings("ignore:.*tf.lite.Interpreter is deprecated")
STATUSES = ["small", "sparse", "sparse", "dense"]  # one input channel; ten outputs
RESULTS = ["dense, float32", "2:4, float32", "2:4, int8 after training", "2:4, int8 trained for it"]


def test_a_small_run(tmp_path, capsys):
    out = tmp_path / "digits.tflite"
    results = run_example("quantization_aware_training.py", ["--epochs", 3, "--fine-tune-epochs", 2, "--out", out])
    assert list(results) == RESULTS
    assert all(value > 80 for value in results.values())
    for path in (out, tmp_path / "digits_after_training.tflite"):
        report = verify(path)
        assert [layer.status for layer in report.layers] == STATUSES
    printed = capsys.readouterr().out
    assert "4 of 4 kernels in 8 bits" in printed
    assert "no speed-up" in printed


@pytest.mark.slow
def test_a_whole_run_keeps_the_accuracy(tmp_path):
    results = run_example("quantization_aware_training.py", ["--out", tmp_path / "digits.tflite"])
    assert results["dense, float32"] > 97
    assert all(value >= results["dense, float32"] - 1 for value in results.values())
