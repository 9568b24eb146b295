"""TF-TRT without TensorRT: its parameters against the real interface, and a converter that records what it is asked."""

import inspect
import logging
import types
from typing import ClassVar

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from tf_keras import layers

import tfmot_asp
from tests.small_models import mlp
from tfmot_asp.export import tftrt as convert
from tfmot_asp.export.read_tensorflow import load_signature
from tfmot_asp.export.tensorrt import tf_trt
from tfmot_asp.export.tensorrt.tf_trt import conversion_parameters, converter_arguments, why_not
from tfmot_asp.export.tftrt import example_inputs


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    model = mlp()
    tfmot_asp.prune_trained_model(model, permute=False)
    folder = tmp_path_factory.mktemp("tftrt")
    tfmot_asp.export.saved_model(model, folder / "open")
    tfmot_asp.export.saved_model(model, folder / "fixed", batch_size=8)
    tfmot_asp.export.saved_model(mlp(), folder / "dense")
    return folder


class Recorder:
    """Does what TF-TRT's converter does with files, and writes down the rest."""

    made: ClassVar[list["Recorder"]] = []

    def __init__(self, **arguments):
        inspect.signature(tf.experimental.tensorrt.Converter.__init__).bind(None, **arguments)
        self.arguments, self.calibrated, self.built = arguments, [], []
        self.made.append(self)

    def convert(self, calibration_input_fn=None):
        self.calibrated = [] if calibration_input_fn is None else list(calibration_input_fn())

    def build(self, input_fn):
        self.built = list(input_fn())

    def save(self, output_saved_model_dir):
        tf.saved_model.save(tf.Module(), output_saved_model_dir)


@pytest.fixture
def recorder(monkeypatch):
    Recorder.made = []
    monkeypatch.setattr(tf_trt, "why_not", lambda: None)
    tensorrt = types.SimpleNamespace(Converter=Recorder)
    experimental = types.SimpleNamespace(tensorrt=tensorrt)
    monkeypatch.setattr(tf_trt, "tf", types.SimpleNamespace(**{**vars(tf), "experimental": experimental}))
    return Recorder


def test_the_arguments_are_those_of_tensorflows_converter():
    signature = inspect.signature(tf.experimental.tensorrt.Converter.__init__)
    parameters = conversion_parameters(
        "fp16",
        max_workspace_size_bytes=1 << 30,
        minimum_segment_size=3,
        maximum_cached_engines=1,
        use_calibration=False,
        allow_build_at_runtime=True,
    )
    tf.experimental.tensorrt.ConversionParams(**parameters)
    for dynamic in (True, False):
        arguments = converter_arguments("somewhere", parameters, dynamic=dynamic)
        signature.bind(None, **arguments)
        assert arguments["precision_mode"] == "FP16"
        assert arguments.get("use_dynamic_shape", False) is dynamic


def test_a_fixed_batch_is_converted_and_built_for_its_own_shape(exported, recorder, tmp_path):
    convert(exported / "fixed", tmp_path / "out")
    (made,) = recorder.made
    assert made.arguments == {
        "input_saved_model_dir": str(exported / "fixed"),
        "input_saved_model_signature_key": "serving_default",
        "precision_mode": "FP16",
        "max_workspace_size_bytes": 8 << 30,
        "minimum_segment_size": 3,
        "maximum_cached_engines": 1,
        "use_calibration": False,
        "allow_build_at_runtime": True,
    }
    assert [[tuple(value.shape) for value in batch.values()] for batch in made.built] == [[(8, 16)]]
    assert (tmp_path / "out" / "saved_model.pb").exists()


def test_an_open_batch_gets_one_profile_over_the_given_shapes(exported, recorder, tmp_path):
    (name,) = load_signature(exported / "open").structured_input_signature[1]
    convert(exported / "open", tmp_path / "out", "fp32", input_shapes=[{name: (1, 16)}, {name: (32, 16)}])
    (made,) = recorder.made
    assert made.arguments["use_dynamic_shape"] is True
    assert made.arguments["dynamic_shape_profile_strategy"] == "Range"
    assert [tuple(batch[name].shape) for batch in made.built] == [(1, 16), (32, 16)]


