"""AspOptimizerWrapperV2: TF-ASP's interface, its log lines, and the pattern after every step."""

import contextlib
import logging
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from tf_keras import layers

import tfmot_asp
from tests import dtypes
from tests.small_models import convnet, data, mlp
from tfmot_asp import masks
from tfmot_asp.training.tf_asp.optimizers import AspOptimizerWrapperV2

legacy, current = tf_keras.optimizers.legacy, tf_keras.optimizers
OPTIMIZERS = {
    "legacy SGD": lambda: legacy.SGD(0.1, momentum=0.9),
    "legacy Adam": lambda: legacy.Adam(0.01),
    "SGD": lambda: current.SGD(0.1, momentum=0.9),
    "AdamW": lambda: current.AdamW(0.01, weight_decay=0.1),
    "average": lambda: current.Adam(0.01, use_ema=True),
    "clip": lambda: legacy.SGD(0.1, clipnorm=0.5),
}
BOTH = ("legacy SGD", "SGD")


def wrap(optimizer, model, **options):
    options.setdefault("permute", False)
    return AspOptimizerWrapperV2(OPTIMIZERS.get(optimizer, lambda: optimizer)(), model, **options)


def is_sparse(model, names=("first", "second")):
    return all(masks.violations(model.get_layer(name).kernel.numpy(), 0) == 0 for name in names)


class Check(tf_keras.callbacks.Callback):
    batches = 0

    def on_train_batch_end(self, batch, logs=None):
        assert is_sparse(self.model)
        self.batches += 1


def fit(model, optimizer, count=16, epochs=1, **mode):
    model.compile(optimizer, "mse", **mode)
    x, _ = data(model, count)
    check = Check()
    y = np.random.default_rng(1).standard_normal((count, 8)).astype(np.float32)
    history = model.fit(x, y, batch_size=4, verbose=0, shuffle=False, callbacks=[check], epochs=epochs)
    assert check.batches == epochs * count // 4
    return history.history["loss"]


@contextlib.contextmanager
def tensorflow_log(level):
    records = []
    handler = logging.Handler()
    handler.emit = records.append
    logger, before = tf.get_logger(), tf.get_logger().level
    logger.addHandler(handler)
    logger.setLevel(level)
    try:
        yield records
    finally:
        logger.setLevel(before)
        logger.removeHandler(handler)


def logged(level, model, **options):
    with tensorflow_log(level) as records:
        wrap("legacy SGD", model, permute=True, padding=True, search_device="CPU", search_time_limit=5, **options)
    return [(record.levelno, record.getMessage()) for record in records]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_fit_keeps_the_pattern_after_every_step(optimizer):
    model = mlp()
    wrapped = wrap(optimizer, model)
    base = legacy.Optimizer if "legacy" in optimizer or optimizer == "clip" else current.Optimizer
    assert isinstance(wrapped, base)
    assert isinstance(wrapped, AspOptimizerWrapperV2)
    fit(model, wrapped)
    assert is_sparse(model)
    assert int(wrapped.iterations) == 4
    assert tfmot_asp.check_pruned_layers(model) == (2, 2)


