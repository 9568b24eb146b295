import inspect

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras
from tensorflow_model_optimization.python.core.sparsity.keras import pruning_wrapper
from tf_keras import layers

import tfmot_asp
from tests.small_models import compiled, convnet, data, is_sparse, mlp
from tfmot_asp import masks
from tfmot_asp.training.wrapper import PruneLowMagnitude

ConstantSparsity = tfmot.sparsity.keras.ConstantSparsity
PolynomialDecay = tfmot.sparsity.keras.PolynomialDecay


def wrapped_names(model):
    return [layer.layer.name for layer in model.layers if isinstance(layer, PruneLowMagnitude)]


def test_keywords_that_mean_nothing_are_refused_with_those_that_do():
    with pytest.raises(TypeError, match=r"did you mean 'pruning_policy'\?\)\. It takes pruning_schedule, "):
        tfmot_asp.prune_low_magnitude(mlp(), pruning_polcy=None)
    with pytest.raises(TypeError, match=r"'sparsity'.* policy, calibration_data, and for the wrapper .* name, "):
        tfmot_asp.prune_low_magnitude(layers.Dense(8), sparsity=0.5)
    policy = tfmot_asp.PruneForSparseTensorCores()
    with pytest.raises(TypeError, match="policy and pruning_policy are the same argument"):
        tfmot_asp.prune_low_magnitude(mlp(), policy=policy, pruning_policy=policy)
    assert tfmot_asp.prune_low_magnitude(layers.Dense(8), dtype="float64").dtype == "float64"
    tfmot_asp.prune_low_magnitude(mlp(), name="as tfmot, which ignores it for models", permute=False)


def test_signature_is_tfmots_plus_permute_and_policy():
    theirs = list(inspect.signature(inspect.unwrap(tfmot.sparsity.keras.prune_low_magnitude)).parameters)
    ours = list(inspect.signature(tfmot_asp.prune_low_magnitude).parameters)
    assert ours == [*theirs[:-1], "permute", "policy", "calibration_data", theirs[-1]]


def test_model_gets_wrappers_around_what_the_policy_allows_and_shares_its_layers():
    model = compiled(convnet())
    pruned = tfmot_asp.prune_low_magnitude(model, permute=False)
    assert wrapped_names(pruned) == ["conv", "fc", "head"]
    wrapper = pruned.get_layer("prune_low_magnitude_conv")
    assert isinstance(wrapper, pruning_wrapper.PruneLowMagnitude)
    assert wrapper.layer is model.get_layer("conv")
    assert pruned.get_layer("stem") is model.get_layer("stem")
    assert pruned.optimizer is None


def test_a_policy_of_the_users_own_is_followed():
    class OnlyHead(tfmot.sparsity.keras.PruningPolicy):
        def allow_pruning(self, layer):
            return layer.name == "head"

        def ensure_model_supports_pruning(self, model):
            assert model.name == "convnet"

    assert wrapped_names(tfmot_asp.prune_low_magnitude(convnet(), pruning_policy=OnlyHead(), permute=False)) == ["head"]
    policy = tfmot_asp.PruneForSparseTensorCores(skip=lambda layer: layer.name == "head")
    assert wrapped_names(tfmot_asp.prune_low_magnitude(convnet(), pruning_policy=policy, permute=False)) == [
        "conv",
        "fc",
    ]


def test_permutation_keeps_the_function_and_more_magnitude():
    tf_keras.utils.set_random_seed(0)
    plain, permuted = convnet(), convnet()
    permuted.set_weights(plain.get_weights())
    images, _ = data(plain)
    before = plain.predict(images, verbose=0)
    pruned = tfmot_asp.prune_low_magnitude(permuted, permute={"effort": "fast", "progress": False})
    np.testing.assert_allclose(pruned.predict(images, verbose=0), before, atol=1e-5 * np.abs(before).max())

    def retained(model):
        axes = {"conv": 2, "fc": 0, "head": 0}
        return sum(masks.retained_magnitude(model.get_layer(name).kernel, axis) for name, axis in axes.items())

    assert retained(permuted) > retained(plain)
    assert is_sparse(tfmot_asp.prune_low_magnitude(tfmot_asp.strip_pruning(pruned), permute=False))


