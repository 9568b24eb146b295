"""A Keras twin of an ONNX network for images, with its weights: convolutions, batch norm, attention by matrix products.

Images run as (N, H, W, C) as Keras has them, whatever the file says. What the file computes from shapes alone is
folded, so the size of the image is fixed. ``check`` compares the twin with onnxruntime. Nodes that it does not know
raise.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
import tf_keras
from tf_keras import layers


class Value(NamedTuple):
    """A tensor of the twin; ``image`` if it is kept as (N, H, W, C) where the file has (N, C, H, W)."""

    tensor: Any
    image: bool = False


def twin(path: str, input_shape: tuple[int, ...], image: bool = True, output: str | None = None) -> tf_keras.Model:
    """The network of an ONNX file as a functional Keras model.

    Args:
        path: of the file.
        input_shape: of one image, (H, W, C).
        image: whether the file takes (N, C, H, W) images.
        output: the tensor to give, in the place of the file's first output.
    """
    import onnx

    graph = onnx.load(path).graph
    inputs = tf_keras.Input(input_shape)
    found: dict[str, Any] = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    data = next(i.name for i in graph.input if i.name not in found)
    found[data] = Value(inputs, image)
    wanted = output or graph.output[0].name
    for node in _needed(graph.node, wanted):
        arguments = [found[name] if name else None for name in node.input]
        options = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        results = convert(node.op_type, node.output[0], arguments, options)
        results = results if isinstance(results, list) else [results]
        found.update(zip(node.output, results, strict=False))
    return tf_keras.Model(inputs, plain(found[wanted]))


def _needed(nodes: Any, wanted: str) -> list[Any]:
    names, kept = {wanted}, []
    for node in reversed(nodes):  # a file lists its nodes in order of execution
        if names.intersection(node.output):
            names.update(node.input)
            kept.append(node)
    return kept[::-1]


def check(model: tf_keras.Model, path: str, batch: np.ndarray, image: bool = True, output: str | None = None) -> float:
    """The largest difference to onnxruntime's output on a batch, relative to the largest output."""
    import onnx
    import onnxruntime

    loaded = onnx.load(path)
    if output:
        del loaded.graph.output[:]
        loaded.graph.output.append(onnx.helper.make_empty_tensor_value_info(output))
    session = onnxruntime.InferenceSession(loaded.SerializeToString(), providers=["CPUExecutionProvider"])
    fed = batch.transpose(0, 3, 1, 2) if image else batch
    expected = session.run(None, {session.get_inputs()[0].name: fed})[0]
    return float(np.abs(model.predict(batch, verbose=0) - expected).max() / np.abs(expected).max())


def plain(value: Any) -> Any:
    """The tensor in the file's own order of axes."""
    if not isinstance(value, Value):
        return value
    return tf.transpose(value.tensor, (0, 3, 1, 2)) if value.image else value.tensor


def convert(op: str, name: str, inputs: list[Any], options: dict[str, Any]) -> Any:
    """What a node gives: ``Value``s, or arrays where all it takes is known."""
    name = "".join(c if c.isalnum() else "_" for c in name).strip("_")
    if op == "Constant":
        import onnx

        return onnx.numpy_helper.to_array(options["value"])
    if op == "Shape":
        shape = list(plain(inputs[0]).shape)
        return np.array([0 if size is None else size for size in shape])  # 0: as it is, in Reshape
    if not any(isinstance(x, Value) for x in inputs):
        return _folded(op, inputs, options)
    if op in _IMAGE:
        return Value(_IMAGE[op](name, inputs, options), True)
    if op in _UNARY:
        return inputs[0]._replace(tensor=_UNARY[op](inputs, options))
    if op in _BINARY:
        return _binary(op, inputs)
    return _other(op, name, inputs, options)


def _folded(op: str, inputs: list[Any], options: dict[str, Any]) -> Any:
    x = inputs[0]
    if op == "Cast":
        return np.asarray(x).astype({1: np.float32, 6: np.int32, 7: np.int64}[options["to"]])
    if op == "Slice":
        starts, ends, axes = inputs[1:4]
        cut = [slice(None)] * np.ndim(x)
        for start, end, axis in zip(starts, ends, axes, strict=True):
            cut[axis] = slice(int(start), int(end))
        return x[tuple(cut)]
    simple = {
        "Concat": lambda: np.concatenate([np.atleast_1d(i) for i in inputs], options["axis"]),
        "Squeeze": lambda: np.squeeze(x, tuple(options["axes"])),
        "Unsqueeze": lambda: np.expand_dims(x, tuple(options["axes"] if "axes" in options else inputs[1].tolist())),
        "Gather": lambda: np.take(x, inputs[1], options.get("axis", 0)),
        "Reshape": lambda: np.reshape(x, inputs[1]),
        "Transpose": lambda: np.transpose(x, options["perm"]),
        "Identity": lambda: x,
    }
    if op in simple:
        return simple[op]()
    arithmetic = {"Add": np.add, "Mul": np.multiply, "Div": np.floor_divide, "Sub": np.subtract}
    if op in arithmetic:
        return arithmetic[op](*inputs)
    raise NotImplementedError(f"{op} of known values")


