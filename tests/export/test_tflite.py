"""TFLite files do what the model does, keep its zeros, and are not written at all if they do not."""

import importlib
import os

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from tf_keras import layers

import tfmot_asp
from tests import dtypes
from tests.small_models import compiled, convnet, data, mlp
from tfmot_asp import masks
from tfmot_asp.export.tflite_files import file_checks
from tfmot_asp.export.tflite_files.read_tflite import read_tflite
from tfmot_asp.export.tflite_files.tflite_file import TfliteFile
from tfmot_asp.keras_models.kernels import kernels_of
from tfmot_asp.keras_models.layers import all_layers
from tfmot_asp.keras_models.variables import read

pytestmark = pytest.mark.filterwarnings("ignore:.*tf.lite.Interpreter is deprecated")


def pruned_in_place(model):
    """2:4 along the reduction axis of every kernel that has one, prunable or not."""
    for _, layer in all_layers(model):
        for kernel in kernels_of(layer):
            if kernel.layout.reduction_axes:
                weight = read(kernel.variable)
                mask = masks.m_by_n_mask(np.abs(weight), kernel.layout.reduction_axes)
                kernel.variable.assign(masks.apply_mask(weight, mask))
    return model


def inputs(*shape, count=16, seed=0):
    return np.random.default_rng(seed).standard_normal((count, *shape)).astype(np.float32)


def run(path, **values):
    with file_checks.quiet():
        runner = tf.lite.Interpreter(model_path=str(path)).get_signature_runner()
    return runner(**values)


@pytest.fixture(scope="module")
def trained():
    pruned = compiled(tfmot_asp.prune_low_magnitude(convnet(), permute=False))
    x, y = data(pruned)
    pruned.fit(x, y, batch_size=8, verbose=0, callbacks=[tfmot_asp.UpdatePruningStep()])
    return pruned, x


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_a_wrapped_model_is_written_stripped_and_computes_the_same(trained, precision, tmp_path):
    pruned, x = trained
    before = [weight.copy() for weight in pruned.get_weights()]
    dataset = x if precision == "int8" else None
    report = tfmot_asp.export.tflite(pruned, tmp_path / "m.tflite", precision=precision, calibration_data=dataset)
    assert report.ok
    assert [layer.status for layer in report.layers] == ["dense", "sparse", "sparse", "sparse"]
    assert report.path == str(tmp_path / "m.tflite")
    assert os.listdir(tmp_path) == ["m.tflite"]
    expected = pruned.predict(x[:4], verbose=0)
    got = np.concatenate([run(tmp_path / "m.tflite", image=x[i : i + 1])["head"] for i in range(4)])
    allowed = {"fp32": 1e-5, "fp16": 2e-3, "int8": 0.05}[precision]
    np.testing.assert_allclose(got, expected, rtol=0, atol=allowed * np.abs(expected).max())
    for old, new in zip(before, pruned.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    types = {tensor.type for tensor in TfliteFile(tmp_path / "m.tflite").subgraphs[0].tensors if len(tensor.shape) > 1}
    wanted = {"fp32": {"FLOAT32"}, "fp16": {"FLOAT32", "FLOAT16"}, "int8": {"INT8", "FLOAT32"}}[precision]
    assert types == wanted


def test_int8_is_int8_throughout_with_symmetric_weights(trained, tmp_path):
    pruned, x = trained
    for io_dtype in ("int8", "uint8", "float32"):
        path = tmp_path / f"{io_dtype}.tflite"
        report = tfmot_asp.export.tflite(pruned, path, precision="int8", calibration_data=x, io_dtype=io_dtype)
        assert not any("Computed in float" in note for note in report.notes)
        graph = TfliteFile(path).subgraphs[0]
        assert {graph.tensors[i].type for i in (*graph.inputs, *graph.outputs)} == {io_dtype.upper()}
        for op in graph.ops:
            if op.type in ("CONV_2D", "FULLY_CONNECTED"):
                weight = graph.tensors[op.inputs[1]]
                assert weight.type == "INT8"
                assert not np.any(weight.table.Quantization().ZeroPointAsNumpy())
                assert graph.tensors[op.outputs[0]].type == "INT8"
    convolution = next(op for op in graph.ops if op.type == "CONV_2D")
    assert graph.tensors[convolution.inputs[1]].table.Quantization().ScaleLength() == 16, "not per channel"


def test_the_notes_say_sizes_and_that_nothing_gets_faster(trained, tmp_path):
    report = tfmot_asp.export.tflite(trained[0], tmp_path / "m.tflite")
    size = (tmp_path / "m.tflite").stat().st_size
    (sizes,) = [note for note in report.notes if note.startswith("Size:")]
    assert sizes.startswith(f"Size: {size:,} bytes, ")
    sparse, dense = TfliteFile(tmp_path / "m.tflite").compressed_sizes()
    assert f"{sparse:,} compressed (deflate)" in sizes
    assert f"compress to {dense:,}." in sizes
    assert sparse < 0.85 * dense
    assert any("no speed-up" in note and "XNNPACK" in note for note in report.notes)
    assert any(note.startswith("Outputs differ from the model's by at most") for note in report.notes)
    assert report.to_dict()["notes"] == list(report.notes)
    assert sizes in str(report)


def test_compressed_size_without_zeros_is_that_of_a_dense_model(tmp_path):
    model = tf_keras.Sequential([layers.Input((256,)), layers.Dense(256, use_bias=False)])
    tfmot_asp.export.tflite(model, tmp_path / "dense.tflite")
    actual, _ = TfliteFile(tmp_path / "dense.tflite").compressed_sizes()
    tfmot_asp.export.tflite(pruned_in_place(model), tmp_path / "sparse.tflite")
    sparse, estimated = TfliteFile(tmp_path / "sparse.tflite").compressed_sizes()
    assert sparse < 0.75 * actual
    assert abs(estimated - actual) < 0.15 * actual


def many_layers(layers, models):
    x = layers.Input((8, 8, 16), name="image")
    y = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(16, 3, use_bias=False)(x)))
    y = layers.SeparableConv2D(16, 3)(y)
    y = layers.Conv2DTranspose(16, 2)(layers.DepthwiseConv2D(3, padding="same")(y))
    z = layers.Reshape((25, 16))(y)
    z = layers.LayerNormalization()(layers.MultiHeadAttention(2, 8, name="mha")(z, z))
    z = layers.Dense(32, activation="gelu")(z)
    z = layers.Conv1D(16, 3)(layers.EinsumDense("abc,cd->abd", output_shape=(25, 16))(z))
    return models.Model(x, layers.Dense(8, activation="softmax", name="head")(layers.Flatten()(z)))


