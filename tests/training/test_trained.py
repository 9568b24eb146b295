"""prune_trained_model: the pattern holds after every step, whatever the model is and however it trains."""

import subprocess
import sys
import textwrap

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import tfmot_asp
from tests.small_models import convnet, data, mlp
from tfmot_asp import masks
from tfmot_asp.keras_models.constraints import mask_of
from tfmot_asp.keras_models.kernels import kernels_of
from tfmot_asp.keras_models.layers import all_layers
from tfmot_asp.keras_models.variables import underlying_variable

keras3 = pytest.importorskip("keras", minversion="3")
KERAS = {"tf_keras": tf_keras, "keras3": keras3}


@pytest.fixture(params=KERAS)
def keras(request):
    return KERAS[request.param]


def functional(keras):
    x = keras.layers.Input((8, 8, 3))
    y = keras.layers.Conv2D(16, 3, padding="same", name="stem")(x)
    y = keras.layers.ReLU()(keras.layers.BatchNormalization()(y))
    z = keras.layers.Conv2D(16, 3, padding="same", name="conv")(y)
    y = keras.layers.Flatten()(keras.layers.MaxPooling2D()(keras.layers.Add()([y, z])))
    return keras.Model(x, keras.layers.Dense(8, name="head")(y))


def sequential(keras):
    layers = [keras.layers.Dense(32, activation="relu", name="first"), keras.layers.Dense(8, name="second")]
    return keras.Sequential([keras.layers.Input((16,)), *layers])


def subclassed(keras):
    class Subclassed(keras.Model):
        def __init__(self):
            super().__init__()
            self.first = keras.layers.Dense(32, activation="relu", name="first")
            self.second = keras.layers.Dense(8, name="second")

        def call(self, x):
            return self.second(self.first(x))

    model = Subclassed()
    model(tf.zeros((2, 16)))
    return model


def nested(keras):
    x = keras.layers.Input((16,))
    inner = keras.Sequential([keras.layers.Input((16,)), keras.layers.Dense(16, activation="relu")], name="inner")
    shared = keras.layers.Dense(16, name="shared")
    return keras.Model(x, keras.layers.Dense(8, name="out")(shared(inner(shared(x)))))


MODELS = {"functional": functional, "sequential": sequential, "subclassed": subclassed, "nested": nested}
COUNT = {"functional": 2, "sequential": 2, "subclassed": 2, "nested": 3}
FAST = {"effort": "fast", "progress": False}


def prune(model, **options):
    options.setdefault("permute", False)
    return tfmot_asp.prune_trained_model(model, **options)


def batch(model, count=16, seed=0):
    generator = np.random.default_rng(seed)
    shape = (8, 8, 3) if len(model.layers) > 5 else (16,)
    return (
        generator.standard_normal((count, *shape)).astype(np.float32),
        generator.integers(0, 8, count),
    )


def compiled(model, keras, optimizer="adam", **options):
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True), **options)
    return model


def weights(model):
    return {name: np.asarray(kernel.tf_variable) for name, layer in all_layers(model) for kernel in kernels_of(layer)}


def assert_sparse(pruned):
    assert pruned.report.prunable == len(pruned.masks)
    assert pruned.report.sparse == len(pruned.masks), str(pruned.report)


def check_every_batch(keras, pruned):
    class Check(keras.callbacks.Callback):
        batches = 0

        def on_train_batch_end(self, batch, logs=None):
            assert_sparse(pruned)
            self.batches += 1

    return Check()


@pytest.mark.parametrize("kind", MODELS)
def test_fit_keeps_the_pattern_after_every_step(keras, kind):
    model = compiled(MODELS[kind](keras), keras)
    before = weights(model)
    pruned = prune(model)
    assert len(pruned.masks) == COUNT[kind]
    assert_sparse(pruned)
    once = weights(model)
    for name, mask in pruned.masks.items():
        assert mask.dtype == tf.bool
        axis = 2 if name == "conv" else 0
        np.testing.assert_array_equal(mask.numpy(), masks.m_by_n_mask(np.abs(before[name]), axis))
        np.testing.assert_array_equal(once[name], np.where(mask.numpy(), before[name], 0))
    check = check_every_batch(keras, pruned)
    model.fit(*batch(model), batch_size=4, verbose=0, callbacks=[check])
    assert check.batches == 4
    after = weights(model)
    assert all(not np.array_equal(after[name], once[name]) for name in after)