def _images(value: Value) -> Any:
    return value.tensor if value.image else tf.transpose(value.tensor, (0, 2, 3, 1))


def _conv(name: str, inputs: list[Any], options: dict[str, Any]) -> Any:
    x, weight = _images(inputs[0]), inputs[1]
    bias = inputs[2] if len(inputs) > 2 else None
    pads, groups = options.get("pads", [0, 0, 0, 0]), options.get("group", 1)
    strides, dilation = tuple(options.get("strides", (1, 1))), tuple(options.get("dilations", (1, 1)))
    if any(pads):
        x = layers.ZeroPadding2D(((pads[0], pads[2]), (pads[1], pads[3])))(x)
    common = {"strides": strides, "dilation_rate": dilation, "use_bias": bias is not None, "name": name}
    if groups == x.shape[-1] and groups > 1:
        common["strides"] = (1, 1) if strides[0] != strides[1] else strides  # TensorFlow has no others here
        layer = layers.DepthwiseConv2D(weight.shape[2:], depth_multiplier=weight.shape[0] // groups, **common)
        kernel = weight.reshape(groups, -1, *weight.shape[2:]).transpose(2, 3, 0, 1)
    else:
        layer = layers.Conv2D(weight.shape[0], weight.shape[2:], groups=groups, **common)
        kernel = weight.transpose(2, 3, 1, 0)
    y = layer(x)
    layer.set_weights([kernel] if bias is None else [kernel, bias])
    return y if layer.strides == strides else y[:, :: strides[0], :: strides[1]]


def _conv_transpose(name: str, inputs: list[Any], options: dict[str, Any]) -> Any:
    weight = inputs[1]
    bias = inputs[2] if len(inputs) > 2 else None
    if any(options.get("pads", [0])):
        raise NotImplementedError("ConvTranspose with padding")
    layer = layers.Conv2DTranspose(
        weight.shape[1], weight.shape[2:], strides=options["strides"], use_bias=bias is not None, name=name
    )
    y = layer(_images(inputs[0]))
    layer.set_weights([weight.transpose(2, 3, 1, 0)] + ([] if bias is None else [bias]))
    return y


def _batch_norm(name: str, inputs: list[Any], options: dict[str, Any]) -> Any:
    layer = layers.BatchNormalization(epsilon=options.get("epsilon", 1e-5), name=name)
    y = layer(_images(inputs[0]))
    layer.set_weights(inputs[1:5])
    return y


def _pool(kind: Any) -> Any:
    def convert_pool(name: str, inputs: list[Any], options: dict[str, Any]) -> Any:
        x, pads = _images(inputs[0]), options.get("pads", [0, 0, 0, 0])
        if any(pads):
            lowest = -1e9 if kind is layers.MaxPooling2D else 0.0
            x = tf.pad(x, ((0, 0), (pads[0], pads[2]), (pads[1], pads[3]), (0, 0)), constant_values=lowest)
        return kind(tuple(options["kernel_shape"]), tuple(options.get("strides", (1, 1))))(x)

    return convert_pool


def _resize(name: str, inputs: list[Any], options: dict[str, Any]) -> Any:
    x = _images(inputs[0])
    if len(inputs) > 3 and inputs[3] is not None:
        factors = np.asarray(inputs[3])[2:] // np.array(x.shape[1:3])
    else:
        factors = inputs[2][2:]
    return layers.UpSampling2D(tuple(int(f) for f in factors))(x)


_IMAGE = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "BatchNormalization": _batch_norm,
    "MaxPool": _pool(layers.MaxPooling2D),
    "AveragePool": _pool(layers.AveragePooling2D),
    "GlobalAveragePool": lambda name, inputs, options: tf.reduce_mean(_images(inputs[0]), (1, 2), keepdims=True),
    "Resize": _resize,
}


