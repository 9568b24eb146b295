"""Both streams of a pass: the order of things, what is held between steps, and that nothing is computed twice."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from tfmot_asp.calibration.data import collect
from tfmot_asp.calibration.op_order import Change, schedule
from tfmot_asp.calibration.spill import Shelf
from tfmot_asp.calibration.streams import Pair, Streams
from tfmot_asp.calibration.traced import trace_for

layers = tf_keras.layers
RNG = np.random.default_rng(0)


def traced_streams(model, *shape):
    [traced] = trace_for(model, collect(model, RNG.normal(size=shape).astype("float32")))
    return traced, Streams(traced.graph)


def changes_for(streams, variables):
    """A change for each variable, which looks at what the ops that read it read."""
    graph = streams.graph
    found = []
    for variable in variables:
        index = graph.variable_index(variable)
        sites = [
            tuple(t for t in op.inputs if t in streams.varying)
            for op in graph.ops
            if index in streams.fixed_variables(op) and any(t in streams.varying for t in op.outputs)
        ]
        found.append(Change(variable.name, (index,), tuple(sites)))
    return found


def plan(model, streams, variables):
    graph = streams.graph
    changes = changes_for(streams, variables)
    steps = schedule(graph, changes, streams.varying, streams.fixed_variables, graph.outputs)
    done: set = set()
    changed: set = set()
    for step in steps:
        for op in step.ops:
            waiting = streams.fixed_variables(op) & {i for c in changes for i in c.variables}
            assert waiting <= changed, "an op ran before what it reads was changed"
            assert all(t.op in done or t.op is None for t in op.inputs if t in streams.varying)
            done.add(op)
        if step.change is not None:
            assert all(t.op in done or t.op is None for s in step.sites for t in step.change.sites[s])
            changed |= set(step.change.variables)
    assert steps[-1].change is None
    assert len(done) == sum(len(step.ops) for step in steps)
    return steps


def test_layers_come_in_the_order_of_the_data_whatever_order_they_are_given_in():
    x = y = tf_keras.Input((8,))
    dense = [layers.Dense(8, use_bias=False) for _ in range(4)]
    for layer in dense:
        y = layers.Add()([y, layer(layers.ReLU()(y))])
    model = tf_keras.Model(x, y)
    _, streams = traced_streams(model, 3, 8)
    steps = plan(model, streams, [layer.kernel for layer in reversed(dense)])
    assert [step.change.what for step in steps[:-1]] == [layer.kernel.name for layer in dense]
    assert all(step.sites == (0,) for step in steps[:-1])


def test_towers_that_share_layers_are_pruned_with_both_in_view():
    a, b = layers.Dense(8, use_bias=False), layers.Dense(8, use_bias=False)
    x, z = tf_keras.Input((8,)), tf_keras.Input((8,))
    model = tf_keras.Model([x, z], [b(a(x)), b(a(z))])
    [traced] = trace_for(model, collect(model, [np.ones((2, 8), "float32")] * 2))
    steps = plan(model, Streams(traced.graph), [a.kernel, b.kernel])
    assert [step.sites for step in steps[:-1]] == [(0, 1), (0, 1)]


def test_a_layer_whose_output_comes_back_to_it_is_pruned_by_its_first_call():
    a, b = layers.Dense(8, use_bias=False), layers.Dense(8, use_bias=False)
    x = tf_keras.Input((8,))
    model = tf_keras.Model(x, b(a(b(a(x)))))
    _, streams = traced_streams(model, 2, 8)
    assert [step.sites for step in plan(model, streams, [a.kernel, b.kernel])[:-1]] == [(0,), (0,)]


def test_states_free_what_is_not_needed_and_outputs_are_those_of_the_changed_model():
    x = y = tf_keras.Input((8,))
    dense = [layers.Dense(8, activation="relu") for _ in range(3)]
    for layer in dense:
        y = layer(y)
    model = tf_keras.Model(x, layers.Add()([y, x]))
    traced, streams = traced_streams(model, 5, 8)
    steps = plan(model, streams, [layer.kernel for layer in dense])
    state = streams.start(traced.batches[0].leaves)
    new = {}
    for step in steps:
        streams.run(step.ops, state, step.freed)
        for tensor in step.freed.get(None, ()):
            state.pop(tensor)
        assert len(state) <= 3
        if step.change is not None:
            [variable] = step.change.variables
            new[variable] = RNG.normal(size=(8, 8)).astype("float32")
            streams.assign(variable, new[variable])
    pair = state[traced.graph.outputs[0]]
    np.testing.assert_allclose(pair.dense, model(traced.batches[0].inputs), rtol=1e-5, atol=1e-6)
    for variable, value in new.items():
        streams.graph.variables[variable].assign(value)
    np.testing.assert_allclose(pair.pruned, model(traced.batches[0].inputs), rtol=1e-5, atol=1e-6)


def test_streams_share_what_no_change_reaches(monkeypatch):
    x = tf_keras.Input((8,))
    a, b = layers.Dense(8, name="a"), layers.Dense(8, name="b")
    model = tf_keras.Model(x, [a(x), b(x)])
    traced, streams = traced_streams(model, 2, 8)
    streams.assign(traced.graph.variable_index(a.kernel), np.zeros((8, 8), np.float32))
    state = streams.start(traced.batches[0].leaves)
    streams.run([op for op in traced.graph.ops if op.outputs[0] in streams.varying], state)
    first, second = (state[t] for t in traced.graph.outputs)
    assert not first.same
    assert second.same


@pytest.mark.parametrize("memory", [0, 40_000, 1 << 30])
def test_a_shelf_gives_back_what_was_put_on_it(memory):
    shelf = Shelf(memory)
    half = tf.constant(RNG.normal(size=(40, 40)), tf.bfloat16)
    states = []
    for number in range(4):
        big = tf.constant(RNG.normal(size=(64, 64)).astype("float32"))
        states.append({"same": Pair(big, big), "other": Pair(half, half + number), "flag": Pair(big > 0, big > 0)})
    stored = [shelf.put(dict(state)) for state in states]
    assert shelf.held <= memory
    for state, kept in zip(states, stored, strict=True):
        found = shelf.take(kept)
        assert found["same"].same
        for name, pair in state.items():
            np.testing.assert_array_equal(found[name].dense, pair.dense)
            np.testing.assert_array_equal(found[name].pruned, pair.pruned)
    assert shelf.held == 0
    shelf.close()