@pytest.mark.parametrize("mode", [{"run_eagerly": True}, {"jit_compile": True}, {"steps_per_execution": 2}])
def test_every_mode_of_fit_keeps_the_pattern(keras, mode):
    model = compiled(sequential(keras), keras, **mode)
    pruned = prune(model)
    model.fit(*batch(model), batch_size=4, verbose=0, callbacks=[check_every_batch(keras, pruned)])
    assert_sparse(pruned)


@pytest.mark.parametrize("mode", ["eager", "traced", "xla"])
def test_custom_loops_keep_the_pattern(keras, mode):
    model = subclassed(keras)
    pruned = prune(model)
    optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
    optimizer.build(model.trainable_variables)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    x, y = batch(model)

    def step(x, y):
        with tf.GradientTape() as tape:
            value = loss(y, model(x, training=True))
        gradients = tape.gradient(value, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))

    run = step if mode == "eager" else tf.function(step, jit_compile=mode == "xla")
    for _ in range(3):
        before = weights(model)
        run(tf.constant(x), tf.constant(y))
        assert_sparse(pruned)
        assert all(not np.array_equal(old, weights(model)[name]) for name, old in before.items())


def test_train_on_batch_and_a_model_that_has_trained_before(keras):
    """Keras keeps the step that it traced before there were masks; it has to be traced anew."""
    model = compiled(sequential(keras), keras)
    model.fit(*batch(model), verbose=0)
    model.train_on_batch(*batch(model))
    pruned = prune(model)
    for seed in range(2):
        model.train_on_batch(*batch(model, seed=seed))
        assert_sparse(pruned)
    model.fit(*batch(model), verbose=0)
    assert_sparse(pruned)


def test_pruning_from_a_callback_in_the_middle_of_fit(keras):
    class PruneLater(keras.callbacks.Callback):
        pruned = None

        def on_train_batch_end(self, batch, logs=None):
            if self.pruned is not None:
                assert_sparse(self.pruned)
            elif batch == 1:
                self.pruned = prune(self.model)

    callback = PruneLater()
    model = compiled(sequential(keras), keras)
    model.fit(*batch(model), batch_size=4, epochs=2, verbose=0, callbacks=[callback])
    assert_sparse(callback.pruned)


OPTIMIZERS = {
    "decay": (KERAS, lambda keras: keras.optimizers.AdamW(weight_decay=0.1)),
    "clip": (KERAS, lambda keras: keras.optimizers.SGD(0.1, clipnorm=1.0)),
    "average": (KERAS, lambda keras: keras.optimizers.Adam(use_ema=True)),
    "overwrite": (KERAS, lambda keras: keras.optimizers.Adam(use_ema=True, ema_overwrite_frequency=2)),
    "loss scale": (KERAS, lambda keras: scaled(keras, keras.optimizers.Adam())),
    "accumulation": (("keras3",), lambda keras: keras.optimizers.Adam(gradient_accumulation_steps=2)),
    "legacy": (("tf_keras",), lambda keras: keras.optimizers.legacy.Adam()),
    "legacy loss scale": (("tf_keras",), lambda keras: scaled(keras, keras.optimizers.legacy.Adam())),
}


def scaled(keras, optimizer):
    home = keras.mixed_precision if keras is tf_keras else keras.optimizers
    return home.LossScaleOptimizer(optimizer)


@pytest.mark.parametrize(
    ("which", "optimizer"), [(which, name) for name, (where, _) in OPTIMIZERS.items() for which in where]
)
def test_optimizers_keep_the_pattern_also_when_they_have_trained_the_dense_model(which, optimizer):
    keras = KERAS[which]
    model = compiled(sequential(keras), keras, OPTIMIZERS[optimizer][1](keras))
    model.fit(*batch(model), batch_size=8, verbose=0)
    pruned = prune(model)
    model.fit(*batch(model), batch_size=4, verbose=0, callbacks=[check_every_batch(keras, pruned)])
    assert_sparse(pruned)


def test_accumulated_gradients_in_a_loop_of_ones_own():
    model = mlp()
    pruned = prune(model)
    optimizer = tf_keras.optimizers.Adam()
    total = [tf.Variable(tf.zeros_like(v)) for v in model.trainable_variables]
    for step in range(4):
        x, y = data(model, seed=step)
        with tf.GradientTape() as tape:
            value = tf_keras.losses.sparse_categorical_crossentropy(y, model(x), from_logits=True)
        for sum_, gradient in zip(total, tape.gradient(value, model.trainable_variables), strict=True):
            sum_.assign_add(gradient)
        if step % 2:
            optimizer.apply_gradients(zip(total, model.trainable_variables, strict=True))
            for sum_ in total:
                sum_.assign(tf.zeros_like(sum_))
        assert_sparse(pruned)


