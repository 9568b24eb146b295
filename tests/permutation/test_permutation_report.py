"""What a user reads and keeps: reasons, reports that are saved and applied elsewhere, and models left as they were."""

from __future__ import annotations

import json
import re
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import tfmot_asp
from tests.permutation.harness import EveryKernel, check, random_orders, randomise
from tfmot_asp.permutation import (
    PermutationError,
    PermutationReport,
    permute,
    plan_model,
    register_rule,
    rules,
)
from tfmot_asp.permutation.apply import apply
from tfmot_asp.permutation.report import finish

C = 16
POLICY = EveryKernel()


def small(width=C, k=tf_keras, name=None, extra=False):
    layers = k.layers
    x = k.Input((8, 8, 3), name="image")
    y = layers.Conv2D(width, 3, padding="same", activation="relu", name="stem")(x)
    y = layers.BatchNormalization(name="norm")(y)
    y = y + layers.Conv2D(width, 3, padding="same", name="body")(y)
    if extra:
        y = layers.ReLU()(y)
        y = layers.Conv2D(width, 3, padding="same", name="extra")(y)
    y = layers.Dense(8, name="head")(layers.Flatten()(y))
    model = k.Model(x, y, name=name)
    randomise(model)
    return model


def weights(model):
    return [np.array(w) for w in model.get_weights()]


def assert_same(before, model):
    for a, b in zip(before, weights(model), strict=True):
        np.testing.assert_array_equal(a, b)


# The whole way, with the search


@pytest.mark.parametrize("k", [tf_keras, keras], ids=["tf_keras", "keras3"])
def test_permute_keeps_more_and_changes_nothing(k):
    model = small(k=k)
    x = tf.random.stateless_normal((3, 8, 8, 3), (1, 2))
    before = np.asarray(model(x))
    report = tfmot_asp.permutation.permute(model, effort="fast", policy=POLICY, progress=False)
    assert (report.permuted, report.prunable) == (2, 3)
    assert report.max_change is not None
    assert report.max_change < 1e-5
    np.testing.assert_allclose(np.asarray(model(x)), before, atol=1e-5 * np.abs(before).max())
    for entry in report.layers:
        if entry.status == "permuted":
            assert entry.retained_after > entry.retained_before


def test_the_table():
    lines = str(permute(small(), effort="fast", policy=POLICY, progress=False)).splitlines()
    assert lines[0].startswith("2 of 3 prunable kernels permuted, in 1 group; largest change of an output")
    assert lines[1:3] == ["", "layer  kind    status    kept before  kept after  why"]
    assert [line.split()[0] for line in lines[3:]] == ["stem", "body", "head"]
    assert "fed by input 0 'image' of the model" in lines[3]


@pytest.mark.skipif(shutil.which("dot") is None, reason="needs Graphviz")
def test_a_notebook_shows_the_picture(monkeypatch):
    report = permute(small(), effort="fast", policy=POLICY, progress=False)
    picture = report.plot()
    assert "<svg" in picture._repr_svg_()
    assert "prunable kernels permuted" in repr(picture)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(RuntimeError, match="showing a picture needs Graphviz"):
        report.plot()


@pytest.mark.parametrize("k", [tf_keras, keras], ids=["tf_keras", "keras3"])
def test_an_input_has_the_name_that_the_user_gave_it(k):
    class Fusion(k.Model):
        def __init__(self):
            super().__init__()
            self.left, self.right, self.head = (k.layers.Dense(n, name=m) for n, m in ((C, "l"), (C, "r"), (8, "h")))

        def call(self, given):
            return self.head(self.left(given["pixels"]) + self.right(given["tokens"]))

    model = Fusion()
    model({"pixels": np.ones((2, 8), np.float32), "tokens": np.ones((2, 16), np.float32)})
    reasons = [str(reason) for reason in plan_model(model, policy=POLICY).plan.reasons]
    assert reasons[:2] == ["fed by input 0 'pixels' of the model", "fed by input 1 'tokens' of the model"]


@pytest.mark.parametrize("k", [tf_keras, keras], ids=["tf_keras", "keras3"])
def test_an_argument_that_is_an_input_has_its_name(k):
    class Scaled(k.Model):
        def __init__(self):
            super().__init__()
            self.inner = k.layers.Dense(C)

        def call(self, features):
            return self.inner(features)

    model = Scaled()
    for options in ({}, {"input_shapes": (None, 8)}):
        model(np.ones((2, 8), np.float32))
        (reason,) = plan_model(model, policy=POLICY, **options).plan.reasons
        assert str(reason) == "fed by input 0 'features' of the model"


# Save, load, apply elsewhere


