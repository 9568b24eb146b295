import re
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras
from hypothesis import given
from hypothesis import strategies as st
from tf_keras import layers

import tfmot_asp
from tfmot_asp import masks
from tfmot_asp.hardware.rule import SUPPORTED_KINDS, PruneForSparseTensorCores, SparseTensorCoreRule


def made(layer, *shape):
    layer(tf.zeros(shape))
    return layer


@given(st.integers(1, 70), st.integers(1, 40), st.booleans())
def test_dense_rule(inputs, outputs, padding):
    layer = layers.Dense(outputs, name="d")
    layer.build((None, inputs))
    why = SparseTensorCoreRule(padding=padding).why(layer)
    if inputs % 16 and not padding:
        assert f"Dense 'd' has {inputs} input features; sparse Tensor Cores need a multiple of 16" in why
    elif outputs % 8:
        assert f"Dense 'd' has {outputs} output features; sparse Tensor Cores need a multiple of 8" in why
    else:
        assert why is None


@given(st.integers(1, 40), st.integers(1, 20), st.booleans())
def test_conv2d_rule_knows_no_padding(inputs, outputs, padding):
    layer = layers.Conv2D(outputs, 1, name="c")
    layer.build((None, 4, 4, inputs))
    assert SparseTensorCoreRule(padding=padding).allows(layer) == (inputs % 16 == 0 and outputs % 8 == 0)


