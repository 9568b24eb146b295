"""2:4 survives quantization-aware training, in what tfmot's scheme quantizes and in what it leaves out."""

import logging

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras
from tensorflow_model_optimization.python.core.quantization.keras.collab_opts.prune_preserve import (
    default_8bit_prune_preserve_quantize_scheme as preserving,
)
from tf_keras import layers

import tfmot_asp
from tests.export.test_tflite import pruned_in_place
from tests.small_models import compiled, convnet, data, mlp
from tfmot_asp import masks
from tfmot_asp.export.tflite_files.tflite_file import TfliteFile
from tfmot_asp.keras_models.kernels import kernels_of
from tfmot_asp.keras_models.layers import all_layers
from tfmot_asp.keras_models.variables import read, underlying_variable

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*tf.lite.Interpreter is deprecated"),
    pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file"),
]


def violations(model):
    """Of every kernel with a reduction axis, read from its variable."""
    found = {}
    for name, layer in all_layers(model):
        for kernel in kernels_of(layer):
            assert isinstance(underlying_variable(kernel.variable), tf.Variable), name
            if kernel.layout.reduction_axes:
                weight = read(kernel.variable)
                found[f"{name}.{kernel.attribute}"] = masks.violations(weight, kernel.layout.reduction_axes)
    return found


class EveryBatch(tf_keras.callbacks.Callback):
    """Counts batches, and fails on the first after which a kernel that was sparse is not."""

    def __init__(self, model):
        super().__init__()
        self.sparse = [name for name, count in violations(model).items() if not count]
        self.batches = 0

    def on_train_batch_end(self, batch, logs=None):
        now = violations(self.model)
        assert not any(now[name] for name in self.sparse), now
        self.batches += 1


def some_data(model, count=16, seed=0):
    generator = np.random.default_rng(seed)

    def values(tensor):
        shape = (count, *tensor.shape[1:])
        if tensor.dtype.is_floating:
            return generator.standard_normal(shape).astype(np.float32)
        return generator.integers(1, 20, shape).astype(np.int32)

    return tf.nest.map_structure(values, model.input), tf.nest.map_structure(values, model.output)


def train(model, **options):
    """Three epochs with a step size that moves every weight that is free to move."""
    x, y = some_data(model)
    check = EveryBatch(model)
    model.compile(tf_keras.optimizers.Adam(0.05, **options), "mse")
    model.fit(x, y, batch_size=8, epochs=3, verbose=0, callbacks=[check])
    assert check.batches == 6
    assert check.sparse
    return x


def sequential(*stack, shape=(16,), dtype="float32"):
    return pruned_in_place(tf_keras.Sequential([layers.Input(shape, dtype=dtype), *stack]))


def functional(build, shape=(16,)):
    x = layers.Input(shape)
    return pruned_in_place(tf_keras.Model(x, build(x)))


def dense(units=16, **options):
    return layers.Dense(units, **options)


def shared_layer(x):
    twice = dense(name="twice")
    return layers.Add()([twice(x), twice(layers.ReLU()(x))])


def branches(x):
    y = layers.Concatenate()([layers.Conv2D(16, 1)(x), layers.Conv2D(16, 3, padding="same")(x)])
    return layers.Conv2D(8, 1)(y)


def attention(x):
    y = layers.MultiHeadAttention(2, 8, name="mha")(x, x)
    return dense()(layers.LayerNormalization()(layers.Add()([y, x])))


# Each model, with the number of kernels that stay float.
MODELS = {
    "residual network": (lambda: pruned_in_place(convnet()), 0),
    "Dense, then a ReLU layer": (lambda: functional(lambda x: dense(4)(layers.ReLU()(dense(name="d")(x)))), 0),
    "Conv2D, then Activation('relu')": (
        lambda: sequential(
            layers.Conv2D(16, 3), layers.Activation("relu"), layers.Flatten(), dense(), shape=(6, 6, 16)
        ),
        0,
    ),
    "Concatenate": (lambda: functional(branches, (6, 6, 16)), 0),
    "shared layer": (lambda: functional(shared_layer), 0),
    "separable": (
        lambda: sequential(
            layers.SeparableConv2D(16, 3), layers.BatchNormalization(), layers.ReLU(), dense(), shape=(6, 6, 16)
        ),
        0,
    ),
    "transposed": (lambda: sequential(layers.Conv2DTranspose(16, 2), dense(), shape=(4, 4, 16)), 0),
    "frozen": (lambda: sequential(dense(trainable=False), dense()), 0),
    "batch norm elsewhere": (
        lambda: sequential(layers.BatchNormalization(), dense(activation="relu"), layers.BatchNormalization(), dense()),
        0,
    ),
    "Multiply": (lambda: functional(lambda x: dense()(layers.Multiply()([dense()(x), x]))), 0),
    "Conv1D": (lambda: sequential(layers.Conv1D(16, 3, name="c1"), layers.Flatten(), dense(), shape=(8, 16)), 1),
    "Conv3D": (lambda: sequential(layers.Conv3D(16, 2, name="c3"), layers.Flatten(), dense(), shape=(3, 3, 3, 16)), 1),
    "EinsumDense": (
        lambda: sequential(
            layers.EinsumDense("abc,cd->abd", output_shape=(None, 16), name="ein"), dense(), shape=(4, 16)
        ),
        1,
    ),
    "attention": (lambda: functional(attention, (4, 16)), 4),
    "SeparableConv1D": (lambda: sequential(layers.SeparableConv1D(16, 3), dense(), shape=(8, 16)), 2),
    "activation without a scheme": (lambda: sequential(dense(activation="elu"), dense()), 1),
    "embedding with a mask, LSTM": (
        lambda: sequential(
            layers.Embedding(20, 16, mask_zero=True), layers.LSTM(16), dense(), shape=(6,), dtype="int32"
        ),
        0,
    ),
}


