"""The pattern holds after every training step, however the training is set up."""

import subprocess
import sys
import textwrap

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras
from tf_keras import layers

import tfmot_asp
from tests import dtypes
from tests.small_models import CheckEveryBatch, compiled, convnet, data, is_sparse, mlp, violations
from tfmot_asp import masks

OPTIMIZERS = {
    "adam": lambda: tf_keras.optimizers.Adam(),
    "momentum": lambda: tf_keras.optimizers.SGD(0.1, momentum=0.9),
    "decay": lambda: tf_keras.optimizers.AdamW(weight_decay=0.1),
    "average": lambda: tf_keras.optimizers.Adam(use_ema=True, ema_overwrite_frequency=None),
    "legacy": lambda: tf_keras.optimizers.legacy.RMSprop(),
}
MODES = {"graph": {}, "eager": {"run_eagerly": True}, "xla": {"jit_compile": True}}


def pruned_of(model, **options):
    return tfmot_asp.prune_low_magnitude(model, permute=False, **options)


@pytest.mark.parametrize(
    ("optimizer", "mode"),
    [("adam", "graph"), ("adam", "eager"), ("adam", "xla"), *[(name, "graph") for name in list(OPTIMIZERS)[1:]]],
)
def test_fit_keeps_the_pattern_after_every_step_and_strips_to_the_same_predictions(optimizer, mode):
    pruned = compiled(pruned_of(convnet()), OPTIMIZERS[optimizer](), **MODES[mode])
    assert set(violations(pruned)) == {"conv.kernel", "fc.kernel", "head.kernel"}
    dense = pruned.get_layer("prune_low_magnitude_fc").layer.kernel.numpy()
    x, y = data(pruned)
    check = CheckEveryBatch()
    # Ours, because averaged weights are written after the last epoch; the next test uses tfmot's.
    pruned.fit(x, y, batch_size=8, epochs=2, verbose=0, callbacks=[check, tfmot_asp.UpdatePruningStep()])
    assert check.batches == 8
    assert is_sparse(pruned)
    trained = pruned.get_layer("prune_low_magnitude_fc").layer.kernel.numpy()
    mask = masks.m_by_n_mask(np.abs(dense), 0)
    assert (trained[~mask] == 0).all()
    assert not np.array_equal(trained[mask], dense[mask])
    expected = pruned.predict(x, verbose=0)
    for strip in (tfmot.sparsity.keras.strip_pruning, tfmot_asp.strip_pruning):
        plain = strip(pruned)
        assert not any("prune_low_magnitude" in layer.name for layer in plain.layers)
        np.testing.assert_allclose(plain.predict(x, verbose=0), expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    for name, axis in (("conv", 2), ("fc", 0), ("head", 0)):
        assert masks.violations(plain.get_layer(name).kernel.numpy(), axis) == 0


def test_tfmots_callback_will_do_and_so_will_none():
    x, y = data(mlp())
    for callbacks in ([tfmot.sparsity.keras.UpdatePruningStep()], []):
        pruned = compiled(pruned_of(mlp()))
        for _ in range(2):  # a second fit goes on with the same masks
            pruned.fit(x, y, batch_size=8, verbose=0, callbacks=[CheckEveryBatch(), *callbacks])
            mask = pruned.layers[0].pruning_vars[0][1].numpy()
            assert mask.dtype == bool
            np.testing.assert_array_equal(pruned.layers[0].layer.kernel.numpy() != 0, mask)
        assert int(pruned.layers[0].pruning_step) == 8


@pytest.mark.parametrize("traced", [False, True])
def test_custom_loops_keep_the_pattern(traced):
    pruned = pruned_of(mlp())
    x, y = data(pruned)
    optimizer = tf_keras.optimizers.Adam()
    loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def step():
        with tf.GradientTape() as tape:
            value = loss(y, pruned(x, training=True))
        optimizer.apply_gradients(
            zip(tape.gradient(value, pruned.trainable_variables), pruned.trainable_variables, strict=True)
        )

    run = tf.function(step) if traced else step
    for _ in range(3):
        run()
        assert is_sparse(pruned)


def test_train_on_batch_keeps_the_pattern():
    pruned = compiled(pruned_of(mlp()))
    for seed in range(3):
        pruned.train_on_batch(*data(pruned, seed=seed))
        assert is_sparse(pruned)


def test_inference_changes_nothing():
    pruned = compiled(pruned_of(mlp()))
    x, y = data(pruned)
    before = pruned.get_weights()
    pruned.predict(x, verbose=0)
    pruned.evaluate(x, y, verbose=0)
    pruned(x)
    for old, new in zip(before, pruned.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_the_gradient_step_sees_masked_weights_from_the_first_step_on():
    """The first loss is that of the masked model, not of the dense one."""
    model = mlp()
    x, y = data(model)
    one_shot = tf_keras.models.clone_model(model)
    one_shot.set_weights(model.get_weights())
    one_shot = compiled(tfmot_asp.strip_pruning(pruned_of(one_shot)))
    pruned = compiled(pruned_of(model))
    history = pruned.fit(x, y, batch_size=len(x), verbose=0, callbacks=[tfmot_asp.UpdatePruningStep()])
    assert history.history["loss"][0] == pytest.approx(one_shot.evaluate(x, y, verbose=0), rel=1e-5)


def test_masks_come_from_the_stored_weights_under_mixed_precision():
    with dtypes.policy("mixed_float16"):
        model = tf_keras.Sequential(
            [layers.Input((16,)), layers.Dense(8), layers.Activation("linear", dtype="float32")]
        )
        pruned = compiled(pruned_of(model), tf_keras.optimizers.SGD(0.0))
    # Two pairs of values that float16 cannot tell apart: only float32 ranks the later one higher.
    column = np.tile(np.float32([1.0, 1.0 + 1e-5, 1.0 + 2e-5, 1.0 + 3e-5]), 4)
    model.layers[0].kernel.assign(np.tile(column[:, None], (1, 8)))
    pruned.fit(*data(pruned), verbose=0, callbacks=[tfmot_asp.UpdatePruningStep()])
    kernel = pruned.layers[0].layer.kernel.numpy()
    assert kernel.dtype == np.float32
    np.testing.assert_array_equal(kernel[:4, 0] != 0, [False, False, True, True])
    assert pruned.layers[0].dtype_policy.name == "mixed_float16"


def test_shared_and_nested_layers_keep_the_pattern():
    inner = tf_keras.Sequential(
        [layers.Input((16,)), layers.Dense(16, name="a"), layers.Dense(16, name="b")], name="in"
    )
    twice = layers.Dense(16, activation="relu", name="a")
    x = layers.Input((16,))
    pruned = compiled(pruned_of(tf_keras.Model(x, layers.Dense(8, name="out")(twice(inner(twice(x)))))))
    images, labels = data(pruned)
    pruned.fit(images, labels, batch_size=8, verbose=0, callbacks=[CheckEveryBatch(), tfmot_asp.UpdatePruningStep()])
    expected = pruned.predict(images, verbose=0)
    np.testing.assert_array_equal(tfmot_asp.strip_pruning(pruned).predict(images, verbose=0), expected)


def test_kernels_of_every_rank_attention_wrappers_and_subclasses():
    class Projection(layers.Dense):
        pass

    x = layers.Input((6, 16))
    y = layers.MultiHeadAttention(2, 8, name="attention")(x, value=x)
    y = layers.TimeDistributed(Projection(16, name="projection"), name="time_distributed")(y)
    y = layers.Conv1D(16, 3, name="conv1d", padding="same")(y)
    y = layers.EinsumDense("abc,cde->abde", (None, 2, 8), name="einsum")(y)
    y = layers.Reshape((6, 4, 4, 1))(y)
    y = layers.Conv3D(16, 2, name="stem")(y)
    y = layers.Conv3D(8, 2, name="conv3d")(y)
    model = tf_keras.Model(x, layers.GlobalAveragePooling3D()(y))
    policy = tfmot_asp.PruneForSparseTensorCores(kinds=("Dense", "Conv1D", "Conv3D", "EinsumDense"))
    pruned = compiled(pruned_of(model, pruning_policy=policy))
    images, labels = data(pruned)
    pruned.fit(images, labels, batch_size=8, verbose=0, callbacks=[CheckEveryBatch(), tfmot_asp.UpdatePruningStep()])
    assert set(violations(pruned)) == {
        *(f"attention._{part}_dense.kernel" for part in ("query", "key", "value", "output")),
        *(f"{name}.kernel" for name in ("time_distributed", "conv1d", "einsum", "conv3d")),
    }
    expected = pruned.predict(images, verbose=0)
    np.testing.assert_allclose(tfmot_asp.strip_pruning(pruned).predict(images, verbose=0), expected, atol=1e-6)


def test_transposed_convolution_is_pruned_along_its_inputs_if_asked_for():
    wrapper = tfmot_asp.prune_low_magnitude(layers.Conv2DTranspose(8, 2, name="up"))
    pruned = compiled(tf_keras.Sequential([layers.Input((4, 4, 16)), wrapper, layers.GlobalAveragePooling2D()]))
    pruned.fit(*data(pruned), verbose=0)
    kernel = wrapper.layer.kernel.numpy()
    assert masks.violations(kernel, 3) == 0
    assert masks.violations(kernel, 2) > 0


@pytest.mark.parametrize("inputs", [125, 126, 127])
def test_padding_prunes_dense_layers_of_any_input_size(inputs):
    policy = tfmot_asp.PruneForSparseTensorCores(padding=True)
    pruned = compiled(pruned_of(mlp(inputs), pruning_policy=policy))
    pruned.fit(*data(pruned), batch_size=8, verbose=0, callbacks=[CheckEveryBatch(), tfmot_asp.UpdatePruningStep()])
    kernel = pruned.layers[0].layer.kernel.numpy()
    assert np.count_nonzero(kernel) == 32 * (124 // 2 + min(2, inputs - 124))


def test_a_users_own_constraint_still_holds_and_comes_back():
    pruned = compiled(pruned_of(mlp(kernel_constraint=tf_keras.constraints.MaxNorm(0.3))))
    pruned.fit(*data(pruned), verbose=0, callbacks=[CheckEveryBatch()])
    kernel = pruned.layers[0].layer.kernel
    assert np.linalg.norm(kernel.numpy(), axis=0).max() <= 0.3 + 1e-5
    plain = tfmot_asp.strip_pruning(pruned)
    assert isinstance(plain.layers[0].kernel.constraint, tf_keras.constraints.MaxNorm)


def test_frozen_layers_and_a_learning_rate_of_zero_still_prune():
    model = mlp()
    model.get_layer("first").trainable = False
    kernel = model.get_layer("first").kernel.numpy()
    pruned = compiled(pruned_of(model), tf_keras.optimizers.SGD(0.0))
    pruned.fit(*data(pruned), verbose=0, callbacks=[CheckEveryBatch(), tfmot_asp.UpdatePruningStep()])
    expected = masks.apply_mask(kernel, masks.m_by_n_mask(np.abs(kernel), 0))
    np.testing.assert_array_equal(model.get_layer("first").kernel.numpy(), expected)


def test_setting_dense_weights_on_a_wrapper_masks_them():
    pruned = compiled(pruned_of(mlp()))
    pruned.fit(*data(pruned), verbose=0)
    wrapper = pruned.layers[0]
    wrapper.set_weights([np.ones((16, 32), np.float32), np.zeros(32, np.float32)])
    np.testing.assert_array_equal(wrapper.layer.kernel.numpy() == 1, wrapper.pruning_vars[0][1].numpy())
    assert is_sparse(pruned)


def test_a_custom_layer_says_what_to_prune():
    class Gate(layers.Layer):
        def build(self, shape):
            self.w = self.add_weight("w", (int(shape[-1]), 8))
            self.other = self.add_weight("other", (int(shape[-1]), 8))

        def call(self, x):
            return tf.matmul(x, self.w) * tf.sigmoid(tf.matmul(x, self.other))

        def get_prunable_weights(self):
            return [self.w]

    gate = Gate()
    pruned = compiled(tf_keras.Sequential([layers.Input((16,)), tfmot_asp.prune_low_magnitude(gate)]))
    pruned.fit(*data(pruned), verbose=0)
    assert masks.violations(gate.w.numpy(), 0) == 0
    assert masks.violations(gate.other.numpy(), 0) > 0


def test_pruning_summaries_write_sparsities(tmp_path):
    pytest.importorskip("tensorboard")
    pruned = compiled(pruned_of(mlp()))
    callbacks = [tfmot_asp.UpdatePruningStep(), tfmot_asp.PruningSummaries(str(tmp_path))]
    pruned.fit(*data(pruned), epochs=2, verbose=0, callbacks=callbacks)
    written = {}
    for file in (tmp_path / "metrics").glob("events*"):
        for event in tf.compat.v1.train.summary_iterator(str(file)):
            for value in event.summary.value:
                written.setdefault(value.tag, []).append(float(tf.make_ndarray(value.tensor)))
    assert written["prune_low_magnitude_first/mask:0/sparsity"] == [0.0, 0.5]


def test_two_replicas_have_the_same_masks_and_weights():
    """In its own process: logical devices must be set up before TensorFlow starts."""
    code = """
        import numpy as np, tensorflow as tf, tf_keras
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
        import tfmot_asp
        from tests.small_models import compiled, data, mlp
        from tfmot_asp import masks
        strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
        with strategy.scope():
            pruned = compiled(tfmot_asp.prune_low_magnitude(mlp(), permute=False))
        assert strategy.num_replicas_in_sync == 2
        x, y = data(pruned)
        batches = []
        class Check(tf_keras.callbacks.Callback):
            def on_train_batch_end(self, batch, logs=None):
                for layer in pruned.layers:
                    first, second = (value.numpy() for value in layer.layer.kernel.values)
                    assert np.array_equal(first, second)
                    assert masks.violations(first, 0) == 0
                batches.append(batch)
        pruned.fit(x, y, batch_size=8, verbose=0, callbacks=[Check(), tfmot_asp.UpdatePruningStep()])
        assert len(batches) == 4
        for layer in pruned.layers:
            first, second = (value.numpy() for value in layer.pruning_vars[0][1].values)
            assert np.array_equal(first, second) and first.mean() == 0.5
        print("replicas agree")
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
    assert "replicas agree" in done.stdout, done.stderr[-3000:]


def test_a_batch_of_no_samples_keeps_the_pattern():
    pruned = pruned_of(mlp())
    optimizer = tf_keras.optimizers.Adam()
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(pruned(tf.zeros((0, 16)), training=True))
    gradients = tape.gradient(loss, pruned.trainable_variables)
    optimizer.apply_gradients(zip(gradients, pruned.trainable_variables, strict=True))
    assert is_sparse(pruned)
    assert all(np.isfinite(weight).all() for weight in pruned.get_weights())
