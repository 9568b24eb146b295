"""Random models for property tests: a graph grown one random layer or op at a time.

Each step takes one or two earlier tensors and adds a new one; shared layers are called again, features are returned as
they are, residuals and concatenations join whatever fits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras
from hypothesis import strategies as st
from tf_keras import layers

from tests import dtypes

WIDTHS = (4, 6, 8, 12)


@dataclasses.dataclass
class Grower:
    """Draws choices from hypothesis and keeps the tensors made so far."""

    draw: Callable[..., Any]
    tensors: list[Any]
    shared: list[tuple[Any, tuple]] = dataclasses.field(default_factory=list)
    kinds: list[str] = dataclasses.field(default_factory=list)

    def choose(self, options: Any) -> Any:
        return self.draw(st.sampled_from(list(options)))

    def width(self) -> int:
        return self.choose(WIDTHS)

    def share(self, layer: Any, x: Any) -> Any:
        self.shared.append((layer, tuple(x.shape)))
        return layer(x)

    def permutation(self, n: int) -> np.ndarray:
        return np.random.default_rng(self.draw(st.integers(0, 99))).permutation(n)


def channels(x: Any) -> int:
    return int(x.shape[-1])


KINDS: dict[str, tuple[Callable[[Any], bool], Callable[[Grower, Any], Any]]] = {}


def kind(name: str, applies: Callable[[Any], bool] = lambda x: True) -> Callable[[Any], Any]:
    def register(grow: Callable[[Grower, Any], Any]) -> Callable[[Grower, Any], Any]:
        KINDS[name] = (applies, grow)
        return grow

    return register


def image(x: Any) -> bool:
    return len(x.shape) == 4 and int(x.shape[1]) > 1 and int(x.shape[2]) > 1


def sequence(x: Any) -> bool:
    return len(x.shape) == 3


def vector(x: Any) -> bool:
    return len(x.shape) == 2


def even(x: Any) -> bool:
    return channels(x) % 2 == 0


@kind("dense")
def _(g, x):
    return g.share(layers.Dense(g.width(), activation=g.choose((None, "relu", "gelu", "softmax"))), x)


@kind("conv", image)
def _(g, x):
    return g.share(layers.Conv2D(g.width(), g.choose((1, 3)), padding="same", use_bias=g.draw(st.booleans())), x)


@kind("strided conv", image)
def _(g, x):
    return layers.Conv2D(g.width(), g.choose((1, 2, 3)), strides=2, padding="same", dilation_rate=1)(x)


@kind("dilated conv", image)
def _(g, x):
    return layers.Conv2D(g.width(), 2, dilation_rate=2, padding="same")(x)


@kind("grouped conv", lambda x: image(x) and even(x))
def _(g, x):
    groups = g.choose([n for n in (2, 4, channels(x)) if channels(x) % n == 0])
    return layers.Conv2D(groups * g.choose((1, 2)), 3, padding="same", groups=groups)(x)


@kind("depthwise conv", image)
def _(g, x):
    return layers.DepthwiseConv2D(3, padding="same", depth_multiplier=g.choose((1, 2)))(x)


@kind("separable conv", image)
def _(g, x):
    return layers.SeparableConv2D(g.width(), 3, padding="same")(x)


@kind("transposed conv", lambda x: image(x) and int(x.shape[1]) <= 4)
def _(g, x):
    return layers.Conv2DTranspose(g.width(), 3, 2, padding="same")(x)


@kind("conv1d", sequence)
def _(g, x):
    return g.share(layers.Conv1D(g.width(), 3, padding=g.choose(("same", "causal"))), x)


@kind("einsum dense", sequence)
def _(g, x):
    return layers.EinsumDense("abc,cd->abd", (None, g.width()), bias_axes="d")(x)


@kind("attention", lambda x: sequence(x) and int(x.shape[1]) <= 16)
def _(g, x):
    return layers.MultiHeadAttention(2, g.choose((2, 4)))(x, x, use_causal_mask=g.draw(st.booleans()))


@kind("heads by reshape", lambda x: sequence(x) and even(x) and int(x.shape[1]) <= 16)
def _(g, x):
    n, c = int(x.shape[1]), channels(x)
    q, k, v = (tf.transpose(tf.reshape(layers.Dense(c)(x), (-1, n, 2, c // 2)), (0, 2, 1, 3)) for _ in range(3))
    y = tf.matmul(tf.nn.softmax(tf.matmul(q, k, transpose_b=True)), v)
    return layers.Dense(c)(tf.reshape(tf.transpose(y, (0, 2, 1, 3)), (-1, n, c)))


@kind("recurrent", lambda x: sequence(x) and int(x.shape[1]) <= 16)
def _(g, x):
    layer = g.choose((layers.LSTM, layers.GRU, layers.SimpleRNN))
    layer = layer(g.width(), return_sequences=g.draw(st.booleans()), go_backwards=g.draw(st.booleans()))
    if g.draw(st.booleans()):
        return layers.Bidirectional(layer, merge_mode=g.choose(("concat", "sum")))(x)
    return g.share(layer, layers.Masking(mask_value=0.5)(x) if g.draw(st.booleans()) else x)


class _Mapped(layers.Layer):
    """A Dense layer for one entry of the batch at a time."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense = layers.Dense(width, activation="tanh")

    def build(self, shape: Any) -> None:
        self.dense.build(shape[1:])

    def call(self, x: Any) -> Any:
        return tf.map_fn(self.dense, x)


