"""Of a separable convolution the pointwise kernel is permuted and pruned, by every door; the depthwise one is not."""

import numpy as np
import pytest
import tf_keras

import tfmot_asp
from tfmot_asp import masks
from tfmot_asp.hardware.rule import SparseTensorCoreRule

KINDS = ("Conv2D", "SeparableConv2D")


def model_of() -> tf_keras.Model:
    x = tf_keras.Input((6, 6, 3))
    y = tf_keras.layers.Conv2D(32, 3, activation="relu")(x)
    y = tf_keras.layers.SeparableConv2D(16, 3, name="separable")(y)
    return tf_keras.Model(x, tf_keras.layers.GlobalAveragePooling2D()(y))


def by_wrapper(model):
    return tfmot_asp.prune_low_magnitude(model, pruning_policy=tfmot_asp.PruneForSparseTensorCores(kinds=KINDS))


def by_constraint(model):
    tfmot_asp.prune_trained_model(model, policy=SparseTensorCoreRule(kinds=KINDS))
    return model


def test_the_channels_between_its_kernels_are_permuted():
    model = model_of()
    images = np.random.default_rng(0).random((4, 6, 6, 3)).astype(np.float32)
    before = model.predict(images, verbose=0)
    report = tfmot_asp.permute(model, policy=SparseTensorCoreRule(kinds=KINDS))
    assert [(entry.name, entry.status) for entry in report.layers if entry.kind == "SeparableConv2D"] == [
        ("separable.pointwise_kernel", "permuted")
    ]
    (group,) = report.groups
    assert sorted(group.order) == list(range(32))
    assert group.retained_after > group.retained_before
    np.testing.assert_allclose(model.predict(images, verbose=0), before, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("door", [by_wrapper, by_constraint])
def test_its_pointwise_kernel_is_pruned(door):
    model = model_of()
    pruned = door(model)
    pruned.compile(tf_keras.optimizers.Adam(1e-2), "mse")
    rng = np.random.default_rng(0)
    pruned.fit(rng.random((16, 6, 6, 3)), rng.random((16, 16)), batch_size=4, verbose=0)
    layer = model.get_layer("separable")
    pointwise, depthwise = layer.pointwise_kernel.numpy(), layer.depthwise_kernel.numpy()
    assert masks.violations(pointwise, 2) == 0
    assert np.count_nonzero(pointwise) == pointwise.size / 2
    assert np.count_nonzero(depthwise) == depthwise.size