SLOW = ("embedding with a mask, LSTM", "batch norm elsewhere", "SeparableConv1D", "EinsumDense")


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in MODELS])
def test_every_step_is_sparse_and_so_is_the_int8_file(name, tmp_path):
    build, floats = MODELS[name]
    model = build()
    before = [weight.copy() for weight in model.get_weights()]
    sparse = [count for count in violations(model).values() if not count]
    quantized = tfmot_asp.quantize_model(model)
    report = tfmot_asp.quantization_report(quantized)
    assert len(report.left_out) == floats, report
    assert all(kernel.reason and "8-bit scheme" in kernel.reason for kernel in report.left_out)
    assert all(kernel.kept for kernel in report.layers if kernel.holds)
    x = train(quantized)
    assert sum(not count for count in violations(quantized).values()) == len(sparse)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    written = tfmot_asp.export.tflite(
        quantized, tmp_path / "m.tflite", precision="int8", calibration_data=_named(quantized, x)
    )
    assert written.ok
    assert written.sparse == len(sparse)
    graph = TfliteFile(tmp_path / "m.tflite").subgraphs[0]
    weights = {"FULLY_CONNECTED", "CONV_2D", "TRANSPOSE_CONV", "CONV_3D"}
    types = [graph.tensors[op.inputs[1]].type for op in graph.ops if op.type in weights]
    int8 = sum(kernel.quantized and kernel.holds is not None for kernel in report.layers)
    assert types.count("INT8") >= int8


def _named(model, x):
    return dict(zip(model.input_names, tf.nest.flatten(x), strict=True))


@pytest.mark.parametrize("suffix", [".keras", ".h5", ""])
@pytest.mark.parametrize("name", ["residual network", "Conv1D"])
def test_saved_models_load_and_stay_sparse_once_asked_to(name, suffix, tmp_path):
    model = tfmot_asp.quantize_model(MODELS[name][0]())
    x = train(model)
    path = tmp_path / f"m{suffix}"
    model.save(path)
    with tfmot_asp.quantize_scope():
        loaded = tf_keras.models.load_model(path)
    np.testing.assert_allclose(loaded.predict(x, verbose=0), model.predict(x, verbose=0), atol=1e-6)
    before = tfmot_asp.quantization_report(model)
    after = tfmot_asp.quantization_report(loaded)
    assert [(k.name, k.quantized, k.holds) for k in after.layers] == [
        (k.name, k.quantized, k.holds) for k in before.layers
    ]
    assert not any(kernel.kept for kernel in after.layers)
    kept = tfmot_asp.keep_sparsity(loaded)
    assert set(kept.masks) == {kernel.name for kernel in after.layers if kernel.holds}
    train(loaded)
    assert tfmot_asp.sparsity_report(loaded).sparse == tfmot_asp.sparsity_report(model).sparse


def plain_recipe(model):
    """As tfmot's guide has it."""
    annotated = tfmot.quantization.keras.quantize_annotate_model(model)
    return tfmot.quantization.keras.quantize_apply(annotated, preserving.Default8BitPrunePreserveQuantizeScheme())


def test_tfmots_own_recipe_works_on_a_stripped_model(tmp_path):
    pruned = compiled(tfmot_asp.prune_low_magnitude(convnet(), permute=False))
    x, y = data(pruned)
    pruned.fit(x, y, verbose=0)
    quantized = compiled(plain_recipe(tfmot_asp.strip_pruning(pruned)), "sgd")
    check = EveryBatch(quantized)
    quantized.fit(x, y, batch_size=8, verbose=0, callbacks=[check])
    assert len(check.sparse) == 3
    assert tfmot_asp.sparsity_report(quantized).sparse == 3
    assert tfmot_asp.export.tflite(quantized, tmp_path / "m.tflite").sparse == 3


