"""What is written is run in onnxruntime on inputs of all kinds, and read back weight by weight."""

import importlib
import logging
import os

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from tf_keras import layers

import tfmot_asp
from tests import dtypes
from tests.small_models import compiled, convnet, data, mlp
from tfmot_asp import masks

onnx = pytest.importorskip("onnx")
pytest.importorskip("tf2onnx")
ort = pytest.importorskip("onnxruntime")

from tfmot_asp.export.onnx_files import convert as onnx_convert  # noqa: E402
from tfmot_asp.export.onnx_files import rewrites  # noqa: E402
from tfmot_asp.graph import compare  # noqa: E402

module = importlib.import_module("tfmot_asp.export.onnx")  # the package's name is the function


def shaken(model, seed=0):
    """Biases, moments and scales that are not zeros and ones, so that none can be lost unnoticed."""
    generator = np.random.default_rng(seed)
    for weight in model.weights:
        if len(weight.shape) < 2:
            weight.assign(generator.uniform(0.5, 1.5, weight.shape).astype(np.float32))
    return model


def one_shot(model):
    return tfmot_asp.strip_pruning(tfmot_asp.prune_low_magnitude(shaken(model), permute=False))


def run(path, **inputs):
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, {k: np.asarray(v) for k, v in inputs.items()}), strict=True))


def nodes(path):
    return list(onnx.load(str(path)).graph.node)


def close(got, expected, tolerance=1e-5):
    expected = np.asarray(expected)
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * max(1e-30, np.abs(expected).max()))