@pytest.mark.parametrize("which", ["tf_keras", "keras 3"])
def test_layers_of_all_kinds_keep_their_zeros(which, tmp_path):
    (tf_keras if which == "tf_keras" else keras).utils.set_random_seed(0)  # int8 is judged by how far outputs move
    model = many_layers(layers, tf_keras) if which == "tf_keras" else many_layers(keras.layers, keras)
    pruned_in_place(model)
    x = inputs(8, 8, 16)
    for options in ({}, {"precision": "int8", "calibration_data": x}):
        report = tfmot_asp.export.tflite(model, tmp_path / "m.tflite", overwrite=True, **options)
        rows = [(layer.type, layer.status) for layer in report.layers]
        assert rows.count(("DEPTHWISE_CONV_2D", "depthwise")) == 2
        assert all(status in ("sparse", "depthwise") for _, status in rows)
        # two convolutions, transposed, 1-D; query, key, value, output; Dense, EinsumDense, head
        assert len(rows) == 2 + 11


def test_integer_and_several_inputs_and_outputs(tmp_path):
    ids, extra = layers.Input((6,), dtype="int32", name="ids"), layers.Input((16,), name="extra")
    y = layers.GlobalAveragePooling1D()(layers.Embedding(20, 16)(ids))
    y = layers.Concatenate()([y, extra])
    model = tf_keras.Model(
        {"ids": ids, "extra": extra}, [layers.Dense(16, name="scores")(y), layers.Dense(4, name="boxes")(y)]
    )
    pruned_in_place(model)
    dataset = {"ids": np.random.default_rng(0).integers(0, 20, (16, 6)), "extra": inputs(16)}
    for options in ({}, {"precision": "int8", "calibration_data": dataset}):
        path = tmp_path / "m.tflite"
        report = tfmot_asp.export.tflite(model, path, overwrite=True, **options)
        assert report.ok
        sample = {"ids": dataset["ids"][:1].astype(np.int32), "extra": dataset["extra"][:1]}
        got = run(path, **sample)
        expected = dict(zip(("scores", "boxes"), model(sample), strict=True))
        assert set(got) == set(expected)
        for name, value in expected.items():
            np.testing.assert_allclose(got[name], value, atol=0.05 * np.abs(value).max() if options else 1e-5)