@pytest.mark.parametrize(("name", "left_out"), [("Dense, then a ReLU layer", 1), ("Concatenate", 0)])
def test_what_tfmots_recipe_loses_keep_sparsity_keeps(name, left_out):
    """The gaps that quantize_model closes are there: if this fails, tfmot has closed one and the detour may go."""
    lost = plain_recipe(MODELS[name][0]())
    x, y = some_data(lost)
    lost.compile(tf_keras.optimizers.Adam(0.05), "mse")
    lost.fit(x, y, verbose=0)
    assert any(violations(lost).values())
    reasons = [kernel.reason for kernel in tfmot_asp.quantization_report(plain_recipe(MODELS[name][0]())).left_out]
    assert reasons == ["its wrapper does not quantize weights"] * left_out
    kept = plain_recipe(MODELS[name][0]())
    tfmot_asp.keep_sparsity(kept)
    train(kept)


def test_wrapped_models_other_patterns_and_prefixes():
    pruned = compiled(tfmot_asp.prune_low_magnitude(mlp(), permute=False))
    x, y = data(pruned)
    pruned.fit(x, y, verbose=0)
    quantized = tfmot_asp.quantize_model(pruned, "q_")
    assert [layer.name for layer in quantized.layers[-2:]] == ["q_first", "q_second"]
    train(quantized)
    assert pruned.get_layer("prune_low_magnitude_first").layer.kernel.constraint is not None  # still wrapped
    one_of_four = mlp()
    for layer in one_of_four.layers:
        kernel = layer.kernel.numpy()
        layer.kernel.assign(masks.apply_mask(kernel, masks.m_by_n_mask(np.abs(kernel), 0, (3, 4))))
    quantized = tfmot_asp.quantize_model(one_of_four, sparsity_m_by_n=(3, 4))
    x, y = some_data(quantized)
    quantized.compile(tf_keras.optimizers.Adam(0.05), "mse")
    quantized.fit(x, y, verbose=0)
    report = tfmot_asp.quantization_report(quantized, sparsity_m_by_n=(3, 4))
    assert all(kernel.holds and kernel.kept for kernel in report.layers)


def test_what_stays_float_is_logged_and_listed(caplog):
    model = MODELS["Conv1D"][0]()
    with caplog.at_level(logging.WARNING, logger="tfmot_asp"):
        quantized = tfmot_asp.quantize_model(model)
    (record,) = [record for record in caplog.records if "stay float" in record.message]
    assert record.levelno == 30
    assert "'c1' (tfmot has no 8-bit scheme for Conv1D)" in record.message
    assert record.message.startswith("1 of 2 kernels")
    report = tfmot_asp.quantization_report(quantized)
    assert "tfmot has no 8-bit scheme for Conv1D" in str(report)
    assert "1 of 2 kernels in 8 bits" in str(report)
    assert report.to_dict()["layers"][0] == {
        "name": "c1",
        "kind": "Conv1D",
        "attribute": "kernel",
        "quantized": False,
        "holds": True,
        "kept": True,
        "reason": "tfmot has no 8-bit scheme for Conv1D",
    }
    caplog.clear()
    tfmot_asp.quantize_model(pruned_in_place(mlp()))
    assert not [record for record in caplog.records if "stay float" in record.message]


def test_int8_file_and_model_agree_exactly_and_a_dense_layer_trains_freely(tmp_path):
    model = pruned_in_place(mlp())
    model.get_layer("second").kernel.assign(tf.random.normal((32, 8)))
    quantized = tfmot_asp.quantize_model(model)
    rows = {kernel.name: kernel for kernel in tfmot_asp.quantization_report(quantized).layers}
    assert (rows["first"].kept, rows["second"].kept) == (True, False)
    x = train(quantized)
    report = tfmot_asp.export.tflite(
        quantized, tmp_path / "m.tflite", precision="int8", io_dtype="int8", calibration_data=x
    )
    assert [layer.status for layer in report.layers] == ["sparse", "dense"]
    graph = TfliteFile(tmp_path / "m.tflite").subgraphs[0]
    assert {tensor.type for tensor in graph.tensors} <= {"INT8", "INT32"}


def dense_model():
    return mlp()


def nested():
    return sequential(tf_keras.Sequential([layers.Input((16,)), dense()], name="backbone"), dense())


def subclassed():
    class Net(tf_keras.Model):
        def __init__(self):
            super().__init__(name="net")
            self.fc = dense()

        def call(self, x):
            return self.fc(x)

    net = Net()
    net(tf.zeros((1, 16)))
    return net


def unfinished():
    return tfmot_asp.prune_low_magnitude(mlp(), permute=False)


def keras3_model():
    return keras.Sequential([keras.layers.Input((16,)), keras.layers.Dense(8)], name="three")