def test_a_wrapped_convnet_is_written_stripped_with_names_kept_and_the_batch_open(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="tfmot_asp")
    pruned = compiled(tfmot_asp.prune_low_magnitude(shaken(convnet()), permute=False))
    x, y = data(pruned)
    pruned.fit(x, y, verbose=0, callbacks=[tfmot_asp.UpdatePruningStep()])
    before = [weight.copy() for weight in pruned.get_weights()]
    report = tfmot_asp.export.onnx(pruned, tmp_path / "m.onnx", precision="fp32")
    assert {layer.name: layer.status for layer in report.layers} == {
        "stem/kernel": "dense",
        "conv/kernel": "sparse",
        "fc/kernel": "sparse",
        "head/kernel": "sparse",
    }
    assert report.path == str(tmp_path / "m.onnx")
    assert os.listdir(tmp_path) == ["m.onnx"]
    for batch in (1, 3, 32):
        close(run(tmp_path / "m.onnx", image=x[:batch])["head"], pruned.predict(x[:batch], verbose=0))
    kinds = [node.op_type for node in nodes(tmp_path / "m.onnx")]
    assert "BatchNormalization" not in kinds
    assert {node.name for node in nodes(tmp_path / "m.onnx")} >= {layer.op for layer in report.layers}
    initializers = {tensor.name for tensor in onnx.load(str(tmp_path / "m.onnx")).graph.initializer}
    for node in nodes(tmp_path / "m.onnx"):
        if node.op_type in ("Conv", "MatMul", "Gemm"):
            assert node.input[1] in initializers, "a weight is computed in the graph"
    for old, new in zip(before, pruned.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    (line,) = [record.getMessage() for record in caplog.records if "trtexec" in record.getMessage()]
    assert line.split("\n")[1] == tfmot_asp.export.trtexec_command(tmp_path / "m.onnx")
    assert any(line.split("\n")[1] in note for note in report.notes)
    assert next(r for r in caplog.records if "trtexec" in r.getMessage()).levelno == logging.INFO


def transformer(keras, causal=False):
    tokens = keras.layers.Input((6,), dtype="int32", name="tokens")
    x = keras.layers.Embedding(12, 16, name="embedding")(tokens)
    attended = keras.layers.MultiHeadAttention(2, 8, name="mha")(x, x, use_causal_mask=causal)
    x = keras.layers.LayerNormalization(name="norm")(keras.layers.Add()([x, attended]))
    y = keras.layers.Dense(32, activation="gelu", name="up")(x)
    x = keras.layers.Add()([x, keras.layers.Dense(16, name="down")(y)])
    return keras.Model(tokens, keras.layers.Dense(8, activation="softmax", name="out")(x))


@pytest.mark.parametrize("which", ["tf_keras", "keras"])
def test_transformers_keep_their_pattern_in_every_projection(which, tmp_path):
    keras = tf_keras if which == "tf_keras" else pytest.importorskip("keras", minversion="3")
    model = shaken(transformer(keras, causal=True))
    rule = tfmot_asp.SparseTensorCoreRule(kinds=("Dense", "EinsumDense"))
    tfmot_asp.prune_trained_model(model, policy=rule, permute=False)
    tokens = np.random.default_rng(0).integers(0, 12, (3, 6)).astype(np.int32)
    for precision, tolerance in (("fp32", 1e-5), ("fp16", 5e-3)):
        path = tmp_path / f"{precision}.onnx"
        report = tfmot_asp.export.onnx(model, path, precision=precision)
        weights = {
            layer.name.split("/", 1)[-1] if which == "keras" else layer.name for layer in report.layers if layer.holds
        }
        assert len(report.layers) == report.sparse == 7, weights
        assert {layer.type for layer in report.layers} == {"MatMul"}
        assert all(len(layer.shape) == 2 for layer in report.layers)
        (got,) = run(path, tokens=tokens).values()
        close(got, model(tokens), tolerance)
    kinds = [node.op_type for node in nodes(tmp_path / "fp32.onnx")]
    assert "Einsum" not in kinds
    assert kinds.count("Shape") <= 1, "einsums were spelled out"  # one for the causal mask
    if which == "tf_keras":
        assert "LayerNormalization" in kinds


def test_several_inputs_and_outputs_of_several_types(tmp_path):
    left, right = layers.Input((16,), name="left"), layers.Input((4, 8), name="right")
    ids = layers.Input((), dtype="int64", name="ids")
    y = layers.Concatenate()([layers.Dense(8, name="fc")(left), layers.Flatten()(right), layers.Embedding(5, 8)(ids)])
    outputs = [layers.Dense(8, name="z")(y), layers.Dense(4, activation="relu", name="b")(y)]
    model = shaken(tf_keras.Model({"l": left, "r": right, "i": ids}, outputs))
    tfmot_asp.export.onnx(model, tmp_path / "m.onnx", precision="fp32")
    session = ort.InferenceSession(str(tmp_path / "m.onnx"))
    assert {(value.name, value.type, tuple(value.shape)) for value in session.get_inputs()} == {
        ("left", "tensor(float)", ("batch", 16)),
        ("right", "tensor(float)", ("batch", 4, 8)),
        ("ids", "tensor(int64)", ("batch",)),
    }
    assert [(value.name, tuple(value.shape)) for value in session.get_outputs()] == [
        ("z", ("batch", 8)),
        ("b", ("batch", 4)),
    ]
    generator = np.random.default_rng(0)
    values = {
        "left": generator.standard_normal((3, 16)).astype(np.float32),
        "right": generator.standard_normal((3, 4, 8)).astype(np.float32),
        "ids": np.array([4, 0, 2]),
    }
    got = run(tmp_path / "m.onnx", **values)
    expected = model({"l": values["left"], "r": values["right"], "i": values["ids"]})
    for name, value in zip(("z", "b"), expected, strict=True):
        close(got[name], value)


def test_a_fixed_batch_subclassed_models_and_open_axes(tmp_path):
    class Net(tf_keras.Model):
        def __init__(self):
            super().__init__()
            self.fc = layers.Dense(8)

        def call(self, x, training=False):
            return {"out": self.fc(x), "best": tf.argmax(self.fc(x), -1)}

    net = Net()
    net(tf.zeros((1, 16)))
    x = np.random.default_rng(0).standard_normal((4, 16)).astype(np.float32)
    tfmot_asp.export.onnx(net, tmp_path / "m.onnx", precision="fp32", input_shapes=(None, 16), batch_size=4)
    session = ort.InferenceSession(str(tmp_path / "m.onnx"))
    (entry,) = session.get_inputs()
    assert entry.shape == [4, 16]
    got = run(tmp_path / "m.onnx", **{entry.name: x})
    close(got["out"], net(x)["out"])
    np.testing.assert_array_equal(got["best"], net(x)["best"])
    x = layers.Input((None, 16), name="sequence")
    model = tf_keras.Model(x, layers.Dense(8)(layers.Conv1D(16, 3)(x)))
    report = tfmot_asp.export.onnx(model, tmp_path / "open.onnx", precision="fp32")
    assert "shapes=" in report.notes[-1]
    for length in (5, 9):
        value = np.ones((2, length, 16), np.float32)
        (got,) = run(tmp_path / "open.onnx", sequence=value).values()
        close(got, model(value))


def test_images_can_be_taken_channels_first(tmp_path):
    model = one_shot(convnet())
    x, _ = data(model, 3)
    report = tfmot_asp.export.onnx(model, tmp_path / "m.onnx", precision="fp32", inputs_as_nchw=["image"])
    assert report.ok
    (entry,) = ort.InferenceSession(str(tmp_path / "m.onnx")).get_inputs()
    assert entry.shape == ["batch", 3, 8, 8]
    close(run(tmp_path / "m.onnx", image=x.transpose(0, 3, 1, 2))["head"], model(x))
    assert nodes(tmp_path / "m.onnx")[0].op_type == "Conv"
    with pytest.raises(ValueError, match=r"inputs_as_nchw must list inputs of rank 4, out of \['image'\]; got \['x'\]"):
        tfmot_asp.export.onnx(model, tmp_path / "n.onnx", inputs_as_nchw=["x"])


def test_transposed_grouped_depthwise_dilated_and_recurrent_layers(tmp_path):
    x = layers.Input((8, 16))
    y = layers.LSTM(16, return_sequences=True, name="lstm")(x)
    y = layers.Reshape((8, 4, 4))(layers.Conv1D(16, 3, padding="causal", name="conv1d")(y))
    y = layers.DepthwiseConv2D(3, padding="same", name="depthwise")(y)
    y = layers.Conv2D(16, 3, padding="same", dilation_rate=2, name="dilated")(y)
    y = layers.Conv2D(16, 1, groups=2, name="grouped")(y)
    y = layers.Conv2DTranspose(8, 3, strides=2, padding="same", name="up")(y)
    model = shaken(tf_keras.Model(x, layers.Dense(8, name="fc")(y)))
    report = tfmot_asp.export.onnx(model, tmp_path / "m.onnx", precision="fp32")
    value = np.random.default_rng(0).standard_normal((3, 8, 16)).astype(np.float32)
    (got,) = run(tmp_path / "m.onnx", **{model.input_names[0]: value}).values()
    close(got, model(value))
    rows = {layer.name: layer for layer in report.layers}
    assert [layer.shape for layer in report.layers if layer.status == "depthwise"] == [(4, 1, 3, 3)]
    assert rows["grouped/kernel"].reason == "2 groups"
    assert rows["lstm/lstm_cell/kernel"].shape == (1, 64, 16)
    assert rows["lstm/lstm_cell/recurrent_kernel"].shape == (1, 64, 16)
    assert rows["dilated/kernel"].reduction_axes == (1,)


@pytest.mark.parametrize("opset", [13, 18])
def test_the_lowest_and_the_highest_opset_run(opset, tmp_path):
    model = shaken(transformer(tf_keras))
    tfmot_asp.export.onnx(model, tmp_path / "m.onnx", precision="fp32", opset=opset)
    (imported,) = onnx.load(str(tmp_path / "m.onnx")).opset_import
    assert imported.version == opset
    tokens = np.ones((2, 6), np.int32)
    (got,) = run(tmp_path / "m.onnx", tokens=tokens).values()
    close(got, model(tokens))


@pytest.mark.parametrize("opset", [12, 99, "17", True, None])
def test_other_opsets_are_refused(opset, tmp_path):
    with pytest.raises(ValueError, match=r"opset must be 13 to \d+ .* TensorRT 8.6 reads up to 17"):
        tfmot_asp.export.onnx(mlp(), tmp_path / "m.onnx", opset=opset)


# float16


def test_float16_files_have_float16_weights_and_keep_the_pattern(tmp_path):
    model = one_shot(convnet())
    x, _ = data(model, 8)
    for io, kind in ((False, "tensor(float)"), (True, "tensor(float16)")):
        path = tmp_path / f"{io}.onnx"
        report = tfmot_asp.export.onnx(model, path, precision="fp16", float16_io=io)
        assert report.sparse == 3
        written = onnx.load(str(path))
        kernels = [tensor for tensor in written.graph.initializer if len(tensor.dims) >= 2]
        assert kernels
        assert {tensor.data_type for tensor in kernels} == {onnx.TensorProto.FLOAT16}
        assert {value.type for value in ort.InferenceSession(str(path)).get_inputs()} == {kind}
        close(run(path, image=x.astype(np.float16 if io else np.float32))["head"], model(x), 5e-3)
        assert "--stronglyTyped" in report.notes[-1]


def test_ops_without_a_float16_form_in_the_opset_stay_in_float32(tmp_path):
    x = layers.Input((2, 2, 16), name="x")  # attention over two axes reads IsInf, which takes float16 from opset 20 on
    model = one_shot(tf_keras.Model(x, layers.Dense(8)(layers.MultiHeadAttention(2, 8, attention_axes=(1, 2))(x, x))))
    value = np.random.default_rng(0).standard_normal((3, 2, 2, 16)).astype(np.float32)
    tfmot_asp.export.onnx(model, tmp_path / "m.onnx", precision="fp16")
    assert "IsInf" in {node.op_type for node in nodes(tmp_path / "m.onnx")}
    (got,) = run(tmp_path / "m.onnx", x=value).values()
    close(got, model(value), 5e-3)


def test_images_of_open_size_are_resized_in_float16(tmp_path):
    x = layers.Input((None, None, 16), name="x")
    model = shaken(tf_keras.Model(x, layers.Conv2D(8, 1)(layers.UpSampling2D()(layers.Conv2D(16, 3)(x)))))
    tfmot_asp.export.onnx(model, tmp_path / "m.onnx", precision="fp16")
    value = np.random.default_rng(0).standard_normal((2, 7, 9, 16)).astype(np.float32)
    (got,) = run(tmp_path / "m.onnx", x=value).values()
    close(got, model(value), 5e-3)
    tfmot_asp.export.onnx(model, tmp_path / "fixed.onnx", input_shapes=(None, 8, 8, 16))
    assert [value.name for value in ort.InferenceSession(str(tmp_path / "fixed.onnx")).get_inputs()] == ["x"]


def test_loops_in_float16_have_their_casts_inside(tmp_path):
    x = layers.Input((3, 6, 6, 8), name="x")  # its gates clip, by Min and Max, which stay in float32
    model = shaken(tf_keras.Model(x, layers.Conv2D(8, 1)(layers.ConvLSTM2D(8, 3)(x))))
    value = np.random.default_rng(0).standard_normal((2, 3, 6, 6, 8)).astype(np.float32)
    tfmot_asp.export.onnx(model, tmp_path / "m.onnx", precision="fp16")
    assert "Loop" in {node.op_type for node in nodes(tmp_path / "m.onnx")}
    (got,) = run(tmp_path / "m.onnx", x=value).values()
    close(got, model(value), 5e-3)


def test_a_weight_too_large_for_float16_is_named_and_a_tiny_one_is_no_harm(tmp_path):
    model = one_shot(mlp())
    kernel = model.get_layer("first").kernel.numpy()
    kernel[np.nonzero(kernel)[0][0], np.nonzero(kernel)[1][0]] = 1e-12
    model.get_layer("first").kernel.assign(kernel)
    assert tfmot_asp.export.onnx(model, tmp_path / "tiny.onnx", precision="fp16").sparse == 2
    kernel[np.nonzero(kernel)[0][5], np.nonzero(kernel)[1][5]] = 7e4
    model.get_layer("first").kernel.assign(kernel)
    with pytest.raises(ValueError, match=r"the weight 'first/kernel' of '.*' holds 7e\+04, and float16 ends at 65504"):
        tfmot_asp.export.onnx(model, tmp_path / "m.onnx", precision="fp16")
    assert os.listdir(tmp_path) == ["tiny.onnx"]


def test_activations_too_large_for_float16_are_noticed(tmp_path):
    model = tf_keras.Sequential([layers.Input((16,)), layers.Dense(16), layers.Dense(16)])
    for layer in model.layers:
        layer.kernel.assign(np.full((16, 16), 300.0, np.float32))
    model.layers[1].kernel.assign(np.eye(16, dtype=np.float32) * 1e-3)
    with pytest.raises(
        ValueError,
        match=r"in fp16 the model overflows on calibration_data: .*MatMul.* computes 4.8e\+05",
    ):
        tfmot_asp.export.onnx(
            model, tmp_path / "m.onnx", precision="fp16", calibration_data=np.full((1, 16), 100.0, np.float32)
        )
    assert os.listdir(tmp_path) == []


def test_importing_the_float16_converter_leaves_the_module_path_alone(tmp_path):
    import sys

    before = list(sys.path)
    tfmot_asp.export.onnx(mlp(), tmp_path / "m.onnx", precision="fp16")
    assert sys.path == before


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_models_trained_in_mixed_precision_are_written_in_the_precision_that_is_asked_for(policy, tmp_path):
    with dtypes.policy(policy):
        model = one_shot(convnet())
    x, _ = data(model, 16)
    half = model.output.dtype
    for precision in ("fp32", "fp16", "int8"):
        path = tmp_path / f"{precision}.onnx"
        report = tfmot_asp.export.onnx(model, path, precision=precision, calibration_data=x, opset=17)
        assert report.sparse == 3
        kind = onnx.TensorProto.FLOAT16 if precision == "fp16" else onnx.TensorProto.FLOAT
        kernels = {t.data_type for t in onnx.load(str(path)).graph.initializer if len(t.dims) >= 2}
        assert kernels == {kind}
        if half == tf.float16 and precision != "int8":
            (got,) = run(path, image=x).values()
            assert got.dtype == np.float16
            close(got.astype(np.float32), tf.cast(model(x), tf.float32), 1e-2)


def test_half_precision_inputs_keep_their_type(tmp_path):
    x = layers.Input((16,), dtype="float16", name="x")
    model = shaken(tf_keras.Model(x, layers.Dense(8, name="y")(x)))
    tfmot_asp.export.onnx(model, tmp_path / "m.onnx")
    value = np.random.default_rng(0).standard_normal((3, 16)).astype(np.float16)
    close(run(tmp_path / "m.onnx", x=value)["y"], model(value), 1e-3)


def test_bfloat16_lstms_are_written(tmp_path):
    """tf2onnx reads their weights into an LSTM node, for which it knows no bfloat16."""
    with dtypes.policy("mixed_bfloat16"):
        model = tf_keras.Sequential([layers.Input((4, 16)), layers.LSTM(16), layers.Dense(8)])
    tfmot_asp.export.onnx(one_shot(model), tmp_path / "m.onnx")
    assert "LSTM" in [node.op_type for node in nodes(tmp_path / "m.onnx")]


def with_float64():
    return tf_keras.Sequential([layers.Input((16,), dtype="float64"), layers.Dense(8, dtype="float64")])


# What is refused, and what must not be left behind


def with_strings():
    word = layers.Input((), dtype="string", name="word")
    return tf_keras.Model(word, layers.Dense(8)(layers.StringLookup(vocabulary=["a"], output_mode="one_hot")(word)))


def with_unknown_op():
    x = layers.Input((4,), name="x")
    return tf_keras.Model(
        x, layers.Lambda(lambda t: tf.math.betainc(tf.abs(t), tf.abs(t), tf.abs(t)))(layers.Dense(4)(x))
    )


def with_fake_quantization():
    x = layers.Input((16,), name="x")
    return tf_keras.Model(x, layers.Lambda(tf.quantization.fake_quant_with_min_max_args)(layers.Dense(8)(x)))


REFUSED = {
    "quantized": (with_fake_quantization, {}, r"quantization-aware training \(.*export the float model"),
    "strings": (with_strings, {}, "string"),
    "unknown op": (with_unknown_op, {}, r"no counterpart in ONNX opset 17 for these TensorFlow ops: Betainc \(.*\)"),
    "no model": (lambda: "model", {}, "takes a Keras model, got a str"),
    "unfinished": (
        lambda: tfmot_asp.prune_low_magnitude(mlp(), permute=False),
        {},
        r"Layer 'first' has not reached its pattern 2:4",
    ),
    "float64": (with_float64, {"precision": "fp16"}, "computes in float64, which TensorRT does not have"),
    "precision": (mlp, {"precision": "fp8"}, "precision must be one of 'fp32', 'fp16', 'int8', got 'fp8'"),
    "io": (mlp, {"precision": "fp32", "float16_io": True}, "float16_io is for precision='fp16', got 'fp32'"),
    "keep_float": (mlp, {"keep_float": "first"}, "keep_float and int8_weights are for precision='int8', got 'fp16'"),
    "tensorrt": (mlp, {"tensorrt": 7}, "tensorrt must be a version from 8 on"),
    "batch sizes": (mlp, {"batch_sizes": (8, 1, 2)}, "batch_sizes must be positive and not decrease"),
    "method": (mlp, {"calibration_method": "best"}, "calibration_method must be one of 'percentile', .* got 'best'"),
    "percentile": (mlp, {"percentile": 0.99}, "percentile must be above 50 and at most 100, got 0.99"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_written_is_refused_and_leaves_nothing(case, tmp_path):
    make, options, match = REFUSED[case]
    with pytest.raises(ValueError, match=match):
        tfmot_asp.export.onnx(make(), tmp_path / "m.onnx", **options)
    assert os.listdir(tmp_path) == []


def test_the_name_must_say_what_it_is(tmp_path):
    with pytest.raises(ValueError, match=r"path must end in \.onnx, by which verify knows the format; got '.*model'"):
        tfmot_asp.export.onnx(mlp(), tmp_path / "model")


def test_an_existing_file_is_only_replaced_when_asked(tmp_path):
    path = tmp_path / "m.onnx"
    path.write_text("precious")
    with pytest.raises(FileExistsError, match="overwrite=True to replace an ONNX file"):
        tfmot_asp.export.onnx(mlp(), path)
    assert path.read_text() == "precious"
    assert tfmot_asp.export.onnx(one_shot(mlp()), path, overwrite=True).ok


def wrong_weight(model):
    tensor = next(tensor for tensor in model.graph.initializer if len(tensor.dims) == 2)
    array = onnx.numpy_helper.to_array(tensor) + 1
    tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    return model


def test_a_conversion_that_changes_the_function_is_not_kept(tmp_path, monkeypatch):
    convert = onnx_convert.convert
    monkeypatch.setattr(module, "convert", lambda *args: wrong_weight(convert(*args)))
    with pytest.raises(RuntimeError, match="does not compute what the model does: its output 'second' differs by"):
        tfmot_asp.export.onnx(mlp(), tmp_path / "m.onnx")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_failure_leaves_the_old_file(error, tmp_path, monkeypatch):
    path = tmp_path / "m.onnx"
    tfmot_asp.export.onnx(mlp(), path)
    before = path.read_bytes()

    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(module, "verify", fail)
    with pytest.raises(type(error)):
        tfmot_asp.export.onnx(mlp(), path, overwrite=True)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["m.onnx"]


def test_a_lost_pattern_is_an_error(tmp_path, monkeypatch):
    """Noise far below the tolerance of the outputs, in every weight: only the weights themselves can tell."""
    convert = onnx_convert.convert

    def noisy(*args):
        model = convert(*args)
        for tensor in model.graph.initializer:
            if len(tensor.dims) == 2:
                array = onnx.numpy_helper.to_array(tensor) + np.float32(1e-9)
                tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
        return model

    monkeypatch.setattr(module, "convert", noisy)
    with pytest.raises(RuntimeError, match=r"lost the pattern 2:4 of first/kernel, second/kernel"):
        tfmot_asp.export.onnx(one_shot(mlp()), tmp_path / "m.onnx")
    assert os.listdir(tmp_path) == []


def test_missing_packages_name_the_extra(tmp_path, monkeypatch):
    for name in ("onnx", "tf2onnx", "onnxruntime"):
        with monkeypatch.context() as patch:
            patch.setitem(__import__("sys").modules, name, None)
            with pytest.raises(ImportError, match=r'pip install "tfmot-asp\[onnx\]"'):
                tfmot_asp.export.onnx(mlp(), tmp_path / "m.onnx")


def test_other_patterns_are_checked_as_such(tmp_path):
    pruned = tfmot_asp.prune_low_magnitude(mlp(), sparsity_m_by_n=(3, 4), permute=False)
    model = tfmot_asp.strip_pruning(pruned)
    kernel = model.get_layer("first").kernel.numpy()
    assert masks.violations(kernel, 0, (3, 4)) == 0
    assert tfmot_asp.export.onnx(model, tmp_path / "m.onnx").ok  # one in four is also two in four


def test_a_stripped_model_of_another_pattern_is_checked_by_its_own(tmp_path):
    pruned = tfmot_asp.prune_low_magnitude(mlp(), sparsity_m_by_n="3:4", permute=False)
    exporters = {
        "m": tfmot_asp.export.saved_model,
        "m.onnx": tfmot_asp.export.onnx,
        "m.tflite": tfmot_asp.export.tflite,
    }
    model = tfmot_asp.strip_pruning(pruned)
    for name, export in exporters.items():
        report = export(model, tmp_path / name, sparsity_m_by_n="3:4")
        assert report.sparsity_m_by_n == (1, 4)
        assert report.sparse == 2
        assert "weights are 3:4 (1 zero in every 4); ok" in str(report)
        assert tfmot_asp.export.verify(tmp_path / name).sparse == 0
    wrapped = tfmot_asp.prune_low_magnitude(mlp(), sparsity_m_by_n=(1, 4), permute=False)
    with pytest.raises(ValueError, match=r"sparsity_m_by_n=2:4 was given, but the wrappers of .* prune it 3:4 \(1 ze"):
        tfmot_asp.export.saved_model(wrapped, tmp_path / "other", sparsity_m_by_n="2:4")


def test_the_loggers_of_the_converters_are_as_they_were(tmp_path):
    names = ("tensorflow", "tf2onnx", "tf2onnx.tfonnx")
    before = [logging.getLogger(name).level for name in names]
    tfmot_asp.export.onnx(mlp(), tmp_path / "m.onnx")
    assert [logging.getLogger(name).level for name in names] == before


# The parts


@pytest.mark.parametrize(
    ("equation", "shapes", "is_product"),
    [
        ("btnh,bsnh->bnts", ((2, 3, 4, 5), (2, 6, 4, 5)), True),
        ("bnts,bsnh->btnh", ((2, 4, 3, 6), (2, 6, 4, 5)), True),
        ("aecd,abcd->acbe", ((2, 3, 4, 5), (2, 6, 4, 5)), True),
        ("ij,jk->ik", ((3, 4), (4, 5)), True),
        ("ij,jk->ki", ((3, 4), (4, 5)), True),
        ("bij,bkj->bik", ((2, 3, 4), (2, 5, 4)), True),
        ("ij,ij->i", ((3, 4), (3, 4)), False),
        ("ij,kj->", ((3, 4), (5, 4)), False),
        ("ijk,jkl->il", ((2, 3, 4), (3, 4, 5)), False),
        ("ii,ij->ij", ((3, 3), (3, 4)), False),
        ("...ij,jk->...ik", ((2, 3, 4), (4, 5)), False),
        ("ij,jk", ((3, 4), (4, 5)), True),
        ("ijx,jk->ik", ((3, 4, 2), (4, 5)), False),
    ],
)
def test_which_einsums_are_one_matrix_product(equation, shapes, is_product):
    orders = rewrites.matmul_orders(equation)
    assert (orders is not None) == is_product
    if orders is not None:
        left, right = (np.random.default_rng(0).standard_normal(shape) for shape in shapes)
        product = np.matmul(left.transpose(orders[0]), right.transpose(orders[1])).transpose(orders[2])
        np.testing.assert_allclose(product, np.einsum(equation, left, right))


def test_differences_are_relative_to_the_output_and_infinite_where_it_breaks():
    one = {"a": np.array([1.0, -4.0], np.float32), "i": np.array([3])}
    assert compare.largest_difference(one, {"a": np.array([1.0, -4.4], np.float32), "i": np.array([7])})[
        0
    ] == pytest.approx(0.1)
    assert compare.largest_difference(one, one) == (0.0, "a")
    for broken in (np.array([np.nan, -4.0]), np.array([np.inf, -4.0]), np.array([1.0])):
        assert compare.largest_difference(one, {"a": broken})[0] == np.inf
    assert compare.largest_difference(one, {})[0] == np.inf
    same = {"a": np.array([np.nan, np.inf, 1.0])}
    assert compare.largest_difference(same, same)[0] == 0


def test_errors_are_measured_channel_by_channel_against_their_spread():
    generator = np.random.default_rng(0)
    value = generator.standard_normal((50, 4))
    value[:, 0] = 1.0  # never varies, and is larger than all others together
    value[:, 2] *= 1e-6
    got = value + 0.1 * generator.standard_normal(value.shape) * value.std(0) * [0, 1, 0.5, 2]
    got[:, 0] += 1e-3
    errors = compare.SpreadErrors(1e-3)
    for part in (slice(20), slice(20, 50)):
        errors.add({"y": value[part]}, {"y": got[part]})
    found = errors.worst()
    expected = np.sqrt(np.mean((value - got) ** 2, 0)) / value.std(0).clip(1e-9)
    assert (found.output, found.channel, found.channels) == ("y", 3, 4)
    assert found.worst == pytest.approx(expected[3])
    assert expected[1] < found.overall < expected[3]
    assert "in the worst channel, 'y'[..., 3] of 4, and" in str(found)
    far = compare.SpreadError(1.14, "y", 3, 4, 0.9949)
    assert str(far) == "by 114 % of its spread (RMS) in the worst channel, 'y'[..., 3] of 4, and 99 % over all"


def test_channels_of_small_spread_have_errors_of_their_own():
    generator = np.random.default_rng(0)
    value = generator.standard_normal((50, 2)) * [1000, 0.01]
    got = value + [0, 0.001]
    for least, worst in ((1e-6, 0.1), (1e-3, 1e-6)):
        errors = compare.SpreadErrors(least)
        errors.add({"y": value}, {"y": got})
        assert errors.worst().channel == 1
        assert errors.worst().worst == pytest.approx(worst, rel=0.3)


def test_what_is_missing_or_not_finite_is_infinitely_far_off():
    one = {"a": np.arange(12.0).reshape(4, 3), "i": np.arange(3)}
    for broken in (None, np.zeros((4, 2)), np.full((4, 3), np.inf)):
        errors = compare.SpreadErrors(1e-3)
        errors.add(one, {} if broken is None else {"a": broken})
        assert errors.worst().worst == errors.worst().overall == np.inf
    errors = compare.SpreadErrors(1e-3)
    errors.add({"a": np.array([-np.inf, 1.0])}, {"a": np.array([-np.inf, 1.0])})
    assert errors.worst().worst == 0
    assert compare.SpreadErrors(1e-3).worst().output == ""


def test_outputs_are_channels_first_if_asked(tmp_path):
    x = layers.Input((8, 8, 3), name="image")
    model = shaken(tf_keras.Model(x, {"mask": layers.Conv2D(4, 3, name="mask")(x), "mean": layers.Flatten()(x)}))
    tfmot_asp.export.onnx(model, tmp_path / "m.onnx", precision="fp32", outputs_as_nchw=["mask"])
    values = np.random.default_rng(0).standard_normal((2, 8, 8, 3)).astype("f")
    found = run(tmp_path / "m.onnx", image=values)
    close(np.transpose(found["mask"], (0, 2, 3, 1)), model(values)["mask"])
    close(found["mean"], model(values)["mean"])
    with pytest.raises(ValueError, match=r"outputs_as_nchw must list outputs of rank 4, out of \['mask'\]"):
        tfmot_asp.export.onnx(model, tmp_path / "n.onnx", outputs_as_nchw=["mean"])


def test_outputs_whose_ties_change_places_may_be_left_out(tmp_path):
    x = layers.Input((64,), name="x")
    scores = layers.Dense(40, name="fc")(x)
    near = layers.Lambda(lambda s: tf.gather(tf.sin(1e4 * s), tf.math.top_k(s, 8).indices, batch_dims=1))(scores)
    model = shaken(tf_keras.Model(x, {"near": near, "scores": scores}))
    with pytest.raises(RuntimeError, match=r"output 'near' differs.* TopKV2 sorts .* uncompared="):
        tfmot_asp.export.onnx(model, tmp_path / "m.onnx")
    report = tfmot_asp.export.onnx(model, tmp_path / "m.onnx", uncompared="near")
    assert "Output 'near' was not compared with the model's." in report.notes
    with pytest.raises(ValueError, match="uncompared names 'far'; the outputs are near, scores"):
        tfmot_asp.export.onnx(model, tmp_path / "n.onnx", uncompared=["far"])
    with pytest.raises(RuntimeError, match="output 'near'"):
        tfmot_asp.export.tflite(model, tmp_path / "m.tflite", precision="fp16")
    report = tfmot_asp.export.tflite(model, tmp_path / "m.tflite", precision="fp16", uncompared=["near"])
    assert any("'near' was not compared" in note for note in report.notes)
