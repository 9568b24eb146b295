"""Words of other tools in place of the exporters' own."""

import inspect

import numpy as np
import pytest
import tensorflow as tf

import tfmot_asp
from tests.small_models import mlp
from tfmot_asp.export.keywords import ALIASES, takes_aliases

EXPORTERS = (tfmot_asp.export.onnx, tfmot_asp.export.tflite, tfmot_asp.export.saved_model, tfmot_asp.export.tftrt)


@takes_aliases
def exporter(path, precision="fp32", *, calibration_data=None):
    """An exporter."""
    return path, precision, calibration_data


def test_each_alias_is_taken_as_the_argument_that_it_means():
    for alias, name in ALIASES.items():
        given = exporter("m", **{alias: "x"})
        assert given == exporter("m", **{name: "x"})
        assert exporter("m", **{alias: None}) == exporter("m"), "None is what their owners mean by nothing"
    assert inspect.signature(exporter).parameters.keys() == {"path", "precision", "calibration_data"}
    assert exporter.__doc__ == "An exporter."


def test_two_names_for_one_argument_are_refused():
    with pytest.raises(TypeError, match=r"exporter\(\) got precision= and quantize=.* give precision="):
        exporter("m", precision="fp16", quantize="int8")
    with pytest.raises(TypeError, match="precision"):
        exporter("m", "fp16", quantize="int8")
    with pytest.raises(TypeError, match="calibration_data= and representative_dataset="):
        exporter("m", calibration_data=[1], representative_dataset=[2])
    with pytest.raises(TypeError, match=r"got precision= and (dtype|quantize)="):
        exporter("m", dtype="float16", quantize="int8")
    with pytest.raises(TypeError, match="unexpected keyword argument 'precisoin'"):
        exporter("m", precisoin="int8")


@pytest.mark.parametrize("export", EXPORTERS, ids=lambda export: export.__name__)
def test_every_exporter_spells_precision_in_one_way(export):
    parameters = inspect.signature(export).parameters
    assert "precision" in parameters
    assert not parameters.keys() & ALIASES.keys()
    with pytest.raises(TypeError, match=rf"{export.__name__}\(\) got precision= and dtype="):
        export("model", "path", precision="fp16", dtype="float16")


@pytest.mark.filterwarnings("ignore:.*tf.lite.Interpreter is deprecated")
def test_files_are_the_same_by_either_name(tmp_path):
    model, x = mlp(), np.random.default_rng(0).standard_normal((8, 16)).astype(np.float32)
    tfmot_asp.export.tflite(model, tmp_path / "own.tflite", precision="int8", calibration_data=x)
    tfmot_asp.export.tflite(model, tmp_path / "lite.tflite", quantize="int8", representative_dataset=lambda: [x])
    assert (tmp_path / "own.tflite").read_bytes() == (tmp_path / "lite.tflite").read_bytes()
    for name, options in {
        "own": {"precision": "fp16"},
        "numpy": {"dtype": np.float16},
        "tf": {"dtype": tf.float16},
    }.items():
        report = tfmot_asp.export.saved_model(model, tmp_path / name, **options)
        assert {layer.name for layer in report.layers} == {"first/kernel/float16", "second/kernel/float16"}