def test_an_open_batch_can_be_resized(tmp_path):
    model = pruned_in_place(mlp())
    tfmot_asp.export.tflite(model, tmp_path / "m.tflite", batch_size=None)
    x = inputs(16)
    (got,) = run(tmp_path / "m.tflite", **{model.input_names[0]: x}).values()
    np.testing.assert_allclose(got, model(x), atol=1e-5)
    tfmot_asp.export.tflite(model, tmp_path / "four.tflite", batch_size=4)
    graph = TfliteFile(tmp_path / "four.tflite").subgraphs[0]
    assert graph.tensors[graph.inputs[0]].shape == (4, 16)


def test_an_einsum_whose_letters_tflite_would_reorder_keeps_its_pattern(tmp_path):
    x = layers.Input((4, 16))
    model = tf_keras.Model(x, layers.EinsumDense("abc,dcb->ad", output_shape=(16,), name="mixed")(x))
    pruned_in_place(model)
    plain = tf.lite.TFLiteConverter.from_keras_model(model).convert()
    (tmp_path / "plain.tflite").write_bytes(plain)
    assert not tfmot_asp.export.verify(tmp_path / "plain.tflite").ok, "TFLite keeps the order now: drop the detour"
    assert tfmot_asp.export.tflite(model, tmp_path / "m.tflite").ok


def test_models_with_mixed_precision_are_written_in_float32(tmp_path):
    with dtypes.policy("mixed_float16"):
        model = pruned_in_place(convnet())
    x = inputs(8, 8, 3)
    for options in ({}, {"precision": "int8", "calibration_data": x}):
        report = tfmot_asp.export.tflite(model, tmp_path / "m.tflite", overwrite=True, **options)
        assert report.sparse == 4
        tensors = TfliteFile(tmp_path / "m.tflite").subgraphs[0].tensors
        assert not any(tensor.type == "FLOAT16" for tensor in tensors)


def test_subclassed_models(tmp_path):
    class Net(tf_keras.Model):
        def __init__(self):
            super().__init__()
            self.fc = layers.Dense(8)

        def call(self, x, training=False):
            return {"out": self.fc(x)}

    net = Net()
    net(tf.zeros((1, 16)))
    pruned_in_place(net)
    assert tfmot_asp.export.tflite(net, tmp_path / "m.tflite", input_shapes=(None, 16)).ok
    x = inputs(16, count=1)
    (got,) = run(tmp_path / "m.tflite", input_0=x).values()
    np.testing.assert_allclose(got, net(x)["out"], atol=1e-5)


def test_what_has_no_int8_kernel_stays_float_and_is_named(tmp_path, caplog):
    model = tf_keras.Sequential([layers.Input((4, 4, 4, 16)), layers.Conv3D(16, 2), layers.Flatten(), layers.Dense(8)])
    pruned_in_place(model)
    report = tfmot_asp.export.tflite(
        model, tmp_path / "m.tflite", precision="int8", calibration_data=inputs(4, 4, 4, 16)
    )
    assert report.sparse == 2
    (note,) = [note for note in report.notes if note.startswith("Computed in float")]
    assert "1 CONV_3D" in note
    assert "conv3d" in note


