"""The function that exporters start from computes what the model computes, and is as plain as it says."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tf_keras import layers

from tests.permutation.harness import randomise
from tests.permutation.random_models import random_model
from tests.small_models import convnet
from tfmot_asp import masks
from tfmot_asp.export.lowering.inference import inference_function, outputs_differ, serving_function
from tfmot_asp.graph.compare import TOLERANCES
from tfmot_asp.graph.flatten import trace_function
from tfmot_asp.graph.gemms import find_gemms

ROUNDING = 2e-5


def randomized(model, seed=0):
    """The model with weights that leave no branch invisible, and statistics that batch norm does not get by default."""
    generator = np.random.default_rng(seed)
    for variable in model.variables:
        if variable.dtype.is_floating:
            positive = "variance" in variable.name or "gamma" in variable.name
            values = generator.uniform(0.3, 2, variable.shape) if positive else generator.normal(size=variable.shape)
            variable.assign(
                tf.cast(values / (1 if positive else max(1, np.prod(variable.shape[:-1])) ** 0.5), variable.dtype)
            )
    return model


def functional(build, shape, name=None, **options):
    x = layers.Input(shape, name="x", **options)
    return randomized(tf_keras.Model(x, build(x), name=name))


def types(function):
    return [op.type for op in function.graph.get_operations() if op.type not in ("Const", "Placeholder", "Identity")]


def check(model, *batches, tolerance=ROUNDING, **options):
    """Exports a model and compares with the model itself, on batch sizes that were not traced."""
    function = inference_function(model, **options)
    generator = np.random.default_rng(1)
    if any(getattr(layer, "groups", 1) > 1 for layer in model.layers):
        # TensorFlow's CPU cannot run a grouped convolution that it has fused with its bias.
        assert outputs_differ(serving_function(model), function, tolerance) is None
        return function
    for batch in batches or (1, 5):
        inputs = {
            spec.name: tf.cast(generator.normal(size=[batch, *spec.shape[1:]]), spec.dtype)
            for spec in function.structured_input_signature[0]
        }
        compare(model, function, inputs, tolerance)
    return function


def compare(model, function, inputs, tolerance=ROUNDING):
    expected = serving_function(model)(**inputs)
    got = function(**inputs)
    assert sorted(got) == sorted(expected)
    for name, value in expected.items():
        value, other = np.asarray(value, np.float64), np.asarray(got[name], np.float64)
        np.testing.assert_allclose(other, value, rtol=0, atol=tolerance * np.abs(value).max(), err_msg=name)


def keep(layer):
    return lambda x: layers.BatchNormalization()(layer(x))


FOLDS = {
    "dense": (keep(layers.Dense(6)), (5,)),
    "dense, no bias": (keep(layers.Dense(6, use_bias=False)), (5,)),
    "dense on a sequence": (keep(layers.Dense(6)), (7, 5)),
    "dense on an image": (keep(layers.Dense(6)), (4, 3, 5)),
    "einsum": (keep(layers.EinsumDense("abc,cd->abd", (None, 6), bias_axes="d")), (7, 5)),
    "conv 1d": (keep(layers.Conv1D(6, 3, padding="causal", dilation_rate=2)), (9, 5)),
    "conv 2d": (keep(layers.Conv2D(6, 3, 2, padding="same")), (9, 8, 5)),
    "conv 2d, dilated": (keep(layers.Conv2D(6, 3, dilation_rate=2)), (9, 8, 5)),
    "conv 2d, grouped": (keep(layers.Conv2D(6, 3, groups=3)), (9, 8, 12)),
    "conv 3d": (keep(layers.Conv3D(6, 3)), (5, 5, 4, 3)),
    "depthwise": (keep(layers.DepthwiseConv2D(3, depth_multiplier=2)), (9, 8, 5)),
    "separable": (keep(layers.SeparableConv2D(6, 3)), (9, 8, 5)),
    "transposed": (keep(layers.Conv2DTranspose(6, 3, 2)), (5, 4, 7)),
    "without scale": (lambda x: layers.BatchNormalization(scale=False)(layers.Conv2D(6, 3)(x)), (9, 8, 5)),
    "without shift": (lambda x: layers.BatchNormalization(center=False)(layers.Dense(6)(x)), (5,)),
    "two of them": (lambda x: layers.BatchNormalization()(keep(layers.Conv2D(6, 3))(x)), (9, 8, 5)),
    "a rescaling": (lambda x: layers.Rescaling(1 / 3, 2.0)(layers.Dense(6)(x)), (5,)),
    "dropout between": (lambda x: layers.BatchNormalization()(layers.Dropout(0.5)(layers.Dense(6)(x))), (5,)),
    "time distributed": (lambda x: layers.TimeDistributed(layers.BatchNormalization())(layers.Dense(6)(x)), (7, 5)),
}
SCALES = {"FusedBatchNormV3", "Mul", "AddV2", "Sub", "Rsqrt", "Einsum", "Shape"}


@pytest.mark.parametrize("case", FOLDS)
def test_scales_after_a_product_are_folded_into_it(case):
    build, shape = FOLDS[case]
    model = functional(build, shape)
    function = check(model)
    left = SCALES & set(types(function))
    # The shape of a transposed convolution's output is computed from its input's.
    assert left <= ({"Mul", "AddV2", "Shape"} if case == "transposed" else set())
    plain = check(model, fold_batch_norm=False)
    assert SCALES & set(types(plain))


def twice(x):
    y = layers.Conv2D(6, 3, name="conv")(x)
    return layers.Concatenate()([layers.BatchNormalization()(y), y])


def also_an_output(x):
    y = layers.Conv2D(6, 3)(x)
    return [layers.BatchNormalization()(y), y]


STAYS = {
    "another reader": twice,
    "an output": also_an_output,
    "an activation between": lambda x: layers.BatchNormalization()(layers.Conv2D(6, 3, activation="relu")(x)),
    "a pooling between": lambda x: layers.BatchNormalization()(layers.MaxPooling2D()(layers.Conv2D(6, 3)(x))),
    "before the product": lambda x: layers.Conv2D(6, 3, padding="same")(layers.BatchNormalization()(x)),
    "on rows": lambda x: layers.BatchNormalization(axis=1)(layers.Conv2D(6, 3)(x)),
}


@pytest.mark.parametrize("case", STAYS)
def test_what_cannot_be_folded_stays(case):
    function = check(functional(STAYS[case], (9, 8, 5)))
    assert {"FusedBatchNormV3", "Mul"} & set(types(function))


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e38])
def test_numbers_out_of_range_are_not_folded(value):
    model = functional(keep(layers.Conv2D(6, 3)), (9, 8, 5))
    norm = model.layers[-1]
    norm.gamma.assign([value, 1, 1, 1, 1, 1])
    norm.moving_variance.assign([1e-3] + [1] * 5)
    function = inference_function(model)
    assert "FusedBatchNormV3" in types(function)
    x = tf.random.normal((2, 9, 8, 5))
    np.testing.assert_array_equal(
        np.isfinite(next(iter(function(x).values()))), np.isfinite(model(x, training=False)), strict=True
    )


def test_a_shared_layer_keeps_one_kernel_for_one_scale_and_gets_two_for_two():
    shared, norm = layers.Dense(6, name="shared"), layers.BatchNormalization()

    def same(x):
        return layers.Add()([norm(shared(x)), norm(shared(layers.ReLU()(x)))])

    def different(x):
        return layers.Add()([layers.BatchNormalization()(shared(x)), layers.BatchNormalization()(shared(-x))])

    assert [g.weight_name for g in find_gemms(trace_function(check(functional(same, (5,)))))].count(
        "shared/kernel"
    ) <= 1
    assert len(find_gemms(trace_function(check(functional(different, (5,)))))) == 2


EQUATIONS = (
    ("abc,cd->abd", (7, 8), (8, 6)),
    ("abc,cde->abde", (7, 8), (8, 3, 2)),
    ("abcd,cde->abe", (7, 4, 2), (4, 2, 6)),
    ("abcd,dce->abe", (7, 4, 2), (2, 4, 6)),
    ("abc,dc->adb", (7, 8), (6, 8)),
    ("abc,bd->acd", (8, 7), (8, 6)),
    ("...x,xy->...y", (3, 7, 8), (8, 6)),
    ("ab,bcd->adc", (8,), (8, 3, 2)),
    ("a...c,cd->a...d", (3, 7, 8), (8, 6)),
)


class Einsum(layers.Layer):
    def __init__(self, equation, shape, swap=False):
        super().__init__()
        self.equation, self.kernel_shape, self.swap = equation, shape, swap

    def build(self, _):
        self.kernel = self.add_weight("kernel", self.kernel_shape)

    def call(self, x):
        if self.swap:
            (data, kernel), output = self.equation.split("->")[0].split(","), self.equation.split("->")[1]
            return tf.einsum(f"{kernel},{data}->{output}", self.kernel, x)
        return tf.einsum(self.equation, x, self.kernel)


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize(("equation", "data", "kernel"), EQUATIONS)
def test_einsums_with_a_constant_kernel_become_products_and_keep_their_pattern(equation, data, kernel, swap):
    model = functional(Einsum(equation, kernel, swap), data)
    variable = model.weights[0]
    letters = equation.split("->")[0].split(",")
    reduced = tuple(i for i, c in enumerate(letters[1]) if c in letters[0] and c not in equation.split("->")[1])
    variable.assign(variable * masks.m_by_n_mask(np.abs(variable.numpy()), reduced))
    function = check(model)
    assert "Einsum" not in types(function)
    (gemm,) = find_gemms(trace_function(function))
    assert gemm.weight.ndim == 2
    assert gemm.type == "MatMul"
    assert masks.violations(gemm.weight, gemm.reduction_axes) == 0
    assert np.count_nonzero(gemm.weight) == np.count_nonzero(variable.numpy())


@pytest.mark.parametrize("equation", ["abc,acd->abd", "abc,bcd->abd", "abb,bd->ad", "abc,cd->ad"])
def test_einsums_that_are_no_plain_product_stay(equation):
    kernel = {"abc,acd->abd": (1, 5, 3), "abc,bcd->abd": (5, 5, 3)}.get(equation, (5, 3))
    function = check(functional(Einsum(equation, kernel), (5, 5)), 1)
    assert "Einsum" in types(function)


def test_attention_reads_2d_kernels_at_any_batch_and_length():
    def build(x):
        return layers.MultiHeadAttention(2, 8)(x, x)

    fixed = check(functional(build, (7, 16)))
    assert "Shape" not in types(fixed)
    assert [gemm.weight.shape for gemm in find_gemms(trace_function(fixed))] == [(16, 16)] * 4
    model = functional(build, (None, 16))
    function = inference_function(model)
    for batch, length in ((1, 3), (4, 11)):
        compare(model, function, {"x": tf.random.normal((batch, length, 16))})
    assert {gemm.type for gemm in find_gemms(trace_function(function))} == {"MatMul"}


def test_open_image_sizes():
    model = functional(keep(layers.Conv2D(6, 3)), (None, None, 3))
    function = inference_function(model)
    assert types(function) == ["Conv2D", "BiasAdd"]
    for size in ((9, 8), (33, 5)):
        compare(model, function, {"x": tf.random.normal((2, *size, 3))})


def test_reshapes_are_constant_and_the_batch_stays_open():
    model = functional(lambda x: layers.Dense(4)(layers.Reshape((3, -1))(layers.Dense(6)(x))), (7, 5))
    function = check(model, 1, 2, 3, 7)
    assert "Shape" not in types(function)
    assert [output.shape.as_list() for output in function.outputs] == [[None, 3, 4]]


@pytest.mark.parametrize("batch_size", [None, 3])
def test_recurrent_layers_and_their_state(batch_size):
    model = functional(lambda x: layers.LSTM(4)(layers.GRU(5, return_sequences=True)(x)), (6, 5))
    check(model, 3, batch_size=batch_size)


def test_mixed_precision():
    model = functional(
        lambda x: layers.BatchNormalization(dtype="mixed_float16")(layers.Conv2D(16, 3, dtype="mixed_float16")(x)),
        (9, 8, 5),
    )
    function = check(model, tolerance=TOLERANCES["rewritten"]["float16"])
    (gemm,) = find_gemms(trace_function(function))
    assert gemm.weight.dtype == np.float16


def test_fake_quantization_stays():
    import tensorflow_model_optimization as tfmot

    model = tfmot.quantization.keras.quantize_model(functional(lambda x: layers.ReLU()(layers.Dense(8)(x)), (16,)))

    def count(function):
        return sum(kind.startswith("FakeQuant") for kind in types(function))

    assert count(inference_function(model)) == count(serving_function(model)) > 0


def test_weights_in_half_precision_are_cast_where_they_are_read():
    model = functional(keep(layers.Conv2D(6, 3)), (9, 8, 5))
    function = check(model, tolerance=2e-3, weights_dtype=tf.float16)
    assert types(function) == ["Cast", "Conv2D", "BiasAdd"]
    model.layers[1].kernel.assign_add(1e6 * tf.ones((3, 3, 5, 6)))
    with pytest.raises(ValueError, match=r"cannot be exported in float16: .*kernel has weights up to .*too large"):
        inference_function(model, weights_dtype=tf.float16)
    check(model, tolerance=2e-2, weights_dtype=tf.bfloat16)


def test_weights_of_double_precision_models_are_narrowed_too():
    x = layers.Input((16,), name="x", dtype="float64")
    model = randomized(tf_keras.Model(x, layers.Dense(8, dtype="float64")(x)))
    function = check(model, tolerance=2e-3, weights_dtype=tf.float16)
    assert types(function) == ["Cast", "MatMul", "BiasAdd"]
    assert function.outputs[0].dtype == tf.float64


def test_a_model_that_reads_tables_cannot_be_frozen():
    word = layers.Input((), dtype="string", name="word")
    table = layers.StringLookup(vocabulary=["a", "b"], output_mode="one_hot")
    model = tf_keras.Model(word, layers.Dense(8)(table(word)), name="words")
    with pytest.raises(ValueError, match=r"'words' reads .*lookup.*, a table that cannot be frozen"):
        inference_function(model)


def test_a_rewrite_that_changes_outputs_is_not_used(monkeypatch, caplog):
    from tfmot_asp.export.lowering import folding

    correct = folding._batch_norm

    def wrong(*args):
        scale, shift = correct(*args)
        return scale * 1.01, shift

    monkeypatch.setattr(folding, "_batch_norm", wrong)
    model = functional(keep(layers.Conv2D(6, 3)), (9, 8, 5), name="net")
    function = check(model)
    assert "FusedBatchNormV3" in types(function)
    assert "net is exported without folding batch norm: output 'batch_normalization" in caplog.text


def test_the_model_stays_as_it_was():
    model = convnet()
    before = [weight.copy() for weight in model.get_weights()]
    inference_function(model, weights_dtype=tf.float16)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


QUIET = {"suppress_health_check": list(HealthCheck), "deadline": None, "print_blob": True}


def _exports_the_same(made):
    model, _ = made  # in double precision, but for ops that know single precision only
    randomise(model)
    assert outputs_differ(serving_function(model), inference_function(model), 1e-5) is None
    tf_keras.backend.clear_session()


@given(st.data())
@settings(max_examples=15, derandomize=True, **QUIET)
def test_random_models(data):
    _exports_the_same(random_model(data.draw))


@pytest.mark.slow
@given(st.data())
@settings(max_examples=300, **QUIET)
def test_three_hundred_random_models(data):
    _exports_the_same(random_model(data.draw, steps=14))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ResNet50", "MobileNetV3Small", "EfficientNetB0", "ConvNeXtTiny", "NASNetMobile"])
def test_applications(name):
    model = randomized(getattr(tf_keras.applications, name)(weights=None, classes=16))
    function = inference_function(model)
    assert "FusedBatchNormV3" not in types(function) or name == "NASNetMobile"
    assert outputs_differ(serving_function(model), function, 1e-3) is None


@pytest.mark.parametrize("op_type", ["Conv", "BatchMatMulV2"])
def test_scales_fold_into_every_kind_of_product(op_type):
    class Layer(layers.Layer):
        def build(self, shape):
            self.kernel = self.add_weight("kernel", (3, 3, 8, 6) if op_type == "Conv" else (8, 6))

        def call(self, x):
            if op_type == "Conv":
                return tf.raw_ops.Conv(input=x, filter=self.kernel, strides=[1, 1, 1, 1], padding="SAME")
            return tf.matmul(x, self.kernel)

    shape = (5, 5, 8) if op_type == "Conv" else (5, 8)
    function = check(functional(lambda x: layers.BatchNormalization()(Layer()(x)), shape))
    assert types(function) == [op_type, "BiasAdd"]


@pytest.mark.parametrize(
    "layer", [layers.LSTM(4, stateful=True), layers.Bidirectional(layers.SimpleRNN(4, stateful=True))]
)
def test_stateful_layers_are_refused_by_name(layer):
    model = tf_keras.Sequential([layers.Input((8, 16), batch_size=2), layer, layers.Dense(16)])
    with pytest.raises(ValueError, match=r"Layer '.*' is stateful: .*stateful=False"):
        serving_function(model)