def test_a_report_is_applied_to_an_identical_model(tmp_path):
    first, second = small(), small()
    report = permute(first, effort="fast", policy=POLICY, progress=False)
    report.save(tmp_path / "report.json")
    loaded = PermutationReport.load(tmp_path / "report.json")
    assert loaded == report or str(loaded) == str(report)
    applied = loaded.apply_to(second, policy=POLICY)
    assert applied.permuted == report.permuted
    assert_same(weights(first), second)


def unnamed():
    layers = tf_keras.layers
    model = tf_keras.Sequential([layers.Input((32,)), layers.Dense(64, "relu"), layers.Dense(64), layers.Dense(8)])
    randomise(model)
    return model


def strict(path):
    def refuse(constant):
        raise ValueError(f"{constant} is no JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


def test_a_report_is_applied_to_a_second_build_in_one_process(tmp_path):
    first, second = unnamed(), unnamed()
    assert [v.name for v in first.weights] != [v.name for v in second.weights]
    report = permute(first, effort="fast", progress=False)
    applied = report.apply_to(second)
    assert_same(weights(first), second)
    applied.save(tmp_path / "applied.json")
    assert strict(tmp_path / "applied.json")["groups"][0]["efficacy"] is None  # nothing was searched here
    again = PermutationReport.load(tmp_path / "applied.json")
    assert again == applied
    third = unnamed()
    again.apply_to(third)
    assert_same(weights(first), third)


def test_kernels_in_the_best_order_are_not_counted_as_permuted():
    model = unnamed()
    for layer in model.layers:
        layer.kernel.assign(layer.kernel * np.tile([[0.0], [1.0]], (layer.kernel.shape[0] // 2, 1)))
    before = weights(model)
    report = permute(model, effort="fast", progress=False)
    assert_same(before, model)
    assert (report.permuted, report.prunable) == (0, 3)
    assert [(e.status, e.reason) for e in report.layers[1:]] == [
        ("unchanged", "no order was found that keeps more than the given one")
    ] * 2
    assert str(report).startswith("0 of 3 prunable kernels permuted, in 2 groups; for 2 no better order was found")


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: small(width=24), r"variable 0 is \['float32', 3, 3, 3, 24\] here and was \['float32', 3, 3, 3, 16\]"),
        (lambda: small(extra=True), "the report does not fit this model"),
    ],
)
def test_a_model_that_differs_is_refused(other, message):
    report = permute(small(), effort="fast", policy=POLICY, progress=False)
    model = other()
    before = weights(model)
    with pytest.raises(ValueError, match=message):
        report.apply_to(model, policy=POLICY)
    assert_same(before, model)


def test_a_model_that_is_wired_otherwise_is_refused():
    def model(flip):
        x = tf_keras.Input((8,))
        y = tf_keras.layers.Dense(C, name="a")(x)
        z = tf_keras.layers.Dense(C, name="b")(x)
        z = tf.roll(z, 1 if flip else 2, -1)
        return tf_keras.Model(x, tf_keras.layers.Dense(8, name="c")(y + z))

    report = permute(model(False), effort="fast", policy=POLICY, progress=False)
    with pytest.raises(ValueError, match="the same variables are connected in another way"):
        report.apply_to(model(True), policy=POLICY)


def test_a_policy_that_differs_is_refused():
    report = permute(small(), effort="fast", policy=POLICY, progress=False)
    other = EveryKernel(skip=lambda layer: layer.name == "body")
    with pytest.raises(ValueError, match=r"2 kernels here, 3 there|kernel 1 is"):
        report.apply_to(small(), policy=other)


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"format": "other"}', "not json"])
def test_a_file_that_is_no_report_is_refused(tmp_path, content):
    path = tmp_path / "report.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"report\.json is not a report saved by tfmot_asp"):
        PermutationReport.load(path)


def test_a_spoiled_order_is_refused(tmp_path):
    path = tmp_path / "report.json"
    permute(small(), effort="fast", policy=POLICY, progress=False).save(path)
    data = json.loads(path.read_text())
    data["groups"][0]["order"][0] = data["groups"][0]["order"][1]
    path.write_text(json.dumps(data))
    with pytest.raises(ValueError, match="the order of group 'body' is not a permutation"):
        PermutationReport.load(path)


# As it was


class Interrupted(BaseException):
    pass


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, Interrupted])
def test_interrupted_at_every_assignment(monkeypatch, error):
    model = small()
    model.compile(tf_keras.optimizers.legacy.Adam(), "mse")
    model.train_on_batch(np.ones((2, 8, 8, 3), np.float32), np.ones((2, 8), np.float32))
    plan = plan_model(model, policy=POLICY)
    orders = random_orders(plan)
    before, slots = weights(model), [v.numpy() for v in model.optimizer.variables()]
    count, when = 0, 0

    def patch(kind):
        original = kind.assign

        def assign(self, value, *args, **kwargs):
            nonlocal count
            count += 1
            result = original(self, value, *args, **kwargs)
            if count == when:
                raise error
            return result

        monkeypatch.setattr(kind, "assign", assign)

    for kind in {type(v) for v in (*plan.graph.variables, *model.optimizer.variables())}:
        patch(kind)
    while True:
        count, when = 0, when + 1
        try:
            apply(plan, orders, model, verify=False)
        except error:
            assert_same(before, model)
            for a, b in zip(slots, model.optimizer.variables(), strict=True):
                np.testing.assert_array_equal(a, b.numpy())
        else:
            break
    assert when > 20  # every variable and slot that moves, once