def test_int8_is_calibrated_on_the_given_batches(exported, recorder, tmp_path):
    data = [np.full((8, 16), value, np.float64) for value in (1, 2)]
    convert(exported / "fixed", tmp_path / "out", "int8", calibration_data=data)
    (made,) = recorder.made
    assert made.arguments["use_calibration"] is True
    assert [float(next(iter(batch.values()))[0, 0]) for batch in made.calibrated] == [1, 2]
    assert all(value.dtype == tf.float32 for batch in made.calibrated for value in batch.values())


def test_sparse_mode_switched_off_is_said(exported, recorder, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("TF_TRT_SPARSE_MODE", "0")
    with caplog.at_level(logging.WARNING):
        convert(exported / "fixed", tmp_path / "out")
    assert "TF_TRT_SPARSE_MODE=0 is set: the engines were built without sparse kernels" in caplog.text


def test_weights_behind_a_cast_are_said_to_be_in_the_way(recorder, tmp_path, caplog):
    model = mlp(inputs=512, hidden=256)
    tfmot_asp.prune_trained_model(model, permute=False)
    tfmot_asp.export.saved_model(model, tmp_path / "half", batch_size=4, precision="fp16")
    convert(tmp_path / "half", tmp_path / "out")
    assert "2 products of" in caplog.text
    assert "read weights through a Cast" in caplog.text


def test_a_failing_conversion_leaves_nothing(exported, recorder, tmp_path, monkeypatch):
    monkeypatch.setattr(recorder, "build", lambda self, input_fn: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        convert(exported / "fixed", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"precision": "BF16"}, "precision must be one of 'fp32', 'fp16', 'int8', got 'BF16'"),
        ({"precision_mode": "INT8"}, "precision='int8' needs calibration_data"),
        ({"calibration_data": [1]}, "calibration_data is for precision='int8' only"),
        ({"minimum_segment_size": 0}, "minimum_segment_size must be an integer of at least 1, got 0"),
        ({"max_workspace_size_bytes": 1.5}, "max_workspace_size_bytes must be an integer"),
        ({"maximum_cached_engines": True}, "maximum_cached_engines must be an integer"),
        ({}, r"has the open shape \(None, 16\).*pass input_shapes=\(batch, ...\)"),
        ({"input_shapes": (4, 15)}, r"takes \(None, 16\), got \(4, 15\)"),
        ({"input_shapes": (0, 16)}, r"takes \(None, 16\), got \(0, 16\)"),
        ({"input_shapes": {"other": (4, 16)}}, "input_shapes must name the inputs"),
        ({"input_shapes": [(4, 16), (4, 16)]}, "input_shapes must name the inputs"),
    ],
)
def test_unusable_arguments(exported, recorder, tmp_path, options, match):
    with pytest.raises(ValueError, match=match):
        convert(exported / "open", tmp_path / "out", **options)
    assert list(tmp_path.iterdir()) == []


def test_a_dense_model_is_refused(exported, recorder, tmp_path):
    with pytest.raises(ValueError, match=r"no weight in .*dense' is 2:4"):
        convert(exported / "dense", tmp_path / "out", input_shapes=(4, 16))


def test_existing_folders_and_missing_models(exported, recorder, tmp_path):
    with pytest.raises(FileExistsError, match="overwrite=True to replace a SavedModel"):
        convert(exported / "fixed", exported / "open")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        convert(tmp_path / "nowhere", tmp_path / "out")


@pytest.mark.skipif(why_not() is None, reason="TF-TRT works here")
def test_without_tensorrt_the_error_names_the_ways_out(exported, tmp_path):
    with pytest.raises(
        RuntimeError, match=r"TensorFlow .* up to 2\.17 .*TensorRT 8\.6.*NGC.*export\.onnx.*--sparsity=enable"
    ):
        convert(exported / "fixed", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_inputs_of_several_names_and_types(tmp_path):
    left, right = layers.Input((16,), name="left"), layers.Input((4,), name="right", dtype="int32")
    y = layers.Concatenate()([layers.Dense(16)(left), layers.Flatten()(layers.Embedding(5, 4)(right))])
    tfmot_asp.export.saved_model(tf_keras.Model([left, right], layers.Dense(8)(y)), tmp_path / "m")
    function = load_signature(tmp_path / "m")
    (batch,) = example_inputs(function, {"left": (3, 16), "right": (3, 4)})
    assert batch["left"].dtype == tf.float32
    assert batch["right"].dtype == tf.int32
    function(**batch)
