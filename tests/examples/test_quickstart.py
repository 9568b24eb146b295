"""The quickstart meets its bars: the main job on real data, from training to the file read back."""

import importlib.util
import pathlib

import pytest

QUICKSTART = pathlib.Path(__file__).parents[2] / "examples" / "quickstart.py"


@pytest.fixture(scope="module")
def quickstart():
    spec = importlib.util.spec_from_file_location("quickstart", QUICKSTART)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_accuracy_survives_and_the_file_is_2_4(quickstart, tmp_path, capsys):
    results = quickstart.main(["--out", str(tmp_path / "digits")])
    assert results["dense"] >= 97
    assert results["2:4, permuted, fine-tuned"] >= results["dense"] - 0.5
    printed = capsys.readouterr().out
    assert "8 of 8 prunable kernels permuted" in printed
    assert str(tmp_path / "digits") in printed
    from tfmot_asp.export import verify

    assert verify(tmp_path / "digits").ok