@pytest.mark.parametrize("mode", [{"run_eagerly": True}, {"jit_compile": True}])
@pytest.mark.parametrize("optimizer", BOTH)
def test_every_mode_of_fit_keeps_the_pattern(optimizer, mode):
    model = mlp()
    fit(model, wrap(optimizer, model), **mode)


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize("optimizer", BOTH)
def test_the_first_step_updates_dense_weights_and_masks_by_what_they_were(optimizer, traced):
    model = mlp()
    wrapped = wrap(optimizer, model)
    x, _ = data(model)
    kernel = model.get_layer("first").kernel
    before = kernel.numpy()
    np.testing.assert_array_equal(wrapped.get_slot(kernel, "mask"), 1)

    def step():
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(model(x) ** 2)
        gradients = tape.gradient(loss, model.trainable_variables)
        wrapped.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return gradients[0]

    run = tf.function(step) if traced else step
    gradient = run().numpy()
    mask = masks.m_by_n_mask(np.abs(before), 0)
    np.testing.assert_allclose(kernel.numpy(), np.where(mask, before - 0.1 * gradient, 0), rtol=1e-5, atol=1e-7)
    first = wrapped.get_slot(kernel, "mask").numpy()
    np.testing.assert_array_equal(first, mask)
    assert first.dtype == np.float32
    assert float(tf.reduce_sum(wrapped.get_slot(kernel, "mask"))) == mask.sum()
    kernel.assign(np.ones_like(before) * mask[::-1])  # frozen: what the weights become changes no mask
    run()
    np.testing.assert_array_equal(wrapped.get_slot(kernel, "mask"), mask)
    np.testing.assert_array_equal(kernel.numpy()[~mask], 0)


def test_masks_take_one_byte_per_weight_and_momentum_is_the_inner_optimizers():
    model = mlp()
    wrapped = wrap("legacy SGD", model)
    fit(model, wrapped)
    kernel, bias = model.get_layer("first").kernel, model.get_layer("first").bias
    assert {mask.dtype for mask in wrapped._asp.masks.values()} == {tf.bool}
    assert wrapped.get_slot(kernel, "momentum") is wrapped.inner_optimizer.get_slot(kernel, "momentum")
    with pytest.raises(KeyError, match=r"'first/bias:0' is not pruned.*first, second"):
        wrapped.get_slot(bias, "mask")


def test_hyperparameters_and_iterations_are_the_inner_optimizers():
    inner = legacy.Adam(0.2)
    wrapped = AspOptimizerWrapperV2(inner, mlp(), permute=False, padding=True)
    for name in inner._hyper:
        assert getattr(inner, name) == getattr(wrapped, name)
        assert name in dir(wrapped)
    wrapped.beta_1 = 0.5
    inner.beta_2 = 0.6
    assert (inner.beta_1, wrapped.beta_2) == (0.5, 0.6)
    for name in ("lr", "learning_rate"):
        setattr(wrapped, name, 0.3)
        assert wrapped.lr == wrapped.learning_rate == inner.lr == wrapped._hyper["learning_rate"] == 0.3
        inner.lr = 0.1
        assert wrapped.lr == wrapped.learning_rate == 0.1
    assert hasattr(inner, "epsilon")
    assert not hasattr(wrapped, "epsilon")
    assert wrapped.iterations is inner.iterations
    wrapped.clipnorm = 2.0
    assert inner.clipnorm == wrapped.clipnorm == 2.0


def test_attributes_of_current_optimizers_are_the_inner_optimizers():
    inner = current.Adam(0.2)
    wrapped = AspOptimizerWrapperV2(inner, mlp(), permute=False)
    wrapped.learning_rate = 0.5
    assert float(inner.learning_rate) == float(wrapped.lr) == 0.5
    wrapped.lr = 0.25
    wrapped.beta_1 = 0.5
    wrapped.clipnorm = 2.0
    assert (float(inner.learning_rate), inner.beta_1, inner.clipnorm) == (0.25, 0.5, 2.0)
    assert wrapped.iterations is inner.iterations
    assert wrapped.inner_optimizer is inner
    with pytest.raises(AttributeError, match="nonsense"):
        _ = wrapped.nonsense


@pytest.mark.parametrize("optimizer", ["legacy Adam", "AdamW"])
def test_learning_rate_schedules_and_callbacks_work(optimizer):
    model = mlp()
    wrapped = wrap(optimizer, model)
    model.compile(wrapped, "mse")
    x, _ = data(model)
    schedule = tf_keras.callbacks.LearningRateScheduler(lambda epoch, rate: 0.5 / (epoch + 1))
    model.fit(x, np.ones((32, 8)), epochs=2, verbose=0, callbacks=[schedule])
    assert float(wrapped.inner_optimizer.learning_rate) == 0.25


