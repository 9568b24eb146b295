"""With a pattern, the schedule says when: one shot, after a warm-up, or stripe by stripe."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras
from hypothesis import given, settings
from hypothesis import strategies as st

import tfmot_asp
from tests.small_models import compiled, data, is_sparse, mlp
from tfmot_asp import masks
from tfmot_asp.pattern import Pattern
from tfmot_asp.training import schedule

ConstantSparsity = tfmot.sparsity.keras.ConstantSparsity
PolynomialDecay = tfmot.sparsity.keras.PolynomialDecay


class Record(tf_keras.callbacks.Callback):
    """Share of masked weights and of zeros after each step, and the masks."""

    def __init__(self):
        super().__init__()
        self.masked, self.zeros, self.masks = [], [], []

    def on_train_batch_end(self, batch, logs=None):
        wrapper = self.model.layers[0]
        mask = wrapper.pruning_vars[0][1].numpy()
        self.masks.append(mask)
        self.masked.append(1 - mask.mean())
        self.zeros.append((wrapper.layer.kernel.numpy() == 0).mean())


def trained(pruning_schedule, steps, m_by_n=(2, 4)):
    pruned = compiled(
        tfmot_asp.prune_low_magnitude(mlp(), pruning_schedule=pruning_schedule, sparsity_m_by_n=m_by_n, permute=False)
    )
    record = Record()
    x, y = data(pruned, count=2 * steps)
    pruned.fit(x, y, batch_size=2, verbose=0, callbacks=[record, tfmot_asp.UpdatePruningStep()])
    assert len(record.masked) == steps
    return pruned, record


@pytest.mark.parametrize("given_schedule", [None, ConstantSparsity(0.5, 0), ConstantSparsity(0.5, 0, frequency=3)])
def test_a_constant_schedule_prunes_once_at_the_first_step_and_the_mask_stays(given_schedule):
    _, record = trained(given_schedule, 7)
    assert record.masked == [0.5] * 7
    assert record.zeros == [0.5] * 7
    assert all(np.array_equal(mask, record.masks[0]) for mask in record.masks)


def test_begin_step_leaves_a_dense_warm_up():
    _, record = trained(ConstantSparsity(0.5, begin_step=4), 6)
    assert record.masked == [0.0] * 3 + [0.5] * 3
    assert record.zeros == [0.0] * 3 + [0.5] * 3


@pytest.mark.parametrize(("m_by_n", "sparsity"), [((2, 4), 0.5), ((1, 3), 0.333), ((3, 4), 0.75), ((5, 8), 0.625)])
def test_the_share_of_masked_weights_follows_the_schedule_and_ends_in_the_pattern(m_by_n, sparsity):
    steps = PolynomialDecay(0.0, sparsity, begin_step=2, end_step=8, power=1, frequency=2)
    pruned, record = trained(steps, 10, m_by_n)
    m, n = m_by_n
    stripes = -(-16 // n) * 32
    expected = 0.0
    for step, masked in enumerate(record.masked, start=1):
        due, target = (value.numpy() for value in steps(np.int64(step)))
        expected = target if due else expected
        if m_by_n != (1, 3):  # 16 inputs are five stripes of 3 and a single one that has nothing to mask
            assert masked == pytest.approx(expected, abs=m / stripes / n)
        assert record.zeros[step - 1] == pytest.approx(masked)
    assert is_sparse(pruned, m_by_n)
    for earlier, later in zip(record.masks, record.masks[1:], strict=False):
        assert not (later & ~earlier).any(), "a masked weight came back"


def test_a_sharper_schedule_stops_at_the_pattern():
    pruned, record = trained(PolynomialDecay(0.0, 0.8, begin_step=0, end_step=4, frequency=1), 6)
    assert record.masked[-1] == 0.5
    assert is_sparse(pruned)


def test_stripping_early_completes_the_pattern_and_says_so(caplog):
    pruned, record = trained(PolynomialDecay(0.0, 0.5, begin_step=1, end_step=100, power=1, frequency=1), 20)
    assert 0.05 < record.masked[-1] < 0.2
    partial = record.masks[-1]
    with caplog.at_level("WARNING", "tfmot_asp"):
        plain = tfmot_asp.strip_pruning(pruned)
    assert "'first' had not reached its pattern 2:4 after 20 training steps" in caplog.text
    kernel = plain.get_layer("first").kernel.numpy()
    assert masks.violations(kernel, 0) == 0
    assert (kernel[~partial] == 0).all()


@given(st.integers(2, 12).flatmap(lambda n: st.tuples(st.integers(1, n - 1), st.just(n))))
@settings(max_examples=40)
def test_the_default_schedule_reaches_every_pattern(m_by_n):
    pattern = Pattern(*m_by_n)
    schedule.check_schedule(schedule.default_schedule(pattern), pattern)


def test_the_threshold_is_the_largest_magnitude_that_was_dropped():
    model = mlp()
    kernel = model.get_layer("first").kernel.numpy()
    pruned = compiled(tfmot_asp.prune_low_magnitude(model, permute=False))
    pruned.fit(*data(pruned), verbose=0)
    mask = masks.m_by_n_mask(np.abs(kernel), 0)
    assert pruned.layers[0].pruning_vars[0][2].numpy() == np.abs(kernel)[~mask].max()


@pytest.mark.parametrize("mode", [{}, {"run_eagerly": True}, {"jit_compile": True}, {"steps_per_execution": 2}])
@pytest.mark.parametrize("trainable", [True, False])
def test_a_shared_layer_counts_steps_not_calls(mode, trainable):
    if mode.get("run_eagerly") and not trainable:
        pytest.skip("nothing tells the calls of eager steps apart that update nothing")
    shared = tf_keras.layers.Dense(16, name="shared", trainable=trainable)
    x = tf_keras.layers.Input((16,))
    model = tf_keras.Model(x, tf_keras.layers.Dense(8, name="head")(shared(shared(shared(x)))))
    pruned = compiled(tfmot_asp.prune_low_magnitude(model, permute=False), **mode)
    images, labels = data(pruned)
    pruned.fit(images, labels, batch_size=8, verbose=0)
    pruned.fit(images[:6], labels[:6], batch_size=6, verbose=0, steps_per_epoch=1)  # a batch of another size
    steps = {layer.layer.name: int(layer.pruning_step) for layer in pruned.layers if hasattr(layer, "pruning_step")}
    assert steps == {"shared": 5, "head": 5}


def test_steps_unrolled_in_one_function_are_all_counted():
    pruned = tfmot_asp.prune_low_magnitude(mlp(), permute=False)
    optimizer = tf_keras.optimizers.SGD(0.1)
    optimizer.build(pruned.trainable_variables)

    @tf.function
    def run():
        for _ in range(3):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(pruned(tf.ones((2, 16)), training=True))
            gradients = tape.gradient(loss, pruned.trainable_variables)
            optimizer.apply_gradients(zip(gradients, pruned.trainable_variables, strict=True))

    run()
    assert int(pruned.layers[0].pruning_step) == 3


class Steps(tfmot.sparsity.keras.PruningSchedule):
    """A schedule of the user's own, which says neither when nor where it ends."""

    def __call__(self, step):
        return tf.equal(step % 3, 0), tf.where(step < 5, 0.25, 0.5)

    def get_config(self):
        return {"class_name": type(self).__name__, "config": {}}