REFUSED = {
    dense_model: "no kernel of 'mlp' is 2:4, so there is nothing to preserve",
    nested: "holds the model 'backbone'; tfmot quantizes no nested models. Connect its layers directly",
    subclassed: "'net' is a subclassed Net; tfmot quantizes functional and sequential models",
    unfinished: r"Layer 'first' has not reached its pattern 2:4",
    keras3_model: r"'three' \(Sequential\) belongs to Keras 3; tfmot quantizes tf_keras models",
    layers.Dense(4).__class__: "quantize_model takes a tf_keras model, got a type",
    lambda: tf_keras.Sequential([dense()], name="later"): "'later' is not built",
    lambda: tfmot_asp.quantize_model(
        pruned_in_place(mlp())
    ): "is quantized already: layer 'quantize_layer.*keep_sparsity",
}


@pytest.mark.parametrize("make", REFUSED, ids=lambda make: make.__name__)
def test_models_that_cannot_be_quantized_are_refused(make):
    thing = make if make is layers.Dense else make()
    with pytest.raises(ValueError, match=REFUSED[make]):
        tfmot_asp.quantize_model(thing)


def test_keep_sparsity_refuses_what_has_nothing_to_keep():
    with pytest.raises(TypeError, match="keep_sparsity takes a Keras model, got a str"):
        tfmot_asp.keep_sparsity("model")
    with pytest.raises(ValueError, match=r"no kernel of 'mlp' is 2:4"):
        tfmot_asp.keep_sparsity(mlp())
    with pytest.raises(
        ValueError, match="'prune_low_magnitude_first' is wrapped for pruning already, and the wrapper keeps"
    ):
        tfmot_asp.keep_sparsity(unfinished())
    with pytest.raises(ValueError, match="'later' is not built"):
        tfmot_asp.keep_sparsity(tf_keras.Sequential([dense()], name="later"))
    three = pruned_in_place(keras3_model())
    assert list(tfmot_asp.keep_sparsity(three).masks) == [three.layers[0].name]


# The other order is refused by every door.


def quantized_model():
    return tfmot_asp.quantize_model(pruned_in_place(mlp()))


def annotated():
    return tfmot.quantization.keras.quantize_annotate_model(mlp())


def fake_quantized():
    return functional(lambda x: dense()(tf.quantization.fake_quant_with_min_max_args(x, -1, 1)))


def asp(model):
    return tfmot_asp.AspOptimizerWrapperV2(tf_keras.optimizers.SGD(), model)


def tfmots_wrapper(model):
    policy = tfmot_asp.PruneForSparseTensorCores()
    return tfmot.sparsity.keras.prune_low_magnitude(model, pruning_policy=policy)


DOORS = [tfmot_asp.prune_low_magnitude, tfmot_asp.prune_trained_model, asp, tfmots_wrapper]


@pytest.mark.parametrize("door", DOORS, ids=lambda door: door.__name__)
@pytest.mark.parametrize("make", [quantized_model, annotated, fake_quantized], ids=lambda make: make.__name__)
def test_quantize_first_and_sparsify_later_is_refused_with_the_reason(door, make):
    model = make()
    before = model.get_weights()
    with pytest.raises(
        ValueError, match=r"is quantized already: layer .*ranges were learnt for the dense weights.*prune it"
    ):
        door(model)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_single_quantized_layers_and_keras_3_are_refused_too():
    layer = quantized_model().get_layer("quant_first")
    for thing in (layer, [dense(), layer]):
        with pytest.raises(ValueError, match="'quant_first' is tfmot's QuantizeWrapperV2"):
            tfmot_asp.prune_low_magnitude(thing)
    three = keras.Sequential([keras.layers.Input((16,)), keras.layers.Dense(8, name="fc")], name="three")
    three.quantize("int8")
    with pytest.raises(ValueError, match="layer 'fc' has Keras' quantization 'int8'"):
        tfmot_asp.prune_trained_model(three)


@pytest.mark.parametrize("name", ["m.keras", "m.h5"])
def test_saved_models_can_be_verified(name, tmp_path):
    model = tfmot_asp.quantize_model(pruned_in_place(mlp()))
    train(model)
    model.save(tmp_path / name)
    report = tfmot_asp.export.verify(tmp_path / name)
    assert [layer.status for layer in report.layers] == ["sparse", "sparse"]
    kernel = model.get_layer("quant_first")._weight_vars[0][0]
    planted = kernel.numpy()
    planted[:4, 3] = np.abs(planted).max()
    kernel.assign(planted)
    model.save(tmp_path / name)
    report = tfmot_asp.export.verify(tmp_path / name)
    assert [(layer.status, layer.violations) for layer in report.layers] == [("broken", 1), ("sparse", 0)]
