"""`min_gain`: what does not gain on the GPU stays dense, through every door, and the reason says the numbers."""

import gc

import keras
import pytest
import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras
from tf_keras import layers

import tfmot_asp
from tfmot_asp.hardware.rule import PruneForSparseTensorCores, SparseTensorCoreRule

GAINS = {"min_gain": 1.05, "gpu": "H100", "batch_size": 256}


def made(tokens=256, library=layers, model=tf_keras.Model):
    """`wide` gains in fp16 with 65,536 rows; `narrow` is called on one row a sample; `odd` has no 2:4 kernel."""
    x = library.Input((tokens, 256))
    y = library.Dense(1024, name="wide")(x)
    y = library.GlobalAveragePooling1D()(y)
    y = library.Dense(24, name="odd")(library.Dense(1024, name="narrow")(y))
    return model(x, y, name="mixed")


def reasons(model, rule):
    rule.estimate_gains(model)
    return {name: rule.why(model.get_layer(name)) for name in ("wide", "narrow", "odd")}


def check(found):
    assert found["wide"] is None
    assert "'narrow' gains x" in found["narrow"]
    assert "for inputs of shape (256, 256, 256)), less than min_gain=1.05" in found["narrow"]
    assert found["odd"].endswith("it gains nothing for min_gain=1.05: 24 outputs, no multiple of 16")


def test_it_agrees_with_the_report():
    model, rule = made(), PruneForSparseTensorCores(**GAINS)
    check(reasons(model, rule))
    report = tfmot_asp.sparsity_report(model, policy=rule, gpu="H100", batch_size=256)
    assert {row.name: row.prunable for row in report.layers} == {"wide": True, "narrow": False, "odd": False}
    rows = {row.name: row for row in report.layers}
    assert f"gains x{rows['narrow'].speedup:.2f} on NVIDIA H100 80GB HBM3 in fp16" in rows["narrow"].reason
    assert rows["wide"].speedup > 1.05 > rows["narrow"].speedup
    assert {**GAINS, "min_gain": 1.05}.items() <= vars(rule).items()


def test_batch_size_precision_and_shapes_decide():
    assert "gains x" in reasons(made(1), PruneForSparseTensorCores(min_gain=1.05))["wide"]
    assert reasons(made(), SparseTensorCoreRule(**{**GAINS, "min_gain": 1}))["narrow"] is None
    assert reasons(made(), PruneForSparseTensorCores(**{**GAINS, "min_gain": 3}))["wide"] is not None
    small = reasons(made(), PruneForSparseTensorCores(**GAINS, precision="int8"))
    assert small["odd"].endswith("24 outputs, no multiple of 32")
    for rule in (PruneForSparseTensorCores(**GAINS), PruneForSparseTensorCores(**GAINS, input_shapes=(None, 256, 256))):
        model = made(None)
        if rule.input_shapes is None:
            with pytest.raises(
                ValueError, match=r"min_gain=1\.05 asks for the sizes.*'mixed'.*the policy takes input_sh"
            ):
                rule.estimate_gains(model)
            rule.estimate_gains(model, (None, 256, 256))
            rule.estimate_gains(model)  # the last shapes are remembered
        check(reasons(model, rule))


def test_keras_3_and_prune_trained_model(caplog):
    model = made(library=keras.layers, model=keras.Model)
    rule = PruneForSparseTensorCores(**GAINS)
    pruned = tfmot_asp.prune_trained_model(model, policy=rule, permute={"effort": "fast"})
    assert list(pruned.masks) == ["wide"]
    check({row.name: row.reason for row in pruned.report.layers})