def test_interrupted_again_while_putting_back(monkeypatch):
    model = small()
    plan = plan_model(model, policy=POLICY)
    before = weights(model)
    kind = type(plan.graph.variables[0])
    original = kind.assign
    count = 0

    def assign(self, value, *args, **kwargs):
        nonlocal count
        count += 1
        if count in (3, 4, 6):
            raise KeyboardInterrupt
        return original(self, value, *args, **kwargs)

    monkeypatch.setattr(kind, "assign", assign)
    with pytest.raises(KeyboardInterrupt):
        apply(plan, random_orders(plan), model, verify=False)
    monkeypatch.undo()
    assert_same(before, model)


@pytest.mark.parametrize(
    "where",
    ["pipeline.search_many", "matrix._fill", "plan.ModelPlan.retained", "picture.outline.outline", "apply.apply"],
)
def test_interrupted_in_any_step(monkeypatch, where):
    model = small()
    before = weights(model)

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(f"tfmot_asp.permutation.{where}", interrupted)
    with pytest.raises(KeyboardInterrupt):
        permute(model, effort="fast", policy=POLICY, progress=False)
    assert_same(before, model)


def test_planning_and_verifying_leave_the_state_alone():
    class Counter(tf_keras.layers.Layer):
        def build(self, shape):
            self.calls = self.add_weight("calls", (), trainable=False, initializer="zeros")

        def call(self, x):
            self.calls.assign_add(1.0)
            return x + 0.0 * self.calls

    x = tf_keras.Input((8,))
    model = tf_keras.Model(x, tf_keras.layers.Dense(8)(Counter()(tf_keras.layers.Dense(C)(x))))
    before = model.layers[2].calls.numpy()
    report = permute(model, effort="fast", policy=POLICY, progress=False)
    assert report.permuted == 1
    assert model.layers[2].calls.numpy() == before


# The proof by running


@pytest.fixture
def wrong_rule():
    """A rule that lets channels move through an op that they may not move through."""
    kept = rules.rule_for("LRN")
    register_rule("LRN")(lambda op, axes: [axes[op.inputs[0]]])
    yield
    register_rule("LRN")(kept)


@pytest.mark.parametrize("silent", [False, True], ids=["visible", "silenced by a scale of zero"])
def test_a_wrong_rule_is_found_out_before_anything_is_written(wrong_rule, silent):
    x = tf_keras.Input((8, 8, 3))
    y = tf_keras.layers.Conv2D(C, 3, name="a")(x)
    z = tf.nn.local_response_normalization(y, 1, alpha=1.0)
    z = tf_keras.layers.Conv2D(C, 3, padding="same", name="b")(z)
    z = tf_keras.layers.BatchNormalization(gamma_initializer="zeros" if silent else "ones")(z)
    model = tf_keras.Model(x, tf_keras.layers.Conv2D(8, 3, name="c")(z))
    before = weights(model)
    plan = plan_model(model, policy=POLICY)
    with pytest.raises(PermutationError, match=r"was not applied.*group 'b' alone changes them.*report the model"):
        finish(plan, model, random_orders(plan))
    assert_same(before, model)


def test_the_harness_finds_a_wrong_rule_out(wrong_rule):
    x = tf_keras.Input((8, 8, 3))
    y = tf.nn.local_response_normalization(tf_keras.layers.Conv2D(C, 3)(x), 1, alpha=1.0)
    model = tf_keras.Model(x, tf_keras.layers.Conv2D(8, 3)(y))
    with pytest.raises(AssertionError, match="the outputs changed by"):
        check(model)


def test_orders_that_do_not_fit_are_refused():
    model = small()
    plan = plan_model(model, policy=POLICY)
    with pytest.raises(ValueError, match="expected one order for each of the 1 groups, got 0"):
        finish(plan, model, [])
    with pytest.raises(ValueError, match="must hold each of 0 to 15 once"):
        finish(plan, model, [np.zeros(C, np.int64)])


# Rules of one's own