def test_permute_gets_its_options_the_policy_and_the_pattern(monkeypatch):
    calls = []
    monkeypatch.setattr("tfmot_asp.permutation.pipeline.permute", lambda *args, **kwargs: calls.append((args, kwargs)))
    model, policy = mlp(), tfmot_asp.PruneForSparseTensorCores()
    tfmot_asp.prune_low_magnitude(model, pruning_policy=policy, sparsity_m_by_n=(1, 4), permute={"seed": 7})
    assert calls == [((model,), {"policy": policy, "sparsity_m_by_n": (1, 4), "seed": 7})]


def test_an_interrupted_permutation_leaves_no_trace(monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("tfmot_asp.permutation.pipeline.permute", interrupt)
    model = mlp()
    with pytest.raises(KeyboardInterrupt):
        tfmot_asp.prune_low_magnitude(model)
    assert all(variable.constraint is None for variable in model.variables)


def test_without_a_pattern_it_is_tfmots_function():
    model = convnet()
    pruned = tfmot_asp.prune_low_magnitude(model, pruning_schedule=ConstantSparsity(0.3, 0), sparsity_m_by_n=None)
    theirs = tfmot.sparsity.keras.prune_low_magnitude(convnet(), pruning_schedule=ConstantSparsity(0.3, 0))
    assert [type(layer) for layer in pruned.layers] == [type(layer) for layer in theirs.layers]
    assert all(type(layer) is not PruneLowMagnitude for layer in pruned.layers)
    block = tfmot_asp.prune_low_magnitude(layers.Dense(8), block_size=(2, 2), sparsity_m_by_n=None)
    assert block.block_size == (2, 2)
    with pytest.raises(ValueError, match="with sparsity_m_by_n=None nothing is permuted"):
        tfmot_asp.prune_low_magnitude(model, sparsity_m_by_n=None, permute={"seed": 1})


def test_layers_and_lists_of_layers_are_wrapped_as_asked_for():
    single = tfmot_asp.prune_low_magnitude(layers.Dense(10, name="ten"), input_shape=(7,))
    assert isinstance(single, PruneLowMagnitude)
    assert tf_keras.Sequential([single]).output_shape == (None, 10)
    stack = tfmot_asp.prune_low_magnitude(
        [layers.InputLayer((8, 8, 3)), layers.Conv2D(16, 3), layers.Flatten(), single, layers.Dense(8)]
    )
    assert [type(layer) for layer in stack] == [layers.InputLayer, *[PruneLowMagnitude] * 4]
    assert stack[3] is single


def test_wrapping_twice_adds_nothing_and_does_not_permute(caplog):
    once = tfmot_asp.prune_low_magnitude(mlp(), permute=False)
    with caplog.at_level("WARNING", "tfmot_asp"):
        twice = tfmot_asp.prune_low_magnitude(once)
    assert "already holds pruning wrappers: it is not permuted" in caplog.text
    assert [layer is other for layer, other in zip(once.layers, twice.layers, strict=True)] == [True, True]


def test_a_layer_in_two_nested_models_gets_one_mask():
    shared = layers.Dense(16, name="shared")
    left = tf_keras.Sequential([layers.Input((16,)), shared], name="left")
    right = tf_keras.Sequential([layers.Input((16,)), shared, layers.Dense(16, name="own")], name="right")
    x = layers.Input((16,))
    pruned = tfmot_asp.prune_low_magnitude(tf_keras.Model(x, right(left(shared(x)))), permute=False)
    found = [layer for layer in pruned._flatten_layers() if isinstance(layer, PruneLowMagnitude)]
    assert sorted(layer.layer.name for layer in found) == ["own", "shared"]


def test_another_wrapper_around_the_same_layer_takes_over_while_it_trains():
    model = mlp()
    first = compiled(tfmot_asp.prune_low_magnitude(model, permute=False))
    second = compiled(tfmot_asp.prune_low_magnitude(model, permute=False))
    x, y = data(model)
    for pruned in (first, second):
        pruned.fit(x, y, verbose=0)
        assert is_sparse(pruned)


class Subclassed(tf_keras.Model):
    def __init__(self):
        super().__init__(name="mine")
        self.fc = layers.Dense(16)

    def call(self, x):
        return self.fc(x)


def subclassed():
    model = Subclassed()
    model(tf.zeros((1, 16)))
    return model


def with_bad_weight(value):
    model = mlp()
    kernel = model.get_layer("second").kernel.numpy()
    kernel[3, 2] = value
    model.get_layer("second").kernel.assign(kernel)
    return model


def keras3_model():
    keras = pytest.importorskip("keras", minversion="3")
    return keras.Sequential([keras.layers.Input((16,)), keras.layers.Dense(16)], name="three")


ERRORS = {
    "a string": (lambda: "model", {}, ValueError, "functional or sequential model, a layer.*got a str: model"),
    "an array": (lambda: np.ones(3), {}, ValueError, "got a ndarray"),
    "a list with an int": (lambda: [3], {}, ValueError, "got a int in the list: 3"),
    "a list with a model": (lambda: [mlp()], {}, ValueError, "list holds the model 'mlp'"),
    "Keras 3": (keras3_model, {}, ValueError, "'three'.*belongs to Keras 3.*TF_USE_LEGACY_KERAS=1"),
    "unbuilt": (lambda: tf_keras.Sequential([layers.Dense(16)], name="later"), {}, ValueError, "'later' is not built"),
    "subclassed": (subclassed, {}, ValueError, "'mine' is a subclassed Subclassed.*prune_trained_model"),
    "NaN": (
        lambda: with_bad_weight(np.nan),
        {},
        ValueError,
        "the weights of 'second' hold 1 NaN or infinite values out of 256",
    ),
    "infinite": (
        lambda: with_bad_weight(-np.inf),
        {},
        ValueError,
        "the weights of 'second' hold 1 NaN or infinite values",
    ),
    "NaN in a layer": (
        lambda: with_bad_weight(np.nan).get_layer("second"),
        {},
        ValueError,
        "the weights of 'second' hold 1 NaN or infinite values",
    ),
    "nothing prunable": (
        lambda: mlp(3, 5, 2),
        {},
        ValueError,
        "(?s)Model 'mlp' has no layer to prune.*'first' has 3 input features.*'second' has 5 input features",
    ),
    "a policy that allows nothing": (
        mlp,
        {"pruning_policy": tfmot.sparsity.keras.PruneForLatencyOnXNNPack()},
        ValueError,
        "Could not find `Conv2D 3x3`",
    ),
    "no policy": (mlp, {"pruning_policy": "all"}, TypeError, "be a tfmot PruningPolicy; got 'all'"),
    "pattern": (mlp, {"sparsity_m_by_n": (4, 2)}, ValueError, r"0 < zeros < block.*got \(4, 2\)"),
    "two patterns": (mlp, {"block_size": (2, 2)}, ValueError, r"block_size=\(2, 2\) and sparsity_m_by_n=2:4 "),
    "no schedule": (mlp, {"pruning_schedule": 0.5}, ValueError, "must be a tfmot PruningSchedule or None, got 0.5"),
    "low constant": (
        mlp,
        {"pruning_schedule": ConstantSparsity(0.3, 0)},
        ValueError,
        r"ConstantSparsity ends at a sparsity of 0.3, but 2:4 is a sparsity of 0.5",
    ),
    "low decay": (mlp, {"pruning_schedule": PolynomialDecay(0, 0.4, 0, 9)}, ValueError, "PolynomialDecay ends at"),
    "permute": (mlp, {"permute": "yes"}, TypeError, "permute must be True, False or a mapping.*'yes'"),
    "an unknown layer": (
        lambda: layers.BatchNormalization.__base__(name="odd"),
        {},
        ValueError,
        "'odd' of type .* has no kernel that is known. Define a method get_prunable_weights",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_bad_input_is_named_and_nothing_changes(case):
    make, options, error, match = ERRORS[case]
    thing = make()
    is_model = isinstance(thing, tf_keras.Model) and thing.built
    before = [weight.copy() for weight in thing.get_weights()] if is_model else []
    with pytest.raises(error, match=match):
        tfmot_asp.prune_low_magnitude(thing, **options)
    if is_model:
        for old, new in zip(before, thing.get_weights(), strict=True):
            np.testing.assert_array_equal(old, new)
        assert all(variable.constraint is None for variable in thing.variables)


def test_an_embedding_has_no_reduction_axis():
    wrapper = tfmot_asp.prune_low_magnitude(layers.Embedding(16, 8, name="table"))
    with pytest.raises(ValueError, match=r"'table' of type Embedding.*no matrix product reads"):
        wrapper(tf.zeros((1, 2), tf.int32))


def test_attention_must_have_been_called():
    wrapper = tfmot_asp.prune_low_magnitude(layers.MultiHeadAttention(2, 8, name="attend"))
    with pytest.raises(ValueError, match="'attend' of type MultiHeadAttention has not been called"):
        wrapper(tf.zeros((1, 3, 16)), value=tf.zeros((1, 3, 16)))


@pytest.mark.parametrize("thing", ["model", None, 3])
def test_strip_pruning_takes_models_only(thing):
    with pytest.raises(ValueError, match="strip_pruning takes a tf_keras model"):
        tfmot_asp.strip_pruning(thing)


def test_stripping_without_training_prunes_once():
    model = mlp()
    kernel = model.get_layer("first").kernel.numpy()
    stripped = tfmot_asp.strip_pruning(tfmot_asp.prune_low_magnitude(model, permute=False))
    expected = masks.apply_mask(kernel, masks.m_by_n_mask(np.abs(kernel), 0))
    np.testing.assert_array_equal(stripped.get_layer("first").kernel.numpy(), expected)
    assert [type(layer) for layer in stripped.layers] == [layers.Dense, layers.Dense]
    assert all(variable.constraint is None for variable in stripped.variables)


def test_with_data_training_goes_on_from_weights_that_were_fitted_to_it():
    tf_keras.utils.set_random_seed(0)
    model = convnet()
    x, y = data(model, 48)
    dense = model.predict(x, verbose=0)
    by_magnitude = tf_keras.models.clone_model(model)
    by_magnitude.set_weights(model.get_weights())
    tfmot_asp.prune_trained_model(by_magnitude)
    pruned = tfmot_asp.prune_low_magnitude(model, calibration_data=x)
    outputs = pruned.predict(x, verbose=0)
    lost = [np.abs(got - dense).mean() for got in (by_magnitude.predict(x, verbose=0), outputs)]
    assert lost[1] < lost[0]
    compiled(pruned, tf_keras.optimizers.SGD(0.0)).fit(x, y, verbose=0)  # computes the masks, and moves no weight
    assert is_sparse(pruned)
    stripped = tfmot_asp.strip_pruning(pruned)
    kernels = [stripped.get_layer(name).kernel.numpy() for name in ("conv", "fc", "head")]
    assert all(np.mean(kernel == 0) == 0.5 for kernel in kernels)
    for kernel, layer in zip(kernels, ("conv", "fc", "head"), strict=True):
        np.testing.assert_array_equal(kernel, model.get_layer(layer).kernel.numpy())


def test_data_that_does_not_fit_leaves_the_model_as_it_was():
    model = convnet()
    before = model.get_weights()
    x, _ = data(model, 8)
    with pytest.raises(ValueError, match="NaN"):
        tfmot_asp.prune_low_magnitude(model, calibration_data=np.full_like(x, np.nan))
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    assert model.get_layer("conv").kernel.constraint is None
    with pytest.raises(ValueError, match="calibration_data is for a whole model"):
        tfmot_asp.prune_low_magnitude(layers.Dense(8), calibration_data=x)
    wrapped = tfmot_asp.prune_low_magnitude(model, permute=False)
    with pytest.raises(ValueError, match="holds pruning wrappers already"):
        tfmot_asp.prune_low_magnitude(wrapped, calibration_data=x)