@kind("map", lambda x: len(x.shape) > 2)
def _(g, x):
    return _Mapped(g.width())(x)


@kind("loop")
def _(g, x):
    """A few steps of one op or the other, which may leave every channel its own order or not."""
    steps = [tf.tanh, lambda y: tf.roll(y, 1, -1), lambda y: y + tf.reduce_mean(y, -1, keepdims=True)]
    steps += [lambda y: y * np.linspace(0.5, 1.5, y.shape[-1]), lambda y: tf.reverse(y, [-1])]
    first, second = g.choose(steps), g.choose(steps)

    def step(y: Any, x: Any) -> Any:
        return tf.cond(tf.reduce_sum(y) > 0.0, lambda: first(y), lambda: second(y) * 0.5) + 0.1 * x

    def loop(x: Any) -> Any:
        return tf.while_loop(lambda i, y: i < 3, lambda i, y: (i + 1, tf.ensure_shape(step(y, x), y.shape)), (0, x))[1]

    return layers.Lambda(loop)(x)


@kind("batch norm")
def _(g, x):
    return layers.BatchNormalization(scale=g.draw(st.booleans()), center=g.draw(st.booleans()))(x)


@kind("layer norm")
def _(g, x):
    return layers.LayerNormalization(epsilon=g.choose((1e-3, 1e-6)))(x)


@kind("group norm", lambda x: (image(x) or sequence(x)) and even(x))
def _(g, x):
    return layers.GroupNormalization(g.choose([2, channels(x)]), epsilon=1e-2)(x)


@kind("unit norm")
def _(g, x):
    return layers.UnitNormalization()(x)


@kind("prelu", lambda x: len(x.shape) > 1)
def _(g, x):
    shared = g.choose((None, list(range(1, len(x.shape) - 1)) or None))
    return layers.PReLU(shared_axes=shared)(x)


@kind("activation")
def _(g, x):
    return layers.Activation(g.choose(("relu", "swish", "tanh", "softmax", "selu", "sigmoid")))(x)


@kind("lrn", image)
def _(g, x):
    y = tf.nn.local_response_normalization(tf.cast(x, tf.float32), g.choose((1, 2)))  # knows no float64
    return tf.cast(y, x.dtype)


@kind("pool", image)
def _(g, x):
    return g.choose((layers.MaxPooling2D, layers.AveragePooling2D))(2, g.choose((1, 2)), padding="same")(x)


@kind("global pool", lambda x: image(x) or sequence(x))
def _(g, x):
    names = ("2D" if image(x) else "1D",)
    return getattr(layers, g.choose(("GlobalAveragePooling", "GlobalMaxPooling")) + names[0])()(x)