def test_register_rule():
    kept = rules.rule_for("LRN")
    try:

        @register_rule("LRN")
        def pinned(op, axes):
            *others, last = axes[op.inputs[0]]
            axes.pin(last, "normalized by its neighbours, says the user", op)
            return [[*others, last]]

        x = tf_keras.Input((8, 8, 3))
        y = tf.nn.local_response_normalization(tf_keras.layers.Conv2D(C, 3)(x))
        result = check(tf_keras.Model(x, tf_keras.layers.Conv2D(8, 3, name="b")(y)))
        assert "says the user" in result.reason("b")
    finally:
        register_rule("LRN")(kept)
    with pytest.raises(TypeError, match='register_rule takes op types such as "Relu"'):
        register_rule(tf.nn.relu)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (lambda op, axes: [axes[op.inputs[0]][:-1]], "returned axes .* for a tensor of shape"),
        (lambda op, axes: [], "axes for 0 outputs of 1"),
        (lambda op, axes: 1 / 0, "division by zero"),
    ],
)
def test_a_rule_that_fails_pins_and_says_so(rule, message):
    kept = rules.rule_for("LRN")
    register_rule("LRN")(rule)
    try:
        x = tf_keras.Input((8, 8, 3))
        y = tf.nn.local_response_normalization(tf_keras.layers.Conv2D(C, 3)(x))
        model = tf_keras.Model(x, tf_keras.layers.Conv2D(8, 3, name="b")(y))
        plan = plan_model(model, policy=POLICY)
    finally:
        register_rule("LRN")(kept)
    assert plan.plan.groups == ()
    assert plan.plan.reasons[1].why.startswith("the permutation rule of this op failed: ")
    assert re.search(message, plan.plan.reasons[1].why)


# Refusals


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"effort": "thorouh"}, ValueError, "effort must be one of 'fast', 'balanced', 'thorough'; got 'thorouh'"),
        ({"device": "gpu"}, ValueError, "device must be one of 'auto', 'cpu', 'cuda'; got 'gpu'"),
        ({"seed": 0.5}, TypeError, "seed must be an integer; got 0.5"),
        ({"progress": "yes"}, TypeError, "progress must be True, False or None; got 'yes'"),
        ({"executor": 4}, TypeError, "executor must have a method submit"),
        ({"sparsity_m_by_n": (12, 24)}, ValueError, "sparsity_m_by_n must have n at most 16"),
    ],
)
def test_options_are_checked_before_the_model_is_looked_at(options, error, message):
    nothing_to_permute = tf_keras.Sequential([tf_keras.Input((C,)), tf_keras.layers.Dense(8)])
    for model in (nothing_to_permute, "no model at all"):
        with pytest.raises(error, match=message):
            permute(model, **options)


def test_a_device_that_is_not_there_is_refused_where_nothing_is_to_be_searched(monkeypatch):
    monkeypatch.setattr("tfmot_asp.permutation.search.loader.why_not", lambda needed=0: "there is no CUDA device")
    model = tf_keras.Sequential([tf_keras.Input((C,)), tf_keras.layers.Dense(8)])
    assert permute(model, device="auto").groups == ()
    with pytest.raises(RuntimeError, match="there is no CUDA device"):
        permute(model, device="cuda")


def test_what_is_no_model_is_refused():
    with pytest.raises(TypeError, match=r"permute takes a Keras model .* got str; a path is loaded first"):
        permute("model.keras")


def test_an_unbuilt_model_is_refused():
    with pytest.raises(ValueError, match="is not built, so its kernels do not exist yet"):
        permute(tf_keras.Sequential([tf_keras.layers.Dense(C)]))


def test_a_keras_3_model_on_another_backend_is_refused(monkeypatch):
    model = keras.Sequential([keras.Input((C,)), keras.layers.Dense(C)])
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    for refuses in (permute, tfmot_asp.prune_trained_model):
        with pytest.raises(ValueError, match=r"runs on Keras 3's jax backend.*KERAS_BACKEND=tensorflow"):
            refuses(model)


def test_a_model_with_nothing_to_prune_is_refused_with_the_reasons():
    model = tf_keras.Sequential([tf_keras.Input((3,)), tf_keras.layers.Dense(5, name="odd")])
    with pytest.raises(ValueError, match=r"no layer that the policy would prune.*'odd' has 3 input features"):
        permute(model)


def test_weights_that_are_not_finite_are_refused():
    model = small()
    model.get_layer("body").kernel.assign(model.get_layer("body").kernel * np.nan)
    with pytest.raises(ValueError, match=r"the weights of 'body' hold .* NaN or infinite values"):
        permute(model, policy=POLICY)


def test_a_layer_that_the_model_does_not_use_says_so():
    class Net(tf_keras.Model):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.spare = (
                tf_keras.layers.Dense(n, name=m) for n, m in ((C, "a"), (8, "b"), (8, "spare"))
            )

        def call(self, x):
            return self.b(self.a(x))

    model, x = Net(), tf.ones((3, 8))
    model(x)
    model.spare(x)
    result = check(model, inputs=x, permuted=1)
    assert result.reason("spare") == "the model's inference function does not use 'spare'"