@pytest.mark.parametrize(
    ("pruning_schedule", "end"),
    [
        (PolynomialDecay(0.0, 0.5, 0, 7), 7),
        (PolynomialDecay(0.1, 0.5, 2, 7, frequency=3), 7),
        (PolynomialDecay(0.0, 0.5, 1, 6, frequency=4, power=1), 6),
        (PolynomialDecay(0.0, 0.5, 3, 3), 3),
        (PolynomialDecay(0.0, 0.5, 0, 0), 1),
        (Steps(), 5),
    ],
    ids=["default frequency", "no multiple", "linear", "at once", "never", "custom"],
)
def test_a_schedule_ends_at_the_pattern_when_it_ends_whatever_its_frequency(pruning_schedule, end):
    _, record = trained(pruning_schedule, 8)
    assert [share == 0.5 for share in record.masked] == [step >= end for step in range(1, 9)]


def test_a_schedule_above_the_pattern_warns_with_both_figures():
    with pytest.warns(UserWarning, match=r"PolynomialDecay asks for a sparsity of 0\.8, but 2:4 is a sparsity of 0\.5"):
        tfmot_asp.prune_low_magnitude(mlp(), PolynomialDecay(0.5, 0.8, 0, 8), permute=False)
    with pytest.warns(UserWarning, match=r"ConstantSparsity asks for a sparsity of 0\.7, .* 0\.25"):
        tfmot_asp.prune_low_magnitude(tf_keras.layers.Dense(8), ConstantSparsity(0.7, 0), sparsity_m_by_n="3:4")