def _clip(inputs: list[Any], options: dict[str, Any]) -> Any:
    low = float(options.get("min", inputs[1] if len(inputs) > 1 else -np.inf))
    high = float(options.get("max", inputs[2] if len(inputs) > 2 else np.inf))
    return tf.clip_by_value(inputs[0].tensor, low, high)


def _hard_sigmoid(inputs: list[Any], options: dict[str, Any]) -> Any:
    return tf.clip_by_value(inputs[0].tensor * options.get("alpha", 0.2) + options.get("beta", 0.5), 0.0, 1.0)


_UNARY = {
    "Relu": lambda inputs, options: tf.nn.relu(inputs[0].tensor),
    "Sigmoid": lambda inputs, options: tf.sigmoid(inputs[0].tensor),
    "Sqrt": lambda inputs, options: tf.sqrt(inputs[0].tensor),
    "Identity": lambda inputs, options: inputs[0].tensor,
    "Clip": _clip,
    "HardSigmoid": _hard_sigmoid,
}
_BINARY = {"Add": tf.add, "Mul": tf.multiply, "Sub": tf.subtract, "Div": tf.divide, "Pow": tf.pow}


def _binary(op: str, inputs: list[Any]) -> Value:
    image = any(isinstance(x, Value) and x.image for x in inputs)

    def ready(x: Any) -> Any:
        if isinstance(x, Value):
            return _images(x) if image else x.tensor
        x = np.asarray(x)
        if image and x.size > 1:
            x = x.reshape((1,) * (4 - x.ndim) + x.shape).transpose(0, 2, 3, 1)
        return x

    return Value(_BINARY[op](*map(ready, inputs)), image)


def _other(op: str, name: str, inputs: list[Any], options: dict[str, Any]) -> Any:
    x = inputs[0]
    if op == "Concat":
        if all(isinstance(i, Value) and i.image for i in inputs):
            return Value(tf.concat([i.tensor for i in inputs], (0, 3, 1, 2)[options["axis"]]), True)
        return Value(tf.concat([plain(i) for i in inputs], options["axis"]))
    if op == "Split":
        sizes = np.asarray(options["split"] if "split" in options else inputs[1]).tolist()
        axis = (0, 3, 1, 2)[options["axis"]] if x.image else options["axis"]
        return [Value(part, x.image) for part in tf.split(x.tensor, sizes, axis)]
    if op == "ReduceMean":
        return Value(tf.reduce_mean(plain(x), options["axes"], keepdims=bool(options.get("keepdims", 1))))
    if op == "MatMul":
        if not isinstance(inputs[1], Value) and inputs[1].ndim == 2:
            layer = layers.Dense(inputs[1].shape[1], use_bias=False, name=name)
            y = layer(plain(x))
            layer.set_weights([inputs[1]])
            return Value(y)
        return Value(tf.matmul(plain(x), plain(inputs[1])))
    if op == "Transpose":
        if x.image and list(options["perm"]) == [0, 2, 3, 1]:
            return Value(x.tensor)
        if not x.image and list(options["perm"]) == [0, 3, 1, 2] and len(x.tensor.shape) == 4:
            return Value(x.tensor, True)
        return Value(tf.transpose(plain(x), options["perm"]))
    if op == "Reshape":
        return Value(_reshape(plain(x), np.asarray(inputs[1]).tolist()))
    if op == "Squeeze":
        return Value(tf.squeeze(plain(x), options["axes"] if "axes" in options else inputs[1].tolist()))
    if op == "Softmax":
        return Value(tf.nn.softmax(plain(x), options.get("axis", -1)))
    if op == "Slice":
        cut = [slice(None)] * len(plain(x).shape)
        for start, end, axis in zip(*(np.asarray(i).tolist() for i in inputs[1:4]), strict=True):
            cut[axis] = slice(start, end)
        return Value(plain(x)[tuple(cut)])
    if op == "Cast":
        return x
    raise NotImplementedError(op)


def _reshape(x: Any, shape: list[int]) -> Any:
    """Reshapes all but the first axis, which stays what it is: the batch."""
    sizes = [x.shape[i] if size == 0 else size for i, size in enumerate(shape)]
    rest, total = sizes[1:], int(np.prod(x.shape[1:]))
    if -1 in rest:
        rest[rest.index(-1)] = total // -int(np.prod(rest))
    if int(np.prod(rest)) != total:
        raise NotImplementedError(f"Reshape of {x.shape} to {shape}")
    return tf.reshape(x, [-1, *rest])