REFUSED = {
    "has 2 groups": lambda: made(layers.Conv2D(16, 1, groups=2, name="x"), 1, 4, 4, 32),
    "depthwise kernel, which sums over no channels": lambda: made(layers.DepthwiseConv2D(1, name="x"), 1, 4, 4, 16),
    "is a transposed convolution": lambda: made(layers.Conv2DTranspose(16, 1, name="x"), 1, 4, 4, 16),
    "Conv3D is not in kinds=": lambda: made(layers.Conv3D(16, 1, name="x"), 1, 2, 2, 2, 16),
    "is not built": lambda: layers.Dense(16, name="x"),
    "has no kernel": lambda: made(layers.ReLU(name="x"), 1, 16),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_refused_layers_say_why_and_who(reason):
    why = SparseTensorCoreRule().why(REFUSED[reason]())
    assert reason in why
    assert "'x'" in why


DEFAULT = {
    "Dense": lambda: made(layers.Dense(16), 1, 16),
    "Conv1D": lambda: made(layers.Conv1D(16, 1), 1, 4, 16),
    "Conv2D": lambda: made(layers.Conv2D(16, 1), 1, 4, 4, 16),
    "EinsumDense": lambda: made(layers.EinsumDense("abc,cd->abd", (None, 16)), 1, 4, 16),
    "MultiHeadAttention": lambda: attention(),
    "SeparableConv1D": lambda: made(layers.SeparableConv1D(16, 1), 1, 4, 16),
    "SeparableConv2D": lambda: made(layers.SeparableConv2D(16, 1), 1, 4, 4, 16),
}


def attention():
    layer = layers.MultiHeadAttention(2, 8)
    layer(tf.zeros((1, 3, 16)), tf.zeros((1, 3, 16)))
    return layer


@pytest.mark.parametrize("kind", DEFAULT)
def test_by_default_every_kind_that_sparse_tensor_cores_run_is_pruned(kind):
    """tfmot's own wrapper, and the door that is as TF-ASP's, know two of them."""
    layer = DEFAULT[kind]()
    policy = PruneForSparseTensorCores()
    assert policy.why(layer) is None
    assert policy.allows(layer)
    assert policy.allow_pruning(layer) == (kind in ("Dense", "Conv2D"))
    assert PruneForSparseTensorCores(kinds=SUPPORTED_KINDS).allow_pruning(layer)


def mixed_model():
    x = layers.Input((4, 16))
    y = layers.Conv1D(16, 1, name="conv1d")(x)
    y = layers.MultiHeadAttention(2, 8, name="attention")(y, y)
    y = layers.EinsumDense("abc,cd->abd", (4, 16), name="einsum")(y)
    y = layers.Reshape((2, 2, 16))(y)
    y = layers.SeparableConv2D(16, 1, name="separable")(layers.Conv2D(16, 1, name="conv2d")(y))
    return tf_keras.Model(x, layers.Dense(8, name="dense")(layers.Flatten()(y)), name="mixed")


def test_each_door_prunes_the_kinds_that_it_can(caplog):
    every = {"conv1d", "attention", "einsum", "separable", "conv2d", "dense"}

    def wrapped(model):
        return {layer.name.removeprefix("prune_low_magnitude_") for layer in model.layers if hasattr(layer, "layer")}

    assert wrapped(tfmot_asp.prune_low_magnitude(mixed_model(), permute=False)) == every
    pruned = tfmot_asp.prune_trained_model(mixed_model(), permute=False)
    projections = {"query", "key", "value", "attention_output"}
    assert {name.split(".")[0] for name in pruned.masks} == every - {"attention"} | projections
    asp = tfmot_asp.AspOptimizerWrapperV2(tf_keras.optimizers.SGD(), mixed_model(), permute=False)
    assert set(asp._asp.masks) == {"conv2d", "dense"}
    model = tfmot.sparsity.keras.prune_low_magnitude(
        mixed_model(), pruning_policy=PruneForSparseTensorCores(), sparsity_m_by_n=(2, 4)
    )
    assert wrapped(model) == {"conv2d", "dense"}
    assert "2 of 6 layers with kernels in model 'mixed' are pruned" in caplog.text
    assert re.search(
        r"'attention'.*: each is beyond tfmot's own wrapper; tfmot_asp.prune_low_magnitude prunes it", caplog.text
    )
    only = tf_keras.Sequential([layers.Input((4, 16)), layers.Conv1D(16, 1)], name="only")
    with pytest.raises(ValueError, match=r"(?s)'only' has no layer to prune.*tfmot_asp.prune_low_magnitude prunes it"):
        tfmot.sparsity.keras.prune_low_magnitude(only, pruning_policy=PruneForSparseTensorCores())
    assert wrapped(tfmot_asp.prune_low_magnitude(only, permute=False))


def test_the_stem_message_has_the_numbers():
    stem = made(layers.Conv2D(16, 3, name="stem"), 1, 8, 8, 3)
    assert PruneForSparseTensorCores().why(stem) == (
        "Conv2D 'stem' has 3 input channels; sparse Tensor Cores need a multiple of 16"
    )


def test_kinds_are_widened_by_name():
    rule = SparseTensorCoreRule(kinds=SUPPORTED_KINDS)
    attention = layers.MultiHeadAttention(2, 8)
    attention(tf.zeros((1, 3, 16)), tf.zeros((1, 3, 16)))
    assert rule.allows(attention)
    assert rule.allows(made(layers.Conv1D(16, 1), 1, 4, 16))
    assert rule.allows(made(layers.Conv3D(16, 1), 1, 2, 2, 2, 16))
    assert rule.allows(made(layers.SeparableConv1D(16, 3), 1, 4, 16))
    assert rule.allows(made(layers.SeparableConv2D(16, 3, depth_multiplier=2), 1, 4, 4, 8))
    assert "24 input channels" in rule.why(made(layers.SeparableConv2D(16, 3), 1, 4, 4, 24))
    assert rule.allows(made(layers.EinsumDense("abc,cde->abde", (None, 2, 4)), 1, 3, 16))
    narrow = layers.MultiHeadAttention(2, 5)
    narrow(tf.zeros((1, 3, 16)), tf.zeros((1, 3, 16)))
    assert "10 output channels (_query_dense.kernel)" in rule.why(narrow)
    batched = made(layers.EinsumDense("bhd,hd->bhd", (3, 16)), 2, 3, 16)
    assert "contracts no channels" in rule.why(batched)


def test_layers_are_kept_out_by_object_by_model_and_by_callable():
    first, second, third = (layers.Dense(16, name=name) for name in "abc")
    inner = tf_keras.Sequential([layers.Input((16,)), second], name="inner")
    model = tf_keras.Sequential([layers.Input((16,)), first, inner, third])
    for skip in ([first, inner], (layer for layer in (first, inner)), lambda layer: layer.name in "ab"):
        rule = SparseTensorCoreRule(skip=skip)
        assert [rule.allows(layer) for layer in (first, second, third)] == [False, False, True]
        assert rule.why(first) == "Dense 'a' is kept dense: skip asks for it"
    assert SparseTensorCoreRule(skip=model).why(third) is not None
    assert not SparseTensorCoreRule(skip=first).allows(first)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"skip": "head"}, TypeError, r"for a name, give model.get_layer\('head'\)"),
        ({"skip": [3]}, TypeError, "layer objects and callables of a layer, got 3"),
        ({"kinds": ("Dense", "LSTM")}, ValueError, "kinds must be taken from"),
        ({"kinds": ()}, ValueError, "kinds must be taken from"),
        ({"padding": 1}, TypeError, "padding must be True or False"),
        ({"min_channels": "256"}, TypeError, "min_channels must be a number of channels such as 256"),
        ({"min_channels": 256.0}, TypeError, "min_channels must be a number of channels"),
        ({"min_channels": True}, TypeError, "min_channels must be a number of channels"),
        ({"min_channels": 0}, ValueError, "min_channels must be at least 1"),
        ({"min_gain": "1.05"}, TypeError, "min_gain must be a factor such as 1.05"),
        ({"min_gain": 0.9}, ValueError, "min_gain must be 1 or more"),
        ({"min_gain": 1.05, "gpu": "A100"}, ValueError, "no times are known for gpu='A100'"),
        ({"min_gain": 1.05, "precision": "fp32"}, ValueError, "precision must be one of"),
        ({"min_gain": 1.05, "batch_size": 0}, ValueError, "batch_size must be a number of samples"),
        ({"gpu": "H100"}, ValueError, "gpu='H100' is where min_gain is a gain: give min_gain too"),
    ],
)
def test_bad_options_are_refused(options, error, match):
    with pytest.raises(error, match=match):
        PruneForSparseTensorCores(**options)


