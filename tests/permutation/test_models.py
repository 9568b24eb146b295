"""Every way to hold a model: nested, subclassed, Keras 3, mixed precision, several inputs and outputs, modules."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from tests.permutation.harness import EveryKernel, check, random_orders, randomise
from tfmot_asp.permutation.plan import plan_model
from tfmot_asp.permutation.report import finish

C = 16
BOTH = pytest.mark.parametrize("k", [tf_keras, keras], ids=["tf_keras", "keras3"])


def normal(*shape, seed=0):
    return tf.random.stateless_normal(shape, (seed, 1))


# Functional, sequential, nested


@BOTH
def test_functional(k):
    x = k.Input((8, 8, 3))
    y = k.layers.Conv2D(C, 3, padding="same", activation="relu")(x)
    z = k.layers.BatchNormalization()(k.layers.Conv2D(C, 3, padding="same")(y))
    y = k.layers.ReLU()(k.layers.Add()([y, z]))
    y = k.layers.Dense(10)(k.layers.Flatten()(y))
    check(k.Model(x, y), permuted=2, fixed=1, groups=1)


@BOTH
def test_sequential(k):
    layers = [k.layers.Dense(C, activation="gelu") for _ in range(4)]
    check(k.Sequential([k.Input((8,)), *layers, k.layers.Dropout(0.5), k.layers.Dense(3)]), permuted=4, fixed=1)


@BOTH
def test_sequential_without_an_input_layer_built_by_a_call(k):
    model = k.Sequential([k.layers.Dense(C), k.layers.LayerNormalization(), k.layers.Dense(C), k.layers.Dense(3)])
    x = normal(3, 8)
    model(x)
    check(model, inputs=x, permuted=2, fixed=1)


@BOTH
def test_nested_to_some_depth(k):
    def block(depth):
        x = k.Input((C,))
        y = k.layers.Dense(C, activation="relu", name="dense")(x)
        if depth:
            y = block(depth - 1)(y)
        return k.Model(x, k.layers.Add()([x, y]), name="block")

    x = k.Input((8,))
    y = k.layers.Dense(C, name="stem")(x)
    check(k.Model(x, k.layers.Dense(3, name="head")(block(6)(y))), permuted=8, fixed=1, groups=1)


@BOTH
def test_a_nested_model_called_twice(k):
    inner = k.Sequential([k.Input((C,)), k.layers.Dense(C, activation="relu"), k.layers.Dense(C)])
    x = k.Input((8,))
    y = inner(inner(k.layers.Dense(C)(x)))
    check(k.Model(x, k.layers.Dense(3)(y)), permuted=3, fixed=1)


@BOTH
def test_several_inputs_and_outputs(k):
    a, b = k.Input((8,), name="a"), k.Input((6,), name="b")
    y = k.layers.Concatenate()([k.layers.Dense(C)(a), k.layers.Dense(C)(b)])
    y = k.layers.Dense(C, activation="relu")(y)
    model = k.Model([a, b], [k.layers.Dense(3)(y), k.layers.Dense(4)(y)])
    check(model, permuted=3, fixed=2)


@BOTH
def test_dict_inputs_and_outputs(k):
    inputs = {"left": k.Input((8,), name="left"), "right": k.Input((8,), name="right")}
    y = k.layers.Dense(C)(k.layers.Dense(C)(inputs["left"]) * k.layers.Dense(C)(inputs["right"]))
    model = k.Model(inputs, {"one": k.layers.Dense(3)(y), "two": k.layers.Dense(4)(y)})
    check(model, permuted=3, fixed=2)


@BOTH
def test_time_distributed(k):
    x = k.Input((5, 8))
    y = k.layers.TimeDistributed(k.layers.Dense(C, activation="relu"))(x)
    y = k.layers.TimeDistributed(k.layers.Dense(C))(y)
    check(k.Model(x, k.layers.Dense(3)(y)), permuted=2, fixed=1)


@BOTH
def test_embedding_and_masking(k):
    x = k.Input((6,), dtype="int32")
    y = k.layers.Embedding(20, C, mask_zero=True)(x)
    y = k.layers.Dense(C, activation="relu")(y)
    check(k.Model(x, k.layers.Dense(3)(k.layers.GlobalAveragePooling1D()(y))), permuted=2)


@BOTH
def test_frozen_layers_move_too(k):
    model = k.Sequential([k.Input((8,)), k.layers.Dense(C), k.layers.BatchNormalization(), k.layers.Dense(3)])
    model.layers[0].trainable = False
    model.layers[1].trainable = False
    check(model, permuted=1, fixed=1)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
@BOTH
def test_mixed_precision(k, policy):
    layers = k.layers
    x = k.Input((8, 8, 3))
    y = layers.Conv2D(C, 3, padding="same", activation="relu", dtype=policy)(x)
    y = layers.BatchNormalization(dtype=policy)(y)
    y = layers.Conv2D(C, 3, padding="same", dtype=policy)(y)
    y = layers.Dense(3, dtype="float32")(layers.GlobalAveragePooling2D(dtype=policy)(y))
    # Halves have 11 bits, bfloat16 has 8: a few roundings of each are this large.
    result = check(k.Model(x, y), permuted=2, fixed=1, tolerance=2e-2 if policy == "mixed_bfloat16" else 5e-3)
    assert all(v.dtype == tf.float32 for v in result.plan.graph.variables)


@BOTH
def test_double_precision_shows_that_the_change_is_rounding(k):
    x = k.Input((8,), dtype="float64")
    y = k.layers.Dense(C, activation="relu", dtype="float64")(x)
    y = k.layers.Dense(C, activation="gelu", dtype="float64")(y)
    check(k.Model(x, k.layers.Dense(3, dtype="float64")(y)), permuted=2, fixed=1, tolerance=1e-14)


# Subclassed


def subclassed(k):
    class Block(k.layers.Layer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.norm = k.layers.LayerNormalization()
            self.up, self.down = k.layers.Dense(32, activation="gelu"), k.layers.Dense(C)

        def call(self, x):
            return x + self.down(self.up(self.norm(x)))

    class Net(k.Model):
        def __init__(self):
            super().__init__()
            self.stem = k.layers.Dense(C)
            self.blocks = [Block() for _ in range(2)]
            self.head = k.layers.Dense(3)

        def call(self, x, training=False):
            y = self.stem(x)
            for block in self.blocks:
                y = block(y)
            return self.head(y)

    return Net()


@BOTH
def test_subclassed(k):
    model, x = subclassed(k), normal(3, 8)
    model(x)
    check(model, inputs=x, permuted=5, fixed=1)


@BOTH
def test_subclassed_with_given_shapes(k):
    model = subclassed(k)
    model.build((None, 8))
    check(model, inputs=normal(3, 8), input_shapes=(None, 8), permuted=5, fixed=1)


@BOTH
def test_subclassed_with_several_arguments(k):
    class Net(k.Model):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = k.layers.Dense(C), k.layers.Dense(C), k.layers.Dense(3)

        def call(self, x, y, scale=None, training=None):
            z = self.a(x) * self.b(y)
            if scale is not None:
                z = z * scale
            return self.c(z)

    model, x, y = Net(), normal(3, 8), normal(3, 6)
    model(x, y)
    if k is tf_keras:  # Keras 3 remembers the first argument only
        check(model, inputs=(x, y), call=lambda v: model(*v), permuted=1, fixed=2)
    else:
        with pytest.raises(ValueError, match=r"missing a required argument: 'y'.*pass input_shapes"):
            plan_model(model, policy=EveryKernel())
    check(model, inputs=(x, y), call=lambda v: model(*v), permuted=1, fixed=2, input_shapes=[(None, 8), (None, 6)])


@BOTH
def test_subclassed_with_a_dict(k):
    class Net(k.Model):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = k.layers.Dense(C), k.layers.Dense(C), k.layers.Dense(3)

        def call(self, inputs):
            return {"y": self.c(self.a(inputs["x"]) + self.b(inputs["y"]))}

    model, inputs = Net(), {"x": normal(3, 8), "y": normal(3, 6)}
    model(inputs)
    check(model, inputs=inputs, permuted=1, fixed=2)
    check(model, inputs=inputs, permuted=1, fixed=2, input_shapes={"x": (None, 8), "y": (None, 6)})


def test_python_control_flow_on_tensors():
    class Net(tf_keras.Model):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = (tf_keras.layers.Dense(n) for n in (C, C, 3))

        def call(self, x):
            y = self.b(self.a(x))
            if tf.reduce_sum(x) > 1e9:  # AutoGraph turns this into a branch of the graph
                y = y[..., ::-1]
            return self.c(y)

    model, x = Net(), normal(3, 8)
    model(x)
    check(model, inputs=x, permuted=2)


def test_model_without_known_shapes_is_refused():
    class Net(tf_keras.Model):
        def __init__(self):
            super().__init__()
            self.a = tf_keras.layers.Dense(C)
            self.a.build((None, 8))
            self.built = True

        def call(self, x):
            return self.a(x)

    with pytest.raises(ValueError, match=r"call it once on a sample batch, or pass input_shapes"):
        plan_model(Net(), policy=EveryKernel())


def test_open_image_size_is_chosen_or_given():
    x = tf_keras.Input((None, None, 3))
    y = tf_keras.layers.Conv2D(C, 3)(tf_keras.layers.Conv2D(C, 3, name="a")(x))
    model = tf_keras.Model(x, tf_keras.layers.GlobalAveragePooling2D()(y))
    check(model, inputs=normal(3, 20, 20, 3), permuted=1, fixed=1)
    check(model, inputs=normal(3, 20, 20, 3), input_shapes=(None, 12, 12, 3), permuted=1, fixed=1)


def test_wrong_input_shapes_are_refused():
    model = tf_keras.Sequential([tf_keras.Input((8,)), tf_keras.layers.Dense(C), tf_keras.layers.Dense(C)])
    with pytest.raises(ValueError, match=r"could not be traced .* on inputs"):
        plan_model(model, policy=EveryKernel(), input_shapes=(None, 9))
    with pytest.raises(ValueError, match="must be known except for the batch"):
        plan_model(model, policy=EveryKernel(), input_shapes=(None, None))
    with pytest.raises(TypeError, match="input_shapes must be a shape"):
        plan_model(model, policy=EveryKernel(), input_shapes=8)


# Raw ops, variables, modules


def test_raw_ops_and_variables_between_layers():
    class Net(tf_keras.Model):
        def __init__(self):
            super().__init__()
            self.a, self.c = tf_keras.layers.Dense(C), tf_keras.layers.Dense(3)
            self.kernel = tf.Variable(normal(C, C), name="kernel")
            self.scale = tf.Variable(normal(C), name="scale")

        def call(self, x):
            return self.c(tf.nn.relu(tf.matmul(self.a(x) * self.scale, self.kernel)))

    model, x = Net(), normal(3, 8)
    model(x)
    result = check(model, inputs=x, permuted=1, fixed=1)
    assert len(result.plan.plan.groups[0].places) == 2  # the raw kernel's columns and the head's rows


def test_tf_module():
    class Net(tf.Module):
        def __init__(self):
            self.a, self.b = tf_keras.layers.Dense(C), tf_keras.layers.Dense(3)
            self.a.build((None, 8)), self.b.build((None, C))
            self.shift = tf.Variable(normal(C))

        @tf.function(input_signature=[tf.TensorSpec((None, 8))])
        def __call__(self, x):
            return self.b(tf.nn.relu(self.a(x) + self.shift))

    check(Net(), inputs=normal(3, 8), permuted=1, fixed=1)


def test_single_layer_is_a_model_too():
    layer = tf_keras.layers.MultiHeadAttention(2, C)
    x = normal(3, 5, C)
    layer(x, x)
    result = check(
        layer, inputs=x, call=lambda v: layer(v, v), input_shapes=[(None, 5, C), (None, 5, C)], m_by_n=(1, 2)
    )
    assert result.groups >= 1


def test_a_variable_of_another_layer():
    class Tied(tf_keras.layers.Layer):
        def __init__(self, other):
            super().__init__()
            self.other = other

        def call(self, x):
            return tf.matmul(x, self.other.kernel, transpose_b=True)

    x = tf_keras.Input((8,))
    first = tf_keras.layers.Dense(C, use_bias=False)
    y = tf_keras.layers.Dense(C)(first(x))
    # The tied product brings the channels back to those of the input.
    check(tf_keras.Model(x, Tied(first)(y)), permuted=1, fixed=1)


def test_weights_assigned_from_another_layer_are_one_variable():
    x = tf_keras.Input((8,))
    first, second = tf_keras.layers.Dense(C), tf_keras.layers.Dense(C)
    second.build((None, C))
    first.build((None, C))
    second.kernel = first.kernel
    y = second(tf.nn.relu(first(tf_keras.layers.Dense(C)(x))))
    result = check(tf_keras.Model(x, tf_keras.layers.Dense(3)(y)), permuted=2, fixed=1, groups=1)
    assert len([v for v in result.plan.graph.variables if v.shape == (C, C)]) == 1


def test_nested_functions_and_custom_gradients():
    class Net(tf_keras.Model):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = (tf_keras.layers.Dense(n) for n in (C, C, 3))

        @tf.function
        def middle(self, x):
            @tf.custom_gradient
            def swish(v):
                return v * tf.sigmoid(v), lambda d: d

            return self.b(swish(x))

        @tf.function(jit_compile=True)
        def compiled(self, x):
            return x * 2.0

        def call(self, x):
            return self.c(self.compiled(self.middle(tf.recompute_grad(self.a)(x))))

    model, x = Net(), normal(3, 8)
    model(x)
    check(model, inputs=x, permuted=2, fixed=1)


def test_losses_that_layers_add_are_left_alone():
    class Sparse(tf_keras.layers.Layer):
        def call(self, x):
            self.add_loss(tf.reduce_sum(tf.abs(x) * np.arange(C, dtype=np.float32)))  # its channels are not alike
            return x

    x = tf_keras.Input((8,))
    y = tf_keras.layers.Dense(C, name="a")(x)
    y = tf_keras.layers.Dense(C, name="b")(Sparse()(y))
    model = tf_keras.Model(x, tf_keras.layers.Dense(3, name="c")(y))
    result = check(model, permuted=1, fixed=2, call=lambda v: [model(v), *model.losses])
    assert "constant" in result.reason("b")


def test_activity_and_weight_regularization_leave_channels_free():
    layer = tf_keras.layers.Dense(C, kernel_regularizer="l2", activity_regularizer="l1")
    model = tf_keras.Sequential([tf_keras.Input((8,)), layer, tf_keras.layers.Dense(3)])
    model(normal(2, 8))
    kept = list(layer._losses)
    check(model, permuted=1, fixed=1, call=lambda v: [model(v), *model.losses])
    assert len(layer._losses) == len(kept)


def test_state_that_only_training_reads_moves_along():
    x = tf_keras.Input((8, 8, 3))
    y = tf_keras.layers.Conv2D(C, 3, name="a")(x)
    norm = tf_keras.layers.BatchNormalization(renorm=True)
    y = tf_keras.layers.Dropout(0.1)(norm(y))
    y = tf_keras.layers.Conv2D(C, 3, name="b")(y)
    model = tf_keras.Model(x, y)
    randomise(model)
    before = norm.renorm_mean.numpy()
    result = check(model, permuted=1, fixed=1, randomly=False)
    (group,) = result.plan.plan.groups
    np.testing.assert_array_equal(norm.renorm_mean.numpy(), before[result.orders[0]])
    assert group.size == C


def test_spectral_normalization():
    wrapped = keras.layers.SpectralNormalization(keras.layers.Dense(C, name="a"))
    x = keras.Input((8,))
    model = keras.Model(x, keras.layers.Dense(3, name="b")(wrapped(x)))
    # Its vector for the power iteration, which inference does not read, moves along.
    result = check(model, permuted=1, fixed=1)
    moved = [result.plan.graph.variables[place.variable].name for place in result.plan.plan.groups[0].places]
    assert any("vector_u" in name for name in moved)
    assert result.reason("a").startswith("fed by input 0 'keras_tensor")


def test_random_outputs_can_be_verified():
    x = tf_keras.Input((8,))
    y = tf_keras.layers.Dense(C, activation="relu")(x)
    mean = tf_keras.layers.Dense(8)(y)
    z = mean + tf.random.normal(tf.shape(mean))
    model = tf_keras.Model(x, [mean, tf_keras.layers.Dense(3, name="decoder")(z)])
    plan = plan_model(model, policy=EveryKernel())
    report = finish(plan, model, random_orders(plan))
    assert report.permuted == 1
    assert report.max_change is not None


def test_distribution_strategy():
    cpus = tf.config.list_physical_devices("CPU")
    strategy = tf.distribute.MirroredStrategy(["CPU:0"] if len(cpus) == 1 else None)
    with strategy.scope():
        model = tf_keras.Sequential(
            [
                tf_keras.Input((8,)),
                tf_keras.layers.Dense(C),
                tf_keras.layers.BatchNormalization(),
                tf_keras.layers.Dense(3),
            ]
        )
    check(model, permuted=1, fixed=1)


def test_ragged_inputs_are_refused_in_words():
    x = tf_keras.Input((None, 8), ragged=True)
    y = tf_keras.layers.Dense(C)(tf_keras.layers.Dense(C)(x))
    model = tf_keras.Model(x, y)
    with pytest.raises(ValueError, match="input_shapes"):
        plan_model(model, policy=EveryKernel())


def test_integer_outputs_only():
    x = tf_keras.Input((8,))
    y = tf_keras.layers.Dense(10)(tf_keras.layers.Dense(C)(x))
    model = tf_keras.Model(x, tf.argmax(y, -1))
    plan = plan_model(model, policy=EveryKernel())
    assert finish(plan, model, random_orders(plan)).permuted == 1


def test_deeply_nested_functions():
    layer = tf_keras.layers.Dense(C)
    layer.build((None, C))
    head = tf_keras.layers.Dense(3)
    head.build((None, C))

    class Net(tf.Module):
        def __init__(self):
            self.layer, self.head = layer, head

        def __call__(self, x):
            def wrap(f):
                return tf.function(lambda v: f(v) * 1.0, autograph=False)

            f = self.layer
            for _ in range(40):
                f = wrap(f)
            return self.head(f(x))

    check(Net(), inputs=normal(3, C), input_shapes=(None, C), permuted=1, fixed=1)