@pytest.mark.parametrize("door", ["ours", "tfmot", "tf_asp"])
def test_every_door_of_tf_keras_takes_it_and_says_what_stays_dense(door, caplog):
    model, rule = made(), PruneForSparseTensorCores(**GAINS)
    if door == "tf_asp":
        optimizer = tfmot_asp.AspOptimizerWrapperV2(tf_keras.optimizers.SGD(), model, permute=False, policy=rule)
        assert list(optimizer._asp.masks) == ["wide"]
        return
    if door == "ours":
        wrapped = tfmot_asp.prune_low_magnitude(model, policy=rule, permute=False)
    else:
        wrapped = tfmot.sparsity.keras.prune_low_magnitude(model, pruning_policy=rule, sparsity_m_by_n=(2, 4))
    names = [layer.name for layer in wrapped.layers if layer.name.startswith("prune_low_magnitude")]
    assert names == ["prune_low_magnitude_wide"]
    (line,) = [text for text in caplog.messages if "1 of 3 layers with kernels" in text]
    assert "'narrow' gains x" in line
    assert "'odd' has no 2:4 kernel in fp16" in line


def test_nothing_that_gains_is_refused_with_each_reason():
    rule = PruneForSparseTensorCores(min_gain=1.5)
    for door in (tfmot_asp.prune_trained_model, tfmot_asp.prune_low_magnitude, tfmot_asp.permute):
        with pytest.raises(ValueError, match=r"'narrow' gains x[\s\S]*less than min_gain=1\.5"):
            door(made(1), policy=rule)


def test_a_layer_alone_has_no_rows(caplog):
    layer = made().get_layer("wide")
    rule = PruneForSparseTensorCores(**GAINS)
    with pytest.raises(
        ValueError, match=r"depends on what the model calls it on. Call policy\.estimate_gains\(model\)"
    ):
        rule.why(layer)
    assert "has no kernel" in rule.why(layers.ReLU())  # what is dense anyway needs no model
    rule.estimate_gains(made())
    with pytest.raises(ValueError, match="estimate_gains"):
        rule.why(layer)
    assert tfmot_asp.prune_low_magnitude(layer, policy=rule).layer is layer
    assert "layers given one by one are wrapped as asked for: min_gain is a gain within a model" in caplog.messages
    with pytest.raises(ValueError, match="is not built"):
        tfmot_asp.prune_low_magnitude(tf_keras.Sequential([layers.Dense(16)], name="later"), policy=rule)


def test_layers_of_several_products_and_tied_ones():
    x = layers.Input((256, 256))
    shared, unused = layers.Dense(256, name="shared"), layers.Dense(256, name="tied")
    unused.build((None, None, 256))
    few = layers.GlobalAveragePooling1D()(x)
    model = tf_keras.Model(x, [shared(shared(shared(x))), shared(few), unused(few)])
    unused.kernel = shared.kernel
    rule = PruneForSparseTensorCores(**GAINS)
    rule.estimate_gains(model)
    assert rule.why(shared) is None
    assert rule.why(unused) is None  # the kernel is pruned for all its products or for none
    attention = layers.MultiHeadAttention(4, 64)
    model = tf_keras.Model(x, attention(x, x))
    rule.estimate_gains(model)
    assert rule.why(attention) is None


def test_what_no_product_is_found_of():
    class Idle(tf_keras.Model):
        def __init__(self):
            super().__init__(name="idle")
            self.used, self.unused = layers.Dense(16), layers.Dense(16, name="unused")
            self.unused.build((None, 16))

        def call(self, x):
            return self.used(x)

    model = Idle()
    rule = PruneForSparseTensorCores(**GAINS)
    with pytest.raises(ValueError, match=r"min_gain=1\.05 asks for the sizes of the products of model 'idle'"):
        rule.estimate_gains(model)
    model(tf.zeros((1, 16)))
    rule.estimate_gains(model)
    assert "has no product that could be counted when the model is called" in rule.why(model.unused)


def test_a_model_that_is_gone_is_not_mistaken_for_another():
    rule = PruneForSparseTensorCores(**GAINS)
    rule.estimate_gains(made())
    gc.collect()
    assert rule._gains._model() is None
    models = [made() for _ in range(3)]
    for model in models:
        with pytest.raises(ValueError, match="estimate_gains"):
            rule.why(model.get_layer("wide"))
    check(reasons(models[0], rule))
    assert len(rule._gains._seen) == 3