@given(
    st.sampled_from([layers.Dense, layers.Conv2D]),
    st.integers(1, 6),
    st.integers(1, 12),
    st.one_of(st.none(), st.integers(1, 110)),
)
def test_min_channels_keeps_small_kernels_dense(kind, inputs, outputs, least):
    inputs, outputs = 16 * inputs, 8 * outputs  # aligned, so that nothing else keeps them dense
    layer = kind(outputs, name="x") if kind is layers.Dense else kind(outputs, 3, name="x")
    layer.build((None, inputs) if kind is layers.Dense else (None, 4, 4, inputs))
    why = PruneForSparseTensorCores(min_channels=least).why(layer)
    noun = "features" if kind is layers.Dense else "channels"
    if least is None or min(inputs, outputs) >= least:
        assert why is None
    elif inputs < least:
        assert why == f"{kind.__name__} 'x' has {inputs} input {noun}, fewer than min_channels={least}"
    else:
        assert why == f"{kind.__name__} 'x' has {outputs} output {noun}, fewer than min_channels={least}"


def test_min_channels_looks_at_each_projection_and_takes_numpy_integers():
    rule = SparseTensorCoreRule(kinds=SUPPORTED_KINDS, min_channels=np.int64(32))
    attention = layers.MultiHeadAttention(2, 8, name="attention")  # 16 channels for all heads together
    attention(tf.zeros((1, 3, 32)), tf.zeros((1, 3, 32)))
    assert "16 output channels (_query_dense.kernel), fewer than min_channels=32" in rule.why(attention)
    assert "min_channels=32" in repr(rule)
    assert "min_channels=64" in repr(PruneForSparseTensorCores(min_channels=64))
    model = tf_keras.Sequential([layers.Input((64,)), layers.Dense(64, name="wide"), layers.Dense(16, name="narrow")])
    pruned = tfmot.sparsity.keras.prune_low_magnitude(
        model, pruning_policy=PruneForSparseTensorCores(min_channels=64), sparsity_m_by_n=(2, 4)
    )
    assert [layer.name for layer in pruned.layers] == ["prune_low_magnitude_wide", "narrow"]


