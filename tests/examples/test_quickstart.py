"""The quickstart meets its bars: the main job on real data, from training to the file read back."""

from tests.examples.run_example import run_example
from tfmot_asp.export import verify


def test_accuracy_survives_and_the_file_is_2_4(tmp_path, capsys):
    results = run_example("quickstart.py", ["--out", tmp_path / "digits"])
    assert results["dense"] >= 97
    assert results["2:4, permuted, fine-tuned"] >= results["dense"] - 0.5
    printed = capsys.readouterr().out
    assert "8 of 8 prunable kernels permuted" in printed
    assert str(tmp_path / "digits") in printed
    assert verify(tmp_path / "digits").ok