@pytest.mark.parametrize("precision", ["mixed_float16", "mixed_bfloat16"])
def test_masks_come_from_the_stored_weights_under_mixed_precision(keras, precision):
    policy = keras.mixed_precision.Policy(precision) if keras is tf_keras else keras.DTypePolicy(precision)
    dense = keras.layers.Dense(8, dtype=policy, name="dense")
    model = keras.Sequential([keras.layers.Input((16,)), dense, keras.layers.Activation("linear", dtype="float32")])
    # Two pairs of values that half precision cannot tell apart: only float32 ranks the later one higher.
    column = np.tile(np.float32([1.0, 1.0 + 1e-5, 1.0 + 2e-5, 1.0 + 3e-5]), 4)
    dense.kernel.assign(np.tile(column[:, None], (1, 8)))
    pruned = prune(compiled(model, keras))
    np.testing.assert_array_equal(pruned.masks["dense"].numpy()[:4, 0], [False, False, True, True])
    model.fit(*batch(model), batch_size=4, verbose=0, callbacks=[check_every_batch(keras, pruned)])
    assert underlying_variable(dense.kernel).dtype == "float32"


def test_a_users_own_constraint_still_holds_and_comes_back(keras):
    own = keras.constraints.MaxNorm(0.3)
    dense = keras.layers.Dense(8, kernel_constraint=own, name="dense")
    model = compiled(keras.Sequential([keras.layers.Input((16,)), dense]), keras)
    pruned = prune(model)
    model.fit(*batch(model), verbose=0)
    assert_sparse(pruned)
    kernel = np.asarray(pruned.report and weights(model)["dense"])
    assert np.linalg.norm(kernel, axis=0).max() <= 0.3 + 1e-5
    pruned.remove()
    assert dense.kernel.constraint is own


def test_permutation_comes_first_and_keeps_more_magnitude(keras):
    keras.utils.set_random_seed(0)
    model, twin = functional(keras), functional(keras)
    twin.set_weights(model.get_weights())
    dense = weights(model)
    report = tfmot_asp.permute(twin, **FAST)
    pruned = prune(model, permute=FAST)
    assert pruned.permutation.groups == report.groups
    for name, value in weights(twin).items():
        mask = pruned.masks[name].numpy() if name in pruned.masks else True
        np.testing.assert_array_equal(weights(model)[name], np.where(mask, value, 0))
    kept = sum(np.abs(weights(model)[name]).sum() for name in pruned.masks)
    assert kept > sum(masks.retained_magnitude(dense[name], axis) for name, axis in (("conv", 2), ("head", 0)))


def test_remove_leaves_sparse_weights_that_train_densely(keras):
    model = compiled(sequential(keras), keras)
    pruned = prune(model)
    model.fit(*batch(model), verbose=0)
    pruned.remove()
    assert_sparse(pruned)
    assert all(mask_of(layer.kernel) is None for layer in model.layers)
    pruned.remove()
    model.fit(*batch(model), verbose=0)
    assert pruned.report.sparse == 0


def test_dense_weights_set_after_pruning_are_masked_by_the_next_step_or_at_once(keras):
    model = compiled(sequential(keras), keras)
    pruned = prune(model)
    dense = [np.ones_like(w) for w in model.get_weights()]
    model.set_weights(dense)
    model.train_on_batch(*batch(model))
    assert_sparse(pruned)
    model.set_weights(dense)
    assert pruned.report.sparse == 0
    pruned.apply_masks()
    assert_sparse(pruned)


def test_update_masks_takes_new_weights_and_other_scores():
    model = mlp()
    pruned = prune(model)
    first = {name: mask.numpy() for name, mask in pruned.masks.items()}
    pruned.update_masks()
    assert all(np.array_equal(first[name], mask.numpy()) for name, mask in pruned.masks.items())
    new = [np.random.default_rng(1).standard_normal(w.shape).astype(np.float32) for w in model.get_weights()]
    model.set_weights(new)
    pruned.update_masks()
    np.testing.assert_array_equal(pruned.masks["first"].numpy(), masks.m_by_n_mask(np.abs(new[0]), 0))
    with pytest.warns(UserWarning, match="keep were set to zero by pruning.*prune_trained_model\\(model, scores"):
        pruned.update_masks(lambda kernel: -np.arange(np.prod(kernel.shape)).reshape(kernel.shape))
    np.testing.assert_array_equal(pruned.masks["first"].numpy()[:4, 0], [True, True, False, False])
    assert_sparse(pruned)
    before = weights(model)
    with pytest.raises(ValueError, match=r"scores of 'first' have shape \(3,\), its kernel has shape \(16, 32\)"):
        pruned.update_masks(lambda kernel: np.ones(3))
    assert all(np.array_equal(before[name], value) for name, value in weights(model).items())