DATASETS = {
    "array": lambda x: x,
    "batches": lambda x: [x[:4], x[4:8]],
    "generator function, as tf.lite has it": lambda x: lambda: ([x[i : i + 1]] for i in range(8)),
    "dict": lambda x: {"input": x},
    "dataset with labels": lambda x: tf.data.Dataset.from_tensor_slices((x, np.zeros(len(x)))).batch(5),
    "iterator": lambda x: iter([x]),
}


@pytest.mark.parametrize("kind", DATASETS)
def test_calibration_data_in_all_forms(kind, tmp_path):
    x = inputs(16)
    model = pruned_in_place(tf_keras.Sequential([layers.Input((16,), name="input"), layers.Dense(16), layers.Dense(8)]))
    dataset = DATASETS[kind](x)
    report = tfmot_asp.export.tflite(
        model, tmp_path / "m.tflite", precision="int8", calibration_data=dataset, io_dtype="int8"
    )
    assert report.ok
    graph = TfliteFile(tmp_path / "m.tflite").subgraphs[0]
    seen = x[:8] if kind.startswith(("batches", "generator")) else x
    scale = graph.tensors[graph.inputs[0]].table.Quantization().ScaleAsNumpy()
    np.testing.assert_allclose(scale, (seen.max() - seen.min()) / 255, rtol=0.01)