@kind("upsampling", lambda x: image(x) and int(x.shape[1]) <= 4)
def _(g, x):
    y = layers.UpSampling2D(interpolation=g.choose(("nearest", "bilinear")))(x)
    return tf.cast(y, x.dtype)  # bilinear resizing gives float32


@kind("squeeze and excite", image)
def _(g, x):
    s = layers.Dense(4, activation="relu")(layers.GlobalAveragePooling2D(keepdims=True)(x))
    return x * layers.Dense(channels(x), activation="sigmoid")(s)


@kind("flatten", lambda x: image(x) or sequence(x))
def _(g, x):
    return layers.Flatten()(x)


@kind("patches", image)
def _(g, x):
    return layers.Reshape((-1, channels(x)))(x)


@kind("rows as channels", lambda x: len(x.shape) > 2 and int(np.prod(x.shape[1:])) <= 512)
def _(g, x):
    return layers.Reshape((int(x.shape[1]), -1))(x)


@kind("transpose", lambda x: sequence(x) and int(x.shape[1]) <= 16)
def _(g, x):
    return layers.Permute((2, 1))(x)


@kind("split axis", lambda x: vector(x) and even(x))
def _(g, x):
    return layers.Reshape(g.choose(((2, channels(x) // 2), (channels(x) // 2, 2))))(x)


@kind("channel shuffle", even)
def _(g, x):
    shape, c = [-1, *(int(n) for n in x.shape[1:-1])], channels(x)
    y = tf.reshape(x, (*shape, 2, c // 2))
    rank = len(shape) + 2
    return tf.reshape(tf.transpose(y, (*range(rank - 2), rank - 1, rank - 2)), (*shape, c))


@kind("flip")
def _(g, x):
    return tf.reverse(x, [-1])


@kind("roll")
def _(g, x):
    return tf.roll(x, g.draw(st.integers(1, 3)), -1)


@kind("gather")
def _(g, x):
    order = g.permutation(channels(x))
    return tf.gather(x, order[: max(2, len(order) - g.choose((0, 2)))], axis=-1)


@kind("take along axis", lambda x: sequence(x) and int(x.shape[1]) > 4)
def _(g, x):
    n, c, k = int(x.shape[1]), channels(x), g.choose((2, 4))
    index = tf.math.top_k(tf.reduce_max(x, -1), k).indices  # (batch, k)
    index = tf.reshape(index[:, None] * tf.ones((1, c, 1), index.dtype), (-1, k))
    picked = tf.gather(tf.reshape(tf.transpose(x, (0, 2, 1)), (-1, n)), index, batch_dims=1)
    return tf.transpose(tf.reshape(picked, (-1, c, k)), (0, 2, 1))


@kind("slice", lambda x: channels(x) > 4)
def _(g, x):
    return g.choose((x[..., 2:], x[..., ::2], x[..., :-1]))


@kind("gate by split", even)
def _(g, x):
    a, b = tf.split(x, 2, -1)
    return a * tf.sigmoid(b)


@kind("pick one", lambda x: channels(x) > 4)
def _(g, x):
    return x * tf.sigmoid(x[..., 1:2])


@kind("pad channels", lambda x: channels(x) < 16)
def _(g, x):
    where = [[0, 0]] * (len(x.shape) - 1) + [[g.choose((0, 1, 4)), g.choose((0, 2))]]
    return tf.pad(x, where)


@kind("tile", lambda x: channels(x) < 12)
def _(g, x):
    return tf.tile(x, (1,) * (len(x.shape) - 1) + (2,))


@kind("space to depth", lambda x: image(x) and not int(x.shape[1]) % 2 and not int(x.shape[2]) % 2 and channels(x) <= 8)
def _(g, x):
    return tf.nn.space_to_depth(x, 2)


@kind("depth to space", lambda x: image(x) and channels(x) % 4 == 0 and int(x.shape[1]) <= 4)
def _(g, x):
    return tf.nn.depth_to_space(x, 2)


@kind("cumulative sum", lambda x: len(x.shape) > 2)
def _(g, x):
    return tf.cumsum(x, axis=g.choose((1, 1, -1))) / 4.0


@kind("constant")
def _(g, x):
    return x * tf.constant(np.linspace(0.5, 1.5, channels(x)), x.dtype)


@kind("mean of the rest", lambda x: len(x.shape) > 2)
def _(g, x):
    return x - tf.reduce_mean(x, axis=g.choose(([-1], [1], list(range(1, len(x.shape))))), keepdims=True)


@kind("max over channels")
def _(g, x):
    return x - 0.5 * tf.reduce_max(x, -1, keepdims=True)


@kind("select")
def _(g, x):
    return tf.where(x > 0.1, x, 0.3 * x + 0.05)


@kind("stack and mix")
def _(g, x):
    a, b = tf.unstack(tf.stack([x, tf.nn.relu(x)], axis=1), axis=1)
    return a + 2.0 * b


@kind("lambda einsum", sequence)
def _(g, x):
    return tf.einsum("bic,bjc->bij", x, x) / channels(x)


def _table(g: Grower, z: Any, shape: tuple[int, ...]) -> Any:
    return tf.constant(np.random.default_rng(g.draw(st.integers(0, 99))).uniform(0.5, 1.5, shape), z.dtype)


def _normalized(g: Grower, z: Any) -> Any:
    mean, variance = tf.nn.moments(z, g.choose(([-1], [*range(1, len(z.shape) - 2), -1])), keepdims=True)
    return (z - mean) * tf.math.rsqrt(variance + 0.1)


def _rotated(g: Grower, z: Any) -> Any:
    axis = g.choose((-1, -2))
    first, *rest = tf.split(z, 2, axis) if z.shape[axis] % 2 == 0 else (z,)
    return z + 0.5 * tf.concat([*(-r for r in rest), first], axis)


def _unstacked(g: Grower, z: Any) -> Any:
    axis = g.choose((-1, -2))
    first, *rest = tf.unstack(z, axis=axis)
    return tf.stack([first * 2.0, *rest], axis)


# On (..., groups, channels of a group). Some treat groups alike and apart, so that each may have an order of its own;
# the others must be seen to forbid that.
WITHIN_GROUPS: dict[str, Callable[[Grower, Any], Any]] = {
    "normalize": _normalized,
    "table of channels": lambda g, z: z * _table(g, z, z.shape[-1:]),
    "table of groups": lambda g, z: z + _table(g, z, (z.shape[-2], 1)),
    "table of both": lambda g, z: z * _table(g, z, z.shape[-2:]),
    "softmax": lambda g, z: z * tf.nn.softmax(z),
    "softmax across groups": lambda g, z: z * tf.nn.softmax(z, g.choose((-1, -2))),
    "mean of the groups": lambda g, z: z - tf.reduce_mean(z, -2, keepdims=True),
    "largest of the channels": lambda g, z: z - 0.5 * tf.reduce_max(z, -1, keepdims=True),
    "reverse": lambda g, z: z + 0.5 * tf.reverse(z, [g.choose((-1, -2))]),
    "accumulate": lambda g, z: tf.cumsum(z, g.choose((-1, -2))) / 2.0,
    "rotate": _rotated,
    "unstack": _unstacked,
    "dense": lambda g, z: z + layers.Dense(z.shape[-1])(z),
    "first channel": lambda g, z: z * tf.sigmoid(z[..., :1]),
    "first group": lambda g, z: z * tf.sigmoid(z[..., :1, :]),
    "products": lambda g, z: z + tf.matmul(tf.matmul(z, z, transpose_b=True), z) / 8.0,
    "products of channels": lambda g, z: z + tf.matmul(z, tf.matmul(z, z, transpose_a=True)) / 8.0,
    "split again": lambda g, z: tf.reshape(z, (-1, *z.shape[1:-1], 1, z.shape[-1]))[..., 0, :],
}


@kind("within groups", lambda x: channels(x) in (4, 6, 8, 12, 16))
def _(g, x):
    shape, c = [int(n) for n in x.shape[1:-1]], channels(x)
    groups = g.choose([n for n in (2, 3, 4, 6, 8) if c % n == 0 and n < c])
    z = tf.reshape(x, (-1, *shape, groups, c // groups))
    for _ in range(g.draw(st.integers(1, 3))):
        name = g.choose(WITHIN_GROUPS)
        g.kinds.append(name)
        z = WITHIN_GROUPS[name](g, z)
    if g.draw(st.integers(0, 3)) == 0:
        z = tf.linalg.matrix_transpose(z)
    return tf.reshape(z, (-1, *shape, c))


@kind("fused projections", lambda x: sequence(x) and channels(x) in (4, 8, 12) and int(x.shape[1]) <= 16)
def _(g, x):
    n, c, heads = int(x.shape[1]), channels(x), g.choose((2, 4))
    split = tf.reshape(layers.Dense(3 * c)(x), (-1, n, 3, heads, c // heads))
    if g.draw(st.booleans()):
        q, k, v = tf.unstack(tf.transpose(split, (2, 0, 3, 1, 4)))
    else:
        q, k, v = (tf.transpose(split[:, :, i], (0, 2, 1, 3)) for i in range(3))
    if g.draw(st.booleans()):
        q, k = q * _table(g, q, (n, c // heads)), k * _table(g, k, (n, c // heads))
    y = tf.matmul(tf.nn.softmax(tf.matmul(q, k, transpose_b=True)), v)
    return layers.Dense(c)(tf.reshape(tf.transpose(y, (0, 2, 1, 3)), (-1, n, c)))


@kind("noise", lambda x: True)
def _(g, x):
    return layers.Dropout(0.3)(layers.GaussianNoise(0.1)(x))


def _grow(g: Grower) -> None:
    x = g.choose(g.tensors)
    again = [(layer, shape) for layer, shape in g.shared if shape == tuple(x.shape)]
    partners = [t for t in g.tensors if tuple(t.shape) == tuple(x.shape)]
    joinable = [t for t in g.tensors if tuple(t.shape[:-1]) == tuple(x.shape[:-1])]
    step = g.draw(st.integers(0, 9))
    if step == 0 and again:
        g.kinds.append("shared layer")
        g.tensors.append(g.choose(again)[0](x))
    elif step in (1, 2) and len(partners) > 1:
        g.kinds.append("join")
        join = g.choose((layers.Add, layers.Multiply, layers.Maximum, layers.Average))
        g.tensors.append(join()([x, g.choose(partners)]))
    elif step == 3 and channels(x) <= 12:
        g.kinds.append("concat")
        other = g.choose([t for t in joinable if channels(t) <= 12] or [x])
        g.tensors.append(layers.Concatenate()([x, other]))
    else:
        name = g.choose([n for n, (applies, _) in KINDS.items() if applies(x)])
        y = KINDS[name][1](g, x)
        g.kinds.append(name)
        residual = tuple(y.shape) == tuple(x.shape) and g.draw(st.booleans())
        g.tensors.append(x + y if residual else y)


def random_model(draw: Callable[..., Any], steps: int = 8) -> tuple[Any, list[str]]:
    """A random functional model in double precision, and the kinds of steps that made it.

    Args:
      draw: of hypothesis' `st.data()`. Not a strategy of its own: Keras draws seeds while it builds.
      steps: at most so many layers or ops between the stem and the head.
    """
    with dtypes.floatx("float64"):
        return _model(draw, steps)


def _model(draw: Callable[..., Any], steps: int) -> tuple[Any, list[str]]:
    shape = draw(st.sampled_from([(4, 4, 3), (4, 4, 8), (6, 8), (5, 6), (8,)]))
    x = tf_keras.Input(shape)
    g = Grower(draw, [x])
    stem = KINDS["conv" if len(shape) == 3 else "dense"][1](g, x)
    g.tensors += [stem]
    for _ in range(draw(st.integers(2, steps))):
        _grow(g)
    # What nothing reads is an output as it is or through a head; so may be any other tensor.
    last = g.tensors[-1]
    outputs = [layers.Dense(3)(last) if draw(st.booleans()) else layers.Dense(8)(layers.Dense(8)(last))]
    if draw(st.integers(0, 4)) == 0:
        outputs.append(draw(st.sampled_from(g.tensors[1:])) * 1.0)
    return tf_keras.Model(x, outputs), g.kinds