def test_a_kept_weight_that_becomes_zero_keeps_its_place():
    model = mlp()
    pruned = prune(model)
    mask = pruned.masks["first"].numpy()
    model.layers[0].kernel.assign(np.zeros((16, 32), np.float32))
    pruned.update_masks()
    np.testing.assert_array_equal(pruned.masks["first"].numpy(), mask)


def test_frozen_layers_a_learning_rate_of_zero_and_empty_batches(keras):
    model = sequential(keras)
    model.layers[0].trainable = False
    compiled(model, keras, keras.optimizers.SGD(0.0))
    before = weights(model)
    pruned = prune(model)
    model.fit(*batch(model), verbose=0)
    assert_sparse(pruned)
    for name, mask in pruned.masks.items():
        np.testing.assert_array_equal(weights(model)[name], np.where(mask.numpy(), before[name], 0))
    x, y = batch(model, count=0)
    optimizer = keras.optimizers.SGD(0.1)
    with tf.GradientTape() as tape:
        value = tf.reduce_sum(model(x)) + 0.0 * tf.reduce_sum(tf.cast(y, tf.float32))
    variables = model.trainable_variables
    optimizer.apply_gradients(zip(tape.gradient(value, variables), variables, strict=True))
    assert_sparse(pruned)


def test_a_run_resumed_from_a_checkpoint_goes_on_to_the_bit(keras, tmp_path):
    def start():
        keras.utils.set_random_seed(0)
        model = compiled(sequential(keras), keras, keras.optimizers.Adam(0.01))
        model.optimizer.build(model.trainable_variables)
        pruned = prune(model)
        return model, pruned, tf.train.Checkpoint(model=model, optimizer=model.optimizer, masks=pruned)

    def train(model, seeds):
        for seed in seeds:
            model.train_on_batch(*batch(model, seed=seed))
        return weights(model)

    model, pruned, checkpoint = start()
    train(model, range(2))
    model.layers[0].kernel.assign(0 * np.asarray(weights(model)["first"]))  # no mask can be read off these weights
    path = checkpoint.save(str(tmp_path / "run"))
    expected = train(model, range(2, 4))

    model, other, checkpoint = start()
    with pytest.warns(UserWarning, match="were set to zero by pruning"):
        other.update_masks(lambda kernel: np.arange(np.prod(kernel.shape)).reshape(kernel.shape))
    checkpoint.restore(path).assert_consumed()
    for name, mask in pruned.masks.items():
        np.testing.assert_array_equal(other.masks[name].numpy(), mask.numpy())
    for name, value in train(model, range(2, 4)).items():
        np.testing.assert_array_equal(value, expected[name])


@pytest.mark.parametrize("form", ["model.keras", "model.h5", "only.weights.h5"])
def test_saved_models_hold_sparse_weights_and_resume_with_the_same_masks(keras, form, tmp_path):
    model = compiled(sequential(keras), keras)
    pruned = prune(model)
    model.fit(*batch(model), batch_size=4, verbose=0)
    path = str(tmp_path / form)
    if "weights" in form:
        model.save_weights(path)
        loaded = compiled(sequential(keras), keras)
        loaded.load_weights(path)
    else:
        model.save(path)
        loaded = keras.models.load_model(path)
    again = prune(loaded)
    for mine, theirs in zip(pruned.masks.values(), again.masks.values(), strict=True):
        np.testing.assert_array_equal(mine.numpy(), theirs.numpy())
    for mine, theirs in zip(model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_permuting_or_wrapping_or_pruning_a_model_that_is_being_pruned_is_refused(keras):
    model = sequential(keras)
    pruned = prune(model)
    before = weights(model)
    with pytest.raises(
        ValueError, match="'first' is being pruned already: permuting now would move weights from under"
    ):
        tfmot_asp.permute(model)
    with pytest.raises(ValueError, match=r"kernel of 'first' has a mask already.*its remove\(\) first"):
        prune(model)
    assert all(np.array_equal(before[name], value) for name, value in weights(model).items())
    pruned.remove()
    prune(model)
    wrapped = tfmot_asp.prune_low_magnitude(mlp(), permute=False)
    with pytest.raises(ValueError, match=r"'.*first' is wrapped for pruning already"):
        prune(wrapped)


def with_nan(keras):
    model = sequential(keras)
    model.layers[1].kernel.assign(np.full((32, 8), np.nan, np.float32))
    return model


def small(keras):
    return keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(5, name="five")])