@pytest.mark.parametrize("optimizer", BOTH)
@pytest.mark.parametrize("inputs", [125, 126, 127])
def test_padding_prunes_dense_layers_of_any_input_size(inputs, optimizer):
    model = mlp(inputs)
    fit(model, wrap(optimizer, model, padding=True))
    kernel = model.get_layer("first").kernel.numpy()
    assert np.count_nonzero(kernel) == 32 * (124 // 2 + min(2, inputs - 124))
    without = mlp(inputs)
    assert list(wrap(optimizer, without)._asp.masks) == ["second"]


@pytest.mark.parametrize("dynamic", [True, False])
@pytest.mark.parametrize("optimizer", BOTH)
def test_a_loss_scale_optimizer_around_it(optimizer, dynamic):
    model = mlp()
    wrapped = wrap(optimizer, model)
    scaled = tf_keras.mixed_precision.LossScaleOptimizer(
        wrapped, dynamic=dynamic, initial_scale=None if dynamic else 128.0
    )
    fit(model, scaled)
    assert int(scaled.iterations) == int(wrapped.iterations) == 4
    mask = (scaled if "legacy" in optimizer else wrapped).get_slot(model.get_layer("first").kernel, "mask")
    assert float(tf.reduce_mean(mask)) == 0.5


def test_a_step_that_overflows_is_not_the_first_step():
    model = mlp()
    wrapped = wrap("SGD", model)
    scaled = tf_keras.mixed_precision.LossScaleOptimizer(wrapped)
    gradients = [tf.fill(v.shape, np.inf) for v in model.trainable_variables]
    before = model.get_layer("first").kernel.numpy()
    scaled.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
    np.testing.assert_array_equal(model.get_layer("first").kernel.numpy(), before)
    assert not bool(wrapped._asp.computed)


@pytest.mark.parametrize("optimizer", BOTH)
def test_mixed_precision_takes_masks_from_the_stored_weights(optimizer):
    with dtypes.policy("mixed_float16"):
        model = mlp()
        wrapped = wrap(optimizer, model)
        # Two pairs of values that float16 cannot tell apart: only float32 ranks the later one higher.
        column = np.tile(np.float32([1.0, 1.0 + 1e-5, 1.0 + 2e-5, 1.0 + 3e-5]), 4)
        model.get_layer("first").kernel.assign(np.tile(column[:, None], (1, 32)))
        fit(model, tf_keras.mixed_precision.LossScaleOptimizer(wrapped, dynamic=False, initial_scale=2.0))
    mask = wrapped.get_slot(model.get_layer("first").kernel, "mask").numpy()
    np.testing.assert_array_equal(mask[:4, 0], [0, 0, 1, 1])


@pytest.mark.parametrize("optimizer", ["legacy Adam", "AdamW"])
def test_a_run_resumed_from_a_checkpoint_goes_on_to_the_bit(optimizer, tmp_path):
    def start():
        tf_keras.utils.set_random_seed(0)
        model = mlp()
        wrapped = wrap(optimizer, model)
        model.compile(wrapped, "mse")
        return model, wrapped, tf.train.Checkpoint(model=model, optimizer=wrapped)

    def train(model, seeds):
        for seed in seeds:
            x, _ = data(model, seed=seed)
            model.train_on_batch(x, np.ones((32, 8)))
        return [w.numpy() for w in model.weights]

    model, wrapped, checkpoint = start()
    train(model, range(2))
    model.get_layer("first").kernel.assign(tf.zeros((16, 32)))  # no mask can be read off these weights
    path = checkpoint.save(str(tmp_path / "run"))
    expected = train(model, range(2, 4))
    model, other, checkpoint = start()
    status = checkpoint.restore(path)
    resumed = train(model, range(2, 4))
    status.assert_consumed()
    for mine, theirs in zip(resumed, expected, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert int(other.iterations) == int(wrapped.iterations) == 4


@pytest.mark.parametrize("optimizer", BOTH)
@pytest.mark.parametrize("form", ["model.keras", "model.h5", "saved_model"])
def test_a_compiled_model_loads_with_the_inner_optimizer(optimizer, form, tmp_path):
    model = mlp()
    wrapped = wrap(optimizer, model)
    fit(model, wrapped)
    path = str(tmp_path / form)
    model.save(path)
    with tensorflow_log(30) as records:
        loaded = tf_keras.models.load_model(path)
    assert any("an optimizer's config holds no model" in record.getMessage() for record in records)
    assert type(loaded.optimizer) is type(wrapped.inner_optimizer)
    again = AspOptimizerWrapperV2(loaded.optimizer, loaded, permute=False)
    fit(loaded, again)
    for name in ("first", "second"):
        ours, theirs = model.get_layer(name).kernel, loaded.get_layer(name).kernel
        np.testing.assert_array_equal(wrapped.get_slot(ours, "mask"), again.get_slot(theirs, "mask"))


@pytest.mark.parametrize("optimizer", BOTH)
def test_the_config_is_the_inner_optimizers(optimizer):
    wrapped = wrap(optimizer, mlp())
    config = tf_keras.optimizers.serialize(wrapped)
    again = tf_keras.optimizers.deserialize(config, use_legacy_optimizer="legacy" in optimizer)
    assert type(again) is type(wrapped.inner_optimizer)
    assert again.get_config() == wrapped.inner_optimizer.get_config()
    assert list(wrapped.get_config()) == ["optimizer"]


def sequential():
    uniform = dict.fromkeys(
        ["beta_initializer", "gamma_initializer", "moving_mean_initializer", "moving_variance_initializer"], "uniform"
    )
    return tf_keras.Sequential(
        [
            layers.Input((8, 8, 16)),
            layers.Conv2D(32, 3, padding="same", name="conv1"),
            layers.BatchNormalization(name="batch_norm1", **uniform),
            layers.ReLU(name="relu1"),
            layers.Conv2D(32, 3, padding="same", use_bias=False, name="conv2"),
        ],
        name="sequential",
    )


def test_permutation_lines_are_tf_asps():
    lines = logged(tfmot_asp.SHOW_PERMUTATION_MORE_INFO, sequential())
    assert [(level, line.partition(" (")[0].partition(",")[0]) for level, line in lines] == [
        (28, "[TF-ASP] Permute-Siblings: sequential/conv2/Conv2D"),
        (28, "[TF-ASP] Permute-C: node_name=sequential/conv2/Conv2D"),
        (28, "[TF-ASP] Permute-K: node_name=sequential/conv1/Conv2D"),
        (28, "[TF-ASP] Permute-K: node_name=sequential/conv1/BiasAdd"),
        (28, "[TF-ASP] Permute-K: node_name=sequential/batch_norm1/FusedBatchNormV3"),
        (29, "[TF-ASP] 1/2 variables"),
    ]
    assert lines[-1][1] == "[TF-ASP] 1/2 variables (Conv2D or MatMul) are permuted!"


def test_levels_choose_how_much_is_said():
    levels = (
        tfmot_asp.SHOW_PRUNING_INFO,
        tfmot_asp.SHOW_PERMUTATION_INFO,
        tfmot_asp.SHOW_PERMUTATION_MORE_INFO,
        tfmot_asp.SHOW_PERMUTATION_DEBUG_INFO,
    )
    assert levels == (30, 29, 28, 10)
    assert logged(30, sequential()) == []
    assert len(logged(29, sequential())) == 1
    debug = [line for level, line in logged(10, sequential()) if level == 10 and "DEBUG" in line]
    assert any("DEBUG permutation of sequential/conv2/Conv2D: [" in line for line in debug)
    assert any("DEBUG conv1 (Conv2D) fixed" in line for line in debug)


def test_siblings_share_a_line():
    x = layers.Input((8, 8, 16))
    conv = {
        name: layers.Conv2D(32, 3, padding="same", activation="relu", name=name)
        for name in ("conv1_1", "conv1_2", "conv1_3", "conv2_1", "conv2_2", "conv3_1", "conv3_2", "conv4_1", "conv4_2")
    }
    y12 = conv["conv1_2"](conv["conv1_1"](x))
    y1 = layers.Add(name="add1")([y12, conv["conv1_3"](y12)])
    y22 = conv["conv2_2"](conv["conv2_1"](x))
    y2 = layers.Add(name="add2")([y22, conv["conv3_2"](conv["conv3_1"](y22)), y1])
    model = tf_keras.Model(x, conv["conv4_2"](conv["conv4_1"](y2)), name="model")
    lines = [line for _, line in logged(28, model) if "Permute-Siblings" in line]
    groups = {frozenset(line.split("Siblings: ")[1].split(" ")[0].split(",")) for line in lines}
    expected = [["conv2_2"], ["conv1_2"], ["conv1_3", "conv4_1", "conv3_1"], ["conv3_2"], ["conv4_2"]]
    assert groups == {frozenset(f"model/{name}/Conv2D" for name in group) for group in expected}


class Subclassed(tf_keras.Model):
    def __init__(self, name="subclassed"):
        super().__init__(name=name)
        self.conv1 = layers.Conv2D(32, 3, padding="same", use_bias=False, name="conv1")
        self.norm = layers.BatchNormalization(name="norm")
        self.conv2 = layers.Conv2D(32, 3, padding="same", use_bias=False, name="conv2")

    def call(self, x):
        return self.conv2(self.norm(self.conv1(x)))


@pytest.mark.parametrize("shapes", [(None, 12, 12, 16), [(None, 12, 12, 16)], tf.TensorSpec((None, 12, 12, 16))])
def test_subclassed_models_take_input_shapes(shapes):
    model = Subclassed()
    model.build((None, 12, 12, 16))
    lines = " ".join(line for _, line in logged(28, model, input_shapes=shapes))
    assert "Permute-C: node_name=subclassed/conv2/Conv2D" in lines
    assert "Permute-K: node_name=subclassed/norm/FusedBatchNormV3" in lines


def test_clashing_names_do_not_confuse_it():
    """TF-ASP told variables apart by names and skipped these."""
    first = tf_keras.Sequential([layers.Conv2D(64, 3, name="c/conv2d_1", input_shape=(12, 12, 16))], name="a/b")
    second = tf_keras.Sequential([layers.Conv2D(16, 3, name="b/c/conv2d_1", input_shape=(10, 10, 64))], name="a")
    lines = logged(29, tf_keras.Sequential([layers.Input((12, 12, 16)), first, second], name="n"))
    assert lines == [(29, "[TF-ASP] 1/2 variables (Conv2D or MatMul) are permuted!")]


def test_graphs_that_tf_asp_refused_are_permuted_and_compute_the_same():
    """A reshape that leaves the channels alone, and a consumer that is not permuted."""
    x = layers.Input((8, 8, 16))
    y = layers.Conv2D(16, 3, padding="same", name="conv1")(x)
    y = layers.Reshape((4, 16, 16))(y)
    y = layers.Concatenate()([layers.Conv2D(16, 3, padding="same", name="conv2")(y), y])
    model = tf_keras.Model(x, layers.Dense(8, name="head")(layers.Flatten()(y)))
    images = np.random.default_rng(0).standard_normal((4, 8, 8, 16)).astype(np.float32)
    expected = model.predict(images, verbose=0)
    assert logged(29, model) == [(29, "[TF-ASP] 2/3 variables (Conv2D or MatMul) are permuted!")]
    np.testing.assert_allclose(model.predict(images, verbose=0), expected, atol=1e-5 * np.abs(expected).max())


def test_wrapping_again_keeps_the_masks_in_force():
    model = mlp()
    fit(model, wrap("legacy SGD", model))
    kernel = model.get_layer("first").kernel
    before = kernel.numpy()
    with tensorflow_log(29) as records:
        again = wrap("SGD", model, permute=True)
    assert [record.getMessage() for record in records] == [
        "[TF-ASP] model mlp is pruned already; it keeps its order of channels",
        "[TF-ASP] 0/2 variables (Conv2D or MatMul) are permuted!",
    ]
    np.testing.assert_array_equal(kernel.numpy(), before)
    fit(model, again)
    np.testing.assert_array_equal(again.get_slot(kernel, "mask"), before != 0)


def test_wrapping_again_before_the_first_step_permutes_again():
    model = mlp()
    wrap("SGD", model)
    lines = logged(29, model)
    assert lines == [(29, "[TF-ASP] 1/2 variables (Conv2D or MatMul) are permuted!")]
    fit(model, wrap("SGD", model))
    with pytest.raises(ValueError, match="'first' is being pruned already"):
        tfmot_asp.permute(model)


def test_weights_loaded_after_wrapping_are_what_masks_come_from():
    model = mlp()
    wrapped = wrap("SGD", model)
    loaded = [np.random.default_rng(3).standard_normal(w.shape).astype(np.float32) for w in model.get_weights()]
    model.set_weights(loaded)
    fit(model, wrapped)
    mask = wrapped.get_slot(model.get_layer("first").kernel, "mask")
    np.testing.assert_array_equal(mask, masks.m_by_n_mask(np.abs(loaded[0]), 0))


def test_an_optimizer_that_has_trained_already_masks_at_its_next_step():
    model = mlp()
    inner = OPTIMIZERS["legacy Adam"]()
    model.compile(inner, "mse")
    model.fit(data(model)[0], np.ones((32, 8)), verbose=0)
    fit(model, AspOptimizerWrapperV2(inner, model, permute=False))
    assert is_sparse(model)


def test_a_model_with_nothing_to_prune_trains_and_says_so():
    model = tf_keras.Sequential([layers.Input((3,)), layers.Dense(5)], name="tiny")
    with tensorflow_log(30) as records:
        wrapped = wrap("SGD", model, permute=True)
    assert "model tiny has no layer to prune" in records[-1].getMessage()
    model.compile(wrapped, "mse")
    model.fit(np.ones((4, 3)), np.ones((4, 5)), verbose=0)


def test_search_arguments_are_translated(monkeypatch, tmp_path):
    calls = []
    pipeline = sys.modules["tfmot_asp.permutation.pipeline"]
    real = pipeline.permute

    def spy(*args, **kwargs):
        calls.append(kwargs)
        return real(*args, **{**kwargs, "plot_to_file": None})

    monkeypatch.setattr(pipeline, "permute", spy)
    for device, plot in (("GPU", None), ("CPU", str(tmp_path / "picture")), ("CPU", str(tmp_path / "a.dot"))):
        wrap("SGD", mlp(), permute=True, search_device=device, plot_to_file=plot)
    assert [call["device"] for call in calls] == ["auto", "cpu", "cpu"]
    assert [call["plot_to_file"] for call in calls] == [None, str(tmp_path / "picture.png"), str(tmp_path / "a.dot")]


def test_the_picture_is_drawn(tmp_path):
    wrap("SGD", convnet(), permute=True, plot_to_file=str(tmp_path / "model.dot"))
    assert "conv" in (tmp_path / "model.dot").read_text()


def keras3():
    return pytest.importorskip("keras", minversion="3")


ERRORS = {
    "no model": (current.SGD, lambda: None, {}, "model must be a tf_keras model, got a NoneType"),
    "a Keras 3 model": (
        current.SGD,
        lambda: keras3().Sequential([keras3().layers.Input((16,)), keras3().layers.Dense(8)]),
        {},
        "got a Sequential; for Keras 3, use tfmot_asp.prune_trained_model",
    ),
    "unbuilt": (current.SGD, lambda: tf_keras.Sequential([layers.Dense(8)], name="later"), {}, "'later' is not built"),
    "device": (current.SGD, mlp, {"search_device": "TPU"}, "search_device must be 'GPU'.*or 'CPU', got 'TPU'"),
    "time": (current.SGD, mlp, {"search_time_limit": 0}, "search_time_limit must be a positive number.*got 0"),
    "a Keras 3 optimizer": (lambda: keras3().optimizers.SGD(), mlp, {}, "For Keras 3, use tfmot_asp.prune_trained"),
    "a name": (lambda: "sgd", mlp, {}, r"got a builtins\.str"),
    "loss scale inside": (
        lambda: tf_keras.mixed_precision.LossScaleOptimizer(current.SGD()),
        mlp,
        {},
        r"wrap the other way round, LossScaleOptimizer.*\(AspOptimizerWrapperV2",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_bad_input_is_named(case):
    optimizer, model, options, match = ERRORS[case]
    with pytest.raises(ValueError, match=match):
        AspOptimizerWrapperV2(optimizer(), model(), **options)


def test_a_tf_asp_script_runs_with_its_import_changed():
    code = """
        import tensorflow as tf
        import tfmot_asp as tf_asp
        from tensorflow.keras import layers, optimizers

        model = tf.keras.Sequential()
        model.add(layers.Conv2D(32, (3, 3), padding="same", input_shape=(8, 8, 16)))
        model.add(layers.ReLU())
        model.add(layers.Conv2D(32, (3, 3)))
        opt = optimizers.legacy.SGD(learning_rate=0.2, momentum=1.0)
        opt = tf_asp.AspOptimizerWrapperV2(opt, model, padding=True)

        @tf.function
        def train_step(x):
            with tf.GradientTape(persistent=True) as tape:
                loss = tf.reduce_mean(model(x))
            grads = tape.gradient(loss, model.variables)
            opt.apply_gradients(zip(grads, model.variables))

        for _ in range(3):
            train_step(tf.random.uniform((4, 8, 8, 16)))
        print(tf_asp.check_pruned_layers(model, show_all=True, check_structured=True))
        import sys
        print("tensorflow_model_optimization" in sys.modules)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "TF_USE_LEGACY_KERAS": "1"},
    )
    assert done.stdout.split("\n")[:2] == ["(2, 2)", "False"], done.stderr[-3000:]


@pytest.mark.parametrize("optimizer", BOTH)
def test_frozen_layers_a_learning_rate_of_zero_and_empty_batches(optimizer):
    model = mlp()
    model.get_layer("first").trainable = False
    before = {name: model.get_layer(name).kernel.numpy() for name in ("first", "second")}
    wrapped = wrap(optimizer, model)
    wrapped.learning_rate = 0.0
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(model(tf.zeros((0, 16))))
    gradients = tape.gradient(loss, model.trainable_variables)
    wrapped.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
    for name, kernel in before.items():
        expected = masks.apply_mask(kernel, masks.m_by_n_mask(np.abs(kernel), 0))
        np.testing.assert_array_equal(model.get_layer(name).kernel.numpy(), expected)


@pytest.mark.parametrize("optimizer", BOTH)
def test_with_data_the_masks_are_those_of_weights_that_were_fitted_to_it(optimizer):
    tf_keras.utils.set_random_seed(0)
    model = mlp()
    x, _ = data(model, 64)
    dense = model.predict(x, verbose=0)
    by_magnitude = tf_keras.models.clone_model(model)
    by_magnitude.set_weights(model.get_weights())
    tfmot_asp.prune_trained_model(by_magnitude)
    wrapped = wrap(optimizer, model, permute=True, search_device="CPU", calibration_data=x)
    lost = [np.abs(one.predict(x, verbose=0) - dense).mean() for one in (by_magnitude, model)]
    assert lost[1] < lost[0]
    fitted = model.get_layer("first").kernel.numpy()
    wrapped.learning_rate = 0.0
    fit(model, wrapped)
    np.testing.assert_array_equal(model.get_layer("first").kernel.numpy(), fitted)
