"""TF-ASP's demo in a small form: the native path runs, and the TF-TRT path says what it lacks."""

import pytest

from tests.examples.run_example import run_example
from tfmot_asp.export import verify
from tfmot_asp.export.tensorrt.tf_trt import why_not

SMALL = ["--image-size", 8, "--width", 16, "--epochs", 1, "--fine-tune-epochs", 1, "--batch-size", 128]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "exported_model"
    results = run_example("tftrt/main.py", [*SMALL, "--out", folder])
    assert set(results) == {"dense", "sparse"}
    return folder


def test_what_is_exported_is_sparse_and_has_no_batch_norm(exported):
    report = verify(exported)
    assert [layer.status for layer in report.layers] == ["small"] + ["sparse"] * 7  # the stem has one input channel
    assert report.ok


def test_the_native_path_prints_its_throughput(exported, capsys):
    argv = ["--use_native_tensorflow", "--input_saved_model_dir", exported, "--image_size", 8, "--batch_size", 4]
    assert run_example("tftrt/tftrt_infer.py", [*argv, "--warmup", 1, "--steps", 3]) > 0
    assert "native TensorFlow, batch 4: average throughput" in capsys.readouterr().out


@pytest.mark.skipif(why_not() is None, reason="TF-TRT works here")
def test_the_tftrt_path_says_what_it_lacks(exported):
    argv = ["--use_tftrt_model", "--input_saved_model_dir", exported, "--image_size", 8]
    with pytest.raises(SystemExit, match=r"TF-TRT cannot run here: TensorFlow .*up to 2\.17.*export\.onnx"):
        run_example("tftrt/tftrt_infer.py", argv)


def test_without_a_model_it_names_the_first_step(tmp_path, capsys):
    with pytest.raises(SystemExit):
        run_example("tftrt/tftrt_infer.py", ["--use_native_tensorflow", "--input_saved_model_dir", tmp_path / "none"])
    assert "run examples/tftrt/main.py first" in capsys.readouterr().err