ERRORS = {
    "a string": (
        lambda keras: "model",
        {},
        TypeError,
        "takes a model or layer of tf_keras or Keras 3, got a str: model",
    ),
    "unbuilt": (
        lambda keras: keras.Sequential([keras.layers.Dense(8)]),
        {},
        ValueError,
        "is not built, so its kernels",
    ),
    "NaN": (with_nan, {}, ValueError, "the weights of 'second' hold 256 NaN or infinite values out of 256"),
    "nothing": (small, {}, ValueError, "(?s)has no layer to prune.*'five' has 3 input features"),
    "policy": (sequential, {"policy": "all"}, TypeError, "policy must have a method why.*got 'all'"),
    "permute": (sequential, {"permute": "yes"}, TypeError, "permute must be True, False or a mapping.*'yes'"),
    "pattern": (sequential, {"sparsity_m_by_n": (4, 2)}, ValueError, r"0 < zeros < block.*got \(4, 2\)"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_bad_input_is_named(keras, case):
    make, options, error, match = ERRORS[case]
    thing = make(keras)
    with pytest.raises(error, match=match):
        prune(thing, **options)


def test_an_interrupted_search_leaves_no_trace(keras, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("tfmot_asp.permutation.pipeline.search_many", interrupt)
    model = sequential(keras)
    before = weights(model)
    with pytest.raises(KeyboardInterrupt):
        prune(model, permute=True)
    assert all(np.array_equal(before[name], value) for name, value in weights(model).items())
    assert all(mask_of(layer.kernel) is None for layer in model.layers)


def test_policies_are_followed(keras):
    model = sequential(keras)
    pruned = prune(model, policy=tfmot_asp.SparseTensorCoreRule(skip=model.layers[1]))
    assert list(pruned.masks) == ["first"]
    assert "1 of 1 prunable" in str(pruned.report)
    assert repr(pruned).endswith(": 1 kernels are 2:4>")


def test_tfmots_policies_are_followed():
    model = convnet()
    pruned = prune(model, policy=tfmot_asp.PruneForSparseTensorCores(skip=model.get_layer("fc")))
    assert list(pruned.masks) == ["conv", "head"]


def test_two_layers_that_sum_over_different_axes_of_one_kernel_are_refused():
    class Transposed(tf_keras.layers.EinsumDense):
        def build(self, shape):
            super().build(shape)
            self.kernel = tied.kernel

    tied = tf_keras.layers.Dense(16, name="tied")
    x = tf_keras.layers.Input((16,))
    model = tf_keras.Model(x, Transposed("ab,cb->ac", 16, name="back")(tied(x)))
    policy = tfmot_asp.SparseTensorCoreRule(kinds=("Dense", "EinsumDense"))
    with pytest.raises(ValueError, match="'tied' and 'back' share a kernel, but sum over different axes of it"):
        prune(model, policy=policy)


def test_tfmot_is_not_imported():
    code = """
        import sys, numpy as np, keras, tfmot_asp
        model = keras.Sequential([keras.layers.Input((16,)), keras.layers.Dense(16), keras.layers.Dense(8)])
        model.compile("sgd", "mse")
        pruned = tfmot_asp.prune_trained_model(model, permute={"effort": "fast", "progress": False})
        model.fit(np.ones((4, 16)), np.ones((4, 8)), verbose=0)
        assert pruned.report.sparse == 2
        assert keras.__version__.startswith("3"), keras.__version__
        print("tensorflow_model_optimization" in sys.modules)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "False", done.stderr[-3000:]


def test_the_report_is_for_the_shapes_that_the_model_was_permuted_at():
    class Any(tf_keras.Model):
        def __init__(self):
            super().__init__()
            self.wide, self.narrow = tf_keras.layers.Dense(32), tf_keras.layers.Dense(16)

        def call(self, x):
            return self.narrow(tf.nn.relu(self.wide(x)))

    model = Any()
    model.wide.build((None, 16))
    model.narrow.build((None, 32))
    model.built = True
    pruned = tfmot_asp.prune_trained_model(model, permute={"input_shapes": (None, 48, 16)})
    assert pruned.report.input_shapes == ((1, 48, 16),)
    pruned.remove()
    assert pruned.report.input_shapes == ((1, 48, 16),)
