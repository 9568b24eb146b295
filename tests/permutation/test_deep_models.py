"""Models of many layers: no step of planning recurses through them, or looks at all of them for each."""

import sys

import numpy as np
import pytest
import tf_keras

import tfmot_asp
from tests.permutation.harness import EveryKernel
from tfmot_asp.permutation import plan_model

C = 16


class Stack(tf_keras.Model):
    def __init__(self, depth):
        super().__init__()
        self.stack = [tf_keras.layers.Dense(C, activation="relu") for _ in range(depth)]

    def call(self, x):
        for layer in self.stack:
            x = layer(x)
        return x


def subclassed(depth):
    model = Stack(depth)
    model.build((None, C))
    return model


def functional(depth):
    x = y = tf_keras.Input((C,))
    for _ in range(depth):
        y = tf_keras.layers.Dense(C, activation="relu")(y)
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(limit + 2 * depth)  # Keras walks from the output to the input, a call in a call
    try:
        return tf_keras.Model(x, y)
    finally:
        sys.setrecursionlimit(limit)


def check_plan(build, depth):
    plan = plan_model(build(depth), policy=EveryKernel(), input_shapes=(None, C)).plan
    assert len(plan.kernels) == depth
    assert sum(moves == C for moves in plan.movable) == depth - 1
    assert len(plan.groups) == depth - 1


@pytest.mark.parametrize("build", [subclassed, functional])
def test_200_layers_are_planned(build):
    check_plan(build, 200)


@pytest.mark.slow
@pytest.mark.parametrize("build", [subclassed, functional])
def test_3000_layers_are_planned(build):
    check_plan(build, 3000)


@pytest.mark.slow
def test_all_kernels_of_1500_layers_but_the_first_move():
    model = subclassed(1500)
    generator = np.random.default_rng(0)
    for layer in model.stack:  # too little magnitude dies out on the way, too much overflows
        layer.kernel.assign(np.abs(generator.normal(size=(C, C))) / C)
    x = generator.uniform(size=(4, C)).astype(np.float32)
    before, kernels = model(x).numpy(), [layer.kernel.numpy() for layer in model.stack]
    report = tfmot_asp.permute(model, policy=EveryKernel(), input_shapes=(None, C), effort="fast")
    assert (report.permuted, report.prunable) == (1499, 1500)
    moved = [not np.array_equal(old, layer.kernel) for old, layer in zip(kernels, model.stack, strict=True)]
    assert sum(moved) == 1500  # the first one has its output channels in another order
    np.testing.assert_allclose(model(x), before, rtol=1e-4)