REFUSED = {
    "none": (lambda x: None, "precision='int8' needs calibration_data"),
    "empty": (lambda x: x[:0], "calibration_data is empty"),
    "nan": (lambda x: np.full_like(x, np.nan), "calibration_data, batch 1: input .* holds NaN or infinity"),
    "shape": (lambda x: x[:, :3], r"has shape \(\d+, 3\), the model takes \(None, 16\)"),
    "no batch": (lambda x: tf.data.Dataset.from_tensor_slices(x), "its batch axis is missing"),
    "text": (lambda x: "images", "calibration_data must hold inputs"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_datasets_that_do_not_fit_are_refused(kind, tmp_path):
    make, match = REFUSED[kind]
    with pytest.raises(ValueError, match=match):
        tfmot_asp.export.tflite(mlp(), tmp_path / "m.tflite", precision="int8", calibration_data=make(inputs(16)))
    assert os.listdir(tmp_path) == []


ARGUMENTS = [
    ({"precision": "int4"}, "precision must be one of 'fp32', 'fp16', 'int8', got 'int4'"),
    ({"io_dtype": "int16"}, "io_dtype must be one of"),
    ({"io_dtype": "int8"}, "is for files that are quantized: give precision='int8'"),
    ({"batch_size": 0}, "batch_size must be a positive number, or None"),
    ({"batch_size": 4, "precision": "int8", "calibration_data": inputs(16, count=3)}, "less than one batch of 4"),
]


@pytest.mark.parametrize(("options", "match"), ARGUMENTS)
def test_arguments_that_make_no_sense_are_refused(options, match, tmp_path):
    with pytest.raises(ValueError, match=match):
        tfmot_asp.export.tflite(mlp(), tmp_path / "m.tflite", **options)
    assert os.listdir(tmp_path) == []


def test_models_that_cannot_be_written_are_refused(tmp_path):
    svd = tf_keras.Sequential([layers.Input((4, 16)), layers.Lambda(lambda x: tf.linalg.svd(x)[0])], name="svd")
    huge, broken = mlp(), mlp()
    huge.layers[0].kernel.assign(huge.layers[0].kernel * 1e7)
    broken.layers[0].kernel.assign(np.full(broken.layers[0].kernel.shape, 3e38))
    broken.layers[1].kernel.assign(np.full(broken.layers[1].kernel.shape, 3e38))
    cases = [
        (svd, {}, "TFLite has no ops for Svd, which 'svd' uses. .* select_tf_ops=True.*SELECT_TF_OPS"),
        (huge, {"precision": "fp16"}, "first/kernel reaches .*; float16 ends at 65,504"),
        (broken, {}, "the model's output 'second' is NaN or infinite throughout"),
        (tfmot_asp.prune_low_magnitude(mlp(), permute=False), {}, "has not reached its pattern 2:4"),
        ("model", {}, "takes a Keras model, got a str"),
        (tf_keras.Sequential([layers.Dense(3)], name="later"), {}, "'later' is not built"),
    ]
    for model, options, match in cases:
        with pytest.raises(ValueError, match=match):
            tfmot_asp.export.tflite(model, tmp_path / "m.tflite", **options)
    with pytest.raises(ValueError, match=r"should end in \.tflite"):
        tfmot_asp.export.tflite(mlp(), tmp_path / "m.bin")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_products_of_one_hot_vectors_become_tables(tmp_path, precision):
    ids = layers.Input((16,), dtype="int32")
    x = layers.Dense(32, bias_initializer="normal")(layers.Lambda(lambda t: tf.one_hot(t, 32))(ids))
    model = tf_keras.Model(ids, layers.Dense(16)(layers.ReLU()(x)))
    tfmot_asp.prune_trained_model(model, permute=False)
    data = {"calibration_data": np.arange(64).reshape(4, 16).astype("int32") % 32} if precision == "int8" else {}
    report = tfmot_asp.export.tflite(model, tmp_path / "m.tflite", precision=precision, **data)
    assert (report.sparse, len(report.layers)) == (1, 1)
    assert any("TFLite looks up its rows" in note for note in report.notes)


def test_loops_that_crash_tensorflows_calibrator_are_refused(tmp_path):
    looped = tf_keras.Sequential([layers.Input((4, 16)), layers.GRU(8), layers.Dense(8)], name="looped")
    dataset = {"precision": "int8", "calibration_data": inputs(4, 16)}
    with pytest.raises(ValueError, match=r"'looped' has a recurrent layer, 'gru', that becomes.*unroll=True.*aware"):
        tfmot_asp.export.tflite(looped, tmp_path / "m.tflite", **dataset)
    mapped = keras.Sequential([keras.layers.Input((4, 16)), keras.layers.Lambda(lambda x: tf.map_fn(tf.sin, x))])
    with pytest.raises(ValueError, match=r"has code that becomes a loop.*precision='fp16'"):
        tfmot_asp.export.tflite(mapped, tmp_path / "m.tflite", **dataset)
    assert os.listdir(tmp_path) == []
    unrolled = tf_keras.Sequential([layers.Input((4, 16)), layers.GRU(8, unroll=True), layers.Dense(8)])
    tfmot_asp.export.tflite(unrolled, tmp_path / "m.tflite", **dataset)


def test_files_are_replaced_only_when_asked(tmp_path):
    path = tmp_path / "m.tflite"
    tfmot_asp.export.tflite(mlp(), path)
    first = path.read_bytes()
    with pytest.raises(FileExistsError, match="overwrite=True to replace a TFLite file"):
        tfmot_asp.export.tflite(mlp(), path)
    with pytest.raises(ValueError, match="needs calibration_data"):
        tfmot_asp.export.tflite(mlp(), path, precision="int8", overwrite=True)
    assert path.read_bytes() == first
    tfmot_asp.export.tflite(mlp(), path, overwrite=True)
    assert path.read_bytes() != first
    (tmp_path / "folder.tflite").mkdir()
    with pytest.raises(FileExistsError, match="so overwrite=True does not replace it"):
        tfmot_asp.export.tflite(mlp(), tmp_path / "folder.tflite", overwrite=True)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_a_broken_conversion_is_not_kept(precision, tmp_path, monkeypatch):
    """The converter is made to convert another model, with the zeros of the right one."""
    model, other = pruned_in_place(mlp()), mlp()
    for mine, theirs in zip(model.layers, other.layers, strict=True):
        theirs.kernel.assign(tf.where(mine.kernel != 0, tf.random.normal(mine.kernel.shape, seed=1), 0.0))
    convert = tf.lite.TFLiteConverter.convert

    def convert_another(converter):
        model_weights = [w.copy() for w in model.get_weights()]
        model.set_weights(other.get_weights())
        try:
            return convert(converter)
        finally:
            model.set_weights(model_weights)

    monkeypatch.setattr(tf.lite.TFLiteConverter, "convert", convert_another)
    dataset = inputs(16) if precision == "int8" else None
    with pytest.raises(RuntimeError, match=r"output 'second' differs from the model's by .* %"):
        tfmot_asp.export.tflite(model, tmp_path / "m.tflite", precision=precision, calibration_data=dataset)
    assert os.listdir(tmp_path) == []


def test_a_file_without_the_models_zeros_is_not_kept(tmp_path, monkeypatch):
    model = pruned_in_place(mlp())
    convert = tf.lite.TFLiteConverter.convert

    def fill_a_zero(converter):
        content = bytearray(convert(converter))
        kernel = model.get_layer("first").kernel.numpy().T.copy()
        start = bytes(content).index(kernel.tobytes())
        content[start : start + kernel.nbytes] = np.where(kernel == 0, np.float32(1e-6), kernel).tobytes()
        return bytes(content)

    monkeypatch.setattr(tf.lite.TFLiteConverter, "convert", fill_a_zero)
    with pytest.raises(RuntimeError, match="the TFLite file lost the pattern 2:4 of first/kernel; it says"):
        tfmot_asp.export.tflite(model, tmp_path / "m.tflite")
    assert os.listdir(tmp_path) == []


def test_an_interrupt_leaves_nothing_behind(tmp_path, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(importlib.import_module("tfmot_asp.export.tflite"), "verify", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tfmot_asp.export.tflite(pruned_in_place(mlp()), tmp_path / "m.tflite")
    assert os.listdir(tmp_path) == []


def test_tensorflow_ops_on_request(tmp_path):
    x = layers.Input((16,))
    y = layers.Lambda(tf.math.erf)(layers.Dense(16, name="first")(x))
    model = pruned_in_place(tf_keras.Model(x, layers.Dense(8, name="second")(y)))
    report = tfmot_asp.export.tflite(model, tmp_path / "m.tflite", select_tf_ops=True)
    assert report.ok
    assert any(op.type == "FlexErf" for op in TfliteFile(tmp_path / "m.tflite").subgraphs[0].ops)
    assert any("outputs were not compared" in note or "Outputs differ" in note for note in report.notes)


def test_batch_norm_is_folded(tmp_path):
    model = tf_keras.Sequential(
        [layers.Input((8, 8, 16)), layers.Conv2D(16, 3, use_bias=False), layers.BatchNormalization(), layers.ReLU()]
    )
    norm = model.layers[1]
    norm.gamma.assign(tf.linspace(0.5, 2.0, 16))
    norm.moving_mean.assign(tf.range(16.0))
    pruned_in_place(model)
    tfmot_asp.export.tflite(model, tmp_path / "m.tflite")
    (gemm,) = read_tflite(tmp_path / "m.tflite")
    assert [op.type for op in TfliteFile(tmp_path / "m.tflite").subgraphs[0].ops] == ["CONV_2D"]
    folded = model.layers[0].kernel * norm.gamma / tf.sqrt(norm.moving_variance + norm.epsilon)
    np.testing.assert_allclose(gemm.weight, np.transpose(folded, (3, 0, 1, 2)), atol=1e-6)


def test_recurrent_layers_start_anew_with_each_sample_and_the_report_says_how(tmp_path):
    x = layers.Input((5, 16), name="x")
    model = tf_keras.Model(x, layers.Dense(8, name="out")(layers.LSTM(16)(x)))
    values = inputs(5, 16, count=3)
    report = tfmot_asp.export.tflite(model, tmp_path / "m.tflite", calibration_data=values)
    assert any("call reset_all_variables() before each new sequence" in note for note in report.notes)
    assert any("(3 inputs)" in note for note in report.notes)
    plain = tfmot_asp.export.tflite(mlp(), tmp_path / "plain.tflite")
    assert not any("reset_all_variables" in note for note in plain.notes)


def test_batch_norm_that_takes_float16_too_far_is_told(tmp_path):
    model = tf_keras.Sequential([layers.Input((16,)), layers.Dense(16), layers.BatchNormalization(), layers.Dense(8)])
    model.layers[1].gamma.assign(np.full(16, 1e9))
    with pytest.raises(RuntimeError, match="batch norm behind them, beyond float16's 65,504"):
        tfmot_asp.export.tflite(model, tmp_path / "m.tflite", precision="fp16")
    assert os.listdir(tmp_path) == []