def test_quantized_and_lora_layers_of_keras_3_are_refused():
    keras3 = pytest.importorskip("keras", minversion="3")
    dense = made(keras3.layers.Dense(16, name="x"), 1, 16)
    assert SparseTensorCoreRule().allows(dense)
    dense.enable_lora(2)
    assert "has LoRA enabled" in SparseTensorCoreRule().why(dense)
    quantized = made(keras3.layers.Dense(16, name="x"), 1, 16)
    quantized.quantize("int8")
    assert "dtype int8; sparsify in floating point, then quantize" in SparseTensorCoreRule().why(quantized)


def small_model():
    return tf_keras.Sequential(
        [
            layers.Input((8, 8, 3)),
            layers.Conv2D(16, 3, name="stem"),
            layers.Conv2D(32, 3, name="body"),
            layers.Flatten(),
            layers.Dense(16, name="fc"),
            layers.Dense(10, name="head"),
        ]
    )


@pytest.mark.parametrize("m_by_n", [None, (2, 4)])
def test_tfmots_own_function_takes_the_policy(m_by_n):
    model = small_model()
    pruned = tfmot.sparsity.keras.prune_low_magnitude(
        model,
        pruning_schedule=tfmot.sparsity.keras.ConstantSparsity(0.5, 0, frequency=1),
        pruning_policy=PruneForSparseTensorCores(),
        sparsity_m_by_n=m_by_n,
    )
    assert [layer.name for layer in pruned.layers if layer.name.startswith("prune_low_magnitude")] == [
        "prune_low_magnitude_body",
        "prune_low_magnitude_fc",
    ]
    pruned.compile("sgd", "mse")
    callback = tfmot.sparsity.keras.UpdatePruningStep()
    pruned.fit(tf.random.normal((8, 8, 8, 3)), tf.zeros((8, 10)), batch_size=4, verbose=0, callbacks=[callback])
    body = model.get_layer("body").kernel.numpy()
    assert (body == 0).mean() == pytest.approx(0.5, abs=0.01)
    if m_by_n:
        assert masks.violations(body, 2) == 0
        assert masks.violations(model.get_layer("fc").kernel.numpy(), 0) == 0
    assert (model.get_layer("stem").kernel.numpy() != 0).all()


def test_the_rule_leaves_tfmot_and_keras_alone():
    # Importing tfmot switches tf.keras to Keras 2 for the whole process.
    code = """
import os, sys
os.environ.pop("TF_USE_LEGACY_KERAS", None)
import keras, numpy as np, tfmot_asp
model = keras.Sequential([keras.Input((32,)), keras.layers.Dense(16), keras.layers.Dense(3, name="head")])
policy = tfmot_asp.PruneForSparseTensorCores()
assert policy.why(model.layers[0]) is None and "'head'" in policy.why(model.layers[1])
policy.check_model(model)
policy.ensure_model_supports_pruning(model)
tfmot_asp.prune_trained_model(model, policy=policy, permute=False)
print("tensorflow_model_optimization" in sys.modules, os.environ.get("TF_USE_LEGACY_KERAS"))
"""
    pytest.importorskip("keras", minversion="3")
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert result.stdout.split() == ["False", "None"], result.stderr


def test_both_names_are_one_class():
    assert SparseTensorCoreRule is PruneForSparseTensorCores is tfmot_asp.SparseTensorCoreRule
    assert PruneForSparseTensorCores(padding=True) == SparseTensorCoreRule(padding=True)


def test_every_door_takes_a_policy_that_only_says_why():
    class NotTheHead:
        def why(self, layer):
            return "it is the head" if layer.name == "head" else None

    def model():
        return tf_keras.Sequential(
            [layers.Input((16,)), layers.Dense(20, name="a"), layers.ReLU(), layers.Dense(8, name="head")]
        )

    policy = NotTheHead()
    for name in ("policy", "pruning_policy"):
        wrapped = tfmot_asp.prune_low_magnitude(model(), permute=False, **{name: policy})
        assert [layer.name.startswith("prune_low_magnitude") for layer in wrapped.layers] == [True, False, False]
    assert list(tfmot_asp.prune_trained_model(model(), policy=policy, permute=False).masks) == ["a"]
    assert [entry.status for entry in tfmot_asp.permute(model(), policy=policy, effort="fast").layers][1] == "dense"
    assert [row.reason for row in tfmot_asp.sparsity_report(model(), policy=policy).layers] == [None, "it is the head"]
    asp = tfmot_asp.AspOptimizerWrapperV2(tf_keras.optimizers.SGD(), model(), permute=False, policy=policy)
    assert list(asp._asp.masks) == ["a"]
    with pytest.raises(ValueError, match="padding=True is an option of the default policy"):
        tfmot_asp.AspOptimizerWrapperV2(tf_keras.optimizers.SGD(), model(), padding=True, policy=policy)
    with pytest.raises(TypeError, match="with sparsity_m_by_n=None the policy must be a tfmot PruningPolicy"):
        tfmot_asp.prune_low_magnitude(model(), policy=policy, sparsity_m_by_n=None)
    with pytest.raises(TypeError, match="policy must have a method why"):
        tfmot_asp.prune_low_magnitude(model(), policy="all", permute=False)


def test_a_layer_that_tfmot_cannot_wrap_is_named_with_the_way_out():
    model = tf_keras.Sequential([layers.Input((4, 16)), layers.TimeDistributed(layers.Dense(16), name="td")])
    with pytest.raises(
        ValueError, match=r"(?s)'td' of type TimeDistributed.*tfmot_asp.prune_low_magnitude, which does"
    ):
        tfmot.sparsity.keras.prune_low_magnitude(model, pruning_policy=PruneForSparseTensorCores())


def test_no_prunable_layer_lists_the_reasons_and_shortens_them():
    model = tf_keras.Sequential([layers.Input((3,)), *[layers.Dense(5, name=f"d{i}") for i in range(11)]], name="tiny")
    with pytest.raises(ValueError, match="Model 'tiny' has no layer to prune") as caught:
        PruneForSparseTensorCores().ensure_model_supports_pruning(model)
    lines = str(caught.value).splitlines()
    assert lines[1].startswith("  - Dense 'd0' has 3 input features")
    assert lines[-1] == "  - and 3 more (sparsity_report(model) lists all)"
    assert len(lines) == 10


def test_models_that_cannot_be_wrapped_are_refused():
    class Net(tf_keras.Model):
        def __init__(self):
            super().__init__(name="net")
            self.fc = layers.Dense(16)

        def call(self, x):
            return self.fc(x)

    net = Net()
    net(tf.zeros((1, 16)))
    policy = PruneForSparseTensorCores()
    with pytest.raises(ValueError, match=r"Model .net. is a subclassed Net.*prune_trained_model"):
        policy.ensure_model_supports_pruning(net)
    outer = tf_keras.Sequential([layers.Input((16,)), net], name="outer")
    with pytest.raises(ValueError, match="Model 'net', inside 'outer', is a subclassed Net"):
        policy.ensure_model_supports_pruning(outer)
    unbuilt = tf_keras.Sequential([layers.Dense(16)], name="later")
    with pytest.raises(ValueError, match="'later' is not built"):
        policy.ensure_model_supports_pruning(unbuilt)
