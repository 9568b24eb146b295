"""Quantizers are looked for in the graph, their arithmetic is done again by hand, and the network must still work."""

import os

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from tf_keras import layers

import tfmot_asp
from benchmarks import digits_network
from tests.small_models import convnet, mlp
from tfmot_asp import masks

onnx = pytest.importorskip("onnx")
pytest.importorskip("tf2onnx")
ort = pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from tfmot_asp.export.onnx_files.epilogue import Epilogues, shapes_of  # noqa: E402
from tfmot_asp.export.onnx_files.onnx_graph import Scope  # noqa: E402


def shaken(model):
    generator = np.random.default_rng(0)
    for weight in model.weights:
        if len(weight.shape) < 2:
            weight.assign(generator.uniform(0.5, 1.5, weight.shape).astype(np.float32))
    return model


def one_shot(model):
    return tfmot_asp.strip_pruning(tfmot_asp.prune_low_magnitude(shaken(model), permute=False))


def images(count=64, seed=0):
    return np.random.default_rng(seed).standard_normal((count, 8, 8, 3)).astype(np.float32)


def session_of(path):
    """Computes quantizers as they stand: on CPUs without VNNI, onnxruntime's int8 kernels saturate."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(str(path), options)


class File:
    """A written file as a graph to ask questions of."""

    def __init__(self, path):
        self.model = onnx.load(str(path))
        self.stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in self.model.graph.initializer}
        self.producer = {name: node for node in self.model.graph.node for name in node.output}
        self.outputs = {value.name for value in self.model.graph.output}

    def readers(self, name):
        return [node for node in self.model.graph.node if name in node.input]

    def products(self):
        return [node for node in self.model.graph.node if node.op_type in ("Conv", "ConvTranspose", "MatMul", "Gemm")]

    def check_quantizer(self, name, axis):
        """That a tensor comes out of a symmetric int8 DequantizeLinear; its scale."""
        dequantize = self.producer[name]
        assert dequantize.op_type == "DequantizeLinear", f"{name} is made by {dequantize.op_type}"
        scale, zero = self.stored[dequantize.input[1]], self.stored[dequantize.input[2]]
        assert zero.dtype == np.int8
        assert not zero.any()
        assert (scale > 0).all()
        assert scale.dtype == np.float32
        given = {attribute.name: helper.get_attribute_value(attribute) for attribute in dequantize.attribute}
        assert given.get("axis") == axis
        assert scale.ndim == (0 if axis is None else 1)
        source = dequantize.input[0]
        if source in self.stored:
            assert self.stored[source].dtype == np.int8
        else:
            quantize = self.producer[source]
            assert quantize.op_type == "QuantizeLinear"
            assert list(quantize.input[1:]) == list(dequantize.input[1:])
        return scale

    def kernel_output(self, product):
        """What a product's kernel writes: behind bias, shortcut and activation; the reader is its QuantizeLinear."""
        name = product.output[0]
        while True:
            (reader,) = self.readers(name)
            if reader.op_type == "QuantizeLinear":
                return name
            assert reader.op_type in ("Add", "Relu", "Reshape", "Squeeze"), reader.op_type
            name = reader.output[0]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    model = one_shot(convnet())
    path = tmp_path_factory.mktemp("int8") / "m.onnx"
    return model, path, tfmot_asp.export.onnx(model, path, precision="int8", calibration_data=images())


def test_inputs_weights_and_sparse_outputs_are_quantized_and_zeros_stay_zeros(written):
    model, path, report = written
    file = File(path)
    status = {row.op: row.status for row in report.layers}
    assert sorted(status.values()) == ["dense", "sparse", "sparse", "sparse"]
    assert len(file.products()) == 4
    for product in file.products():
        file.check_quantizer(product.input[0], None)
        file.check_quantizer(product.input[1], 0 if product.op_type == "Conv" else 1)
        if status[product.name] == "sparse":
            assert len(file.readers(file.kernel_output(product))) == 1, "something reads the output unquantized"
    for node in file.model.graph.node:
        for name in node.input:
            assert file.stored.get(name, np.zeros(1, np.int8)).dtype != np.int32, "a quantized bias"
    kernel = model.get_layer("conv").kernel.numpy().transpose(3, 2, 0, 1)
    row = next(row for row in report.layers if row.name == "conv/kernel")
    assert row.violations == 0
    assert row.zeros >= np.mean(kernel == 0)
    assert any("3 of them with their output, on 64 samples (percentile)" in note for note in report.notes)
    assert "--stronglyTyped" in report.notes[-1]


def test_the_shortcut_of_a_residual_block_is_quantized_and_not_the_sum_before_its_kernel(written):
    _, path, _ = written
    file = File(path)
    (add,) = [
        node for node in file.model.graph.node if node.op_type == "Add" and not set(node.input) & file.stored.keys()
    ]
    sources = [file.producer[name].op_type for name in add.input]
    assert sorted(sources) == ["Conv", "DequantizeLinear"]
    (reader,) = file.readers(add.output[0])
    assert reader.op_type == "QuantizeLinear"


def test_weights_are_rounded_to_scales_per_output_channel(written):
    model, path, _ = written
    file = File(path)
    for name, axis in (("conv", 3), ("fc", 1)):
        kernel = model.get_layer(name).kernel.numpy()
        (product,) = [node for node in file.products() if any(name == part for part in node.name.split("/"))]
        scale = file.check_quantizer(product.input[1], 0 if name == "conv" else 1)
        largest = np.abs(kernel).max(axis=tuple(i for i in range(kernel.ndim) if i != axis))
        np.testing.assert_allclose(scale, largest / 127, rtol=1e-6)


def test_the_file_computes_what_its_quantizers_say(tmp_path):
    model = one_shot(mlp(hidden=16))
    x = np.random.default_rng(0).standard_normal((200, 16)).astype(np.float32)
    path = tmp_path / "m.onnx"
    tfmot_asp.export.onnx(model, path, precision="int8", calibration_data=x, calibration_method="minmax")

    def fake(values, largest):
        step = (np.asarray(largest, np.float32) / np.float32(127)).astype(np.float32)
        return (np.clip(np.rint(values / step), -128, 127) * step).astype(np.float32)

    y, largest, exact = x, np.abs(x).max(), x
    for layer in model.layers:
        kernel, bias = (weight.numpy() for weight in layer.weights)
        exact = layer(exact).numpy()
        y = fake(y, largest) @ fake(kernel, np.abs(kernel).max(axis=0)) + bias
        y, largest = np.asarray(layer.activation(y)), np.abs(exact).max()
    y = fake(y, largest)
    session = session_of(path)
    (got,) = session.run(None, {session.get_inputs()[0].name: x})
    # A value half way between two levels may fall either way.
    assert np.mean(np.abs(got - y) > 1e-4) < 0.01
    assert np.abs(got - y).max() <= 1.01 * largest / 127


def test_weights_in_int8_make_the_same_outputs_and_a_small_file(written, tmp_path):
    model, path, _ = written
    report = tfmot_asp.export.onnx(
        model, tmp_path / "m.onnx", precision="int8", calibration_data=images(), int8_weights=True
    )
    assert report.sparse == 3
    assert {row.name for row in report.layers} == {f"{name}/kernel" for name in ("stem", "conv", "fc", "head")}
    feeds = {"image": images(5, seed=1)}
    outputs = [session_of(p).run(None, feeds)[0] for p in (path, tmp_path / "m.onnx")]
    np.testing.assert_allclose(outputs[0], outputs[1], atol=1e-5)
    weights = sum(row.shape and int(np.prod(row.shape)) for row in report.layers)
    saved = path.stat().st_size - (tmp_path / "m.onnx").stat().st_size
    assert saved > 2.5 * weights
    file = File(tmp_path / "m.onnx")
    assert not any(value.dtype == np.float32 and value.ndim > 1 for value in file.stored.values())


def test_keep_float_leaves_products_as_they_are(tmp_path):
    model = one_shot(convnet())
    options = {"precision": "int8", "calibration_data": images()}
    report = tfmot_asp.export.onnx(model, tmp_path / "m.onnx", keep_float=["head/kernel"], **options)
    file = File(tmp_path / "m.onnx")
    (head,) = [node for node in file.products() if node.input[1] == "head/kernel:0"]
    assert any(f"{head.name} stays float32: keep_float asks for it" in note for note in report.notes)
    with pytest.raises(ValueError, match=r"keep_float names \['heads'\], which is no matrix product; there are \["):
        tfmot_asp.export.onnx(model, tmp_path / "n.onnx", keep_float="heads", **options)
    assert os.listdir(tmp_path) == ["m.onnx"]


def test_transformers_dynamic_batches_and_several_inputs(tmp_path):
    tokens, extra = layers.Input((6,), dtype="int32", name="tokens"), layers.Input((6, 16), name="extra")
    x = layers.Add()([layers.Embedding(12, 16)(tokens), extra])
    x = layers.LayerNormalization()(layers.Add()([x, layers.MultiHeadAttention(2, 8, name="mha")(x, x)]))
    model = shaken(tf_keras.Model([tokens, extra], layers.Dense(8, activation="gelu", name="out")(x)))
    rule = tfmot_asp.SparseTensorCoreRule(kinds=("Dense", "EinsumDense"))
    tfmot_asp.prune_trained_model(model, policy=rule, permute=False)
    generator = np.random.default_rng(0)
    feeds = {
        "tokens": generator.integers(0, 12, (64, 6)).astype(np.int32),
        "extra": generator.standard_normal((64, 6, 16)).astype(np.float32),
    }
    report = tfmot_asp.export.onnx(model, tmp_path / "m.onnx", precision="int8", calibration_data=feeds)
    assert report.sparse == len(report.layers) == 5
    file = File(tmp_path / "m.onnx")
    for row in report.layers:
        (product,) = [node for node in file.products() if node.name == row.op]
        file.check_quantizer(product.input[0], None)
        file.check_quantizer(product.input[1], 1)
    session = session_of(tmp_path / "m.onnx")
    for batch in (1, 3):
        part = {name: value[:batch] for name, value in feeds.items()}
        (got,) = session.run(None, part)
        expected = model([part["tokens"], part["extra"]]).numpy()
        assert np.linalg.norm(got - expected) < 0.05 * np.linalg.norm(expected)


def test_transposed_convolutions_and_depthwise_have_the_axis_of_their_outputs(tmp_path):
    x = layers.Input((8, 8, 3), name="image")
    y = layers.DepthwiseConv2D(3, depth_multiplier=2)(x)
    model = shaken(tf_keras.Model(x, layers.Conv2DTranspose(5, 3, name="up")(y)))
    tfmot_asp.export.onnx(model, tmp_path / "m.onnx", precision="int8", calibration_data=images())
    file = File(tmp_path / "m.onnx")
    sizes = {
        node.op_type: file.check_quantizer(node.input[1], int(node.op_type != "Conv")).size for node in file.products()
    }
    assert sizes == {"Conv": 6, "ConvTranspose": 5}


def test_dead_channels_and_dead_inputs_are_no_division_by_zero(tmp_path):
    model = one_shot(convnet())
    for name, channel in (("conv", 3), ("fc", 0)):
        kernel = model.get_layer(name).kernel.numpy()
        kernel[..., channel] = 0
        model.get_layer(name).kernel.assign(kernel)
    tfmot_asp.export.onnx(model, tmp_path / "m.onnx", precision="int8", calibration_data=images())
    x = np.zeros((4, 8, 8, 3), np.float32)
    report = tfmot_asp.export.onnx(model, tmp_path / "z.onnx", precision="int8", calibration_data=x)
    assert report.sparse == 3
    (got,) = session_of(tmp_path / "z.onnx").run(None, {"image": x})
    assert np.isfinite(got).all()


def test_a_useless_quantization_is_refused(tmp_path, monkeypatch):
    from tfmot_asp.export import activation_ranges

    monkeypatch.setattr(activation_ranges.Histogram, "range", lambda self, method, percentile: self.largest / 1000)
    with pytest.raises(
        RuntimeError, match=r"in int8 the outputs differ from .* worst channel, 'head'\[.* \d[\d.e+]* % over all"
    ):
        tfmot_asp.export.onnx(one_shot(convnet()), tmp_path / "m.onnx", precision="int8", calibration_data=images())
    assert os.listdir(tmp_path) == []


def test_an_activation_that_is_not_finite_is_named(tmp_path):
    model = mlp()
    model.get_layer("first").kernel.assign(np.full((16, 32), 3e38, np.float32))
    with pytest.raises(ValueError, match=r"'.*': an activation is NaN or infinite on the calibration data"):
        tfmot_asp.export.onnx(
            model, tmp_path / "m.onnx", precision="int8", calibration_data=np.ones((2, 16), np.float32)
        )


def test_a_model_without_products_is_refused(tmp_path):
    model = tf_keras.Sequential([layers.Input((4,), name="x"), layers.ReLU()])
    with pytest.raises(ValueError, match="no matrix product with a float32 weight to quantize"):
        tfmot_asp.export.onnx(
            model, tmp_path / "m.onnx", precision="int8", calibration_data=np.ones((2, 4), np.float32)
        )


def test_a_residual_network_loses_less_than_a_point_of_accuracy(tmp_path):
    sklearn = pytest.importorskip("sklearn.datasets")
    digits = sklearn.load_digits()
    x, y = (digits.images[..., None] / 16).astype(np.float32), digits.target
    train, test = slice(0, 1200), slice(1200, None)
    tf_keras.utils.set_random_seed(0)
    model = digits_network.build_model(width=16)
    digits_network.compile_model(model, 2e-3, 5 * 75)
    model.fit(x[train], y[train], batch_size=16, epochs=5, verbose=0)
    pruned = tfmot_asp.prune_low_magnitude(model, permute=False)
    digits_network.compile_model(pruned, 1e-3, 2 * 75)
    pruned.fit(x[train], y[train], batch_size=16, epochs=2, verbose=0, callbacks=[tfmot_asp.UpdatePruningStep()])
    final = tfmot_asp.strip_pruning(pruned)
    exact = 100 * float(np.mean(final.predict(x[test], verbose=0).argmax(-1) == y[test]))
    assert exact > 85, "not trained"
    report = tfmot_asp.export.onnx(final, tmp_path / "m.onnx", precision="int8", calibration_data=x[train][:256])
    assert report.ok
    session = session_of(tmp_path / "m.onnx")
    (scores,) = session.run(None, {session.get_inputs()[0].name: x[test]})
    quantized = 100 * float(np.mean(scores.argmax(-1) == y[test]))
    assert abs(exact - quantized) <= 1.0, (exact, quantized)


# Where a kernel ends


def graph(nodes, outputs, constants=(), size=4):
    """A graph over (batch, size) tensors; ``m...`` are products with the weight w."""
    made = []
    for text in nodes:
        output, call = text.split("=")
        op, arguments = call.rstrip(")").split("(")
        inputs = arguments.split(",")
        made.append(helper.make_node(op, [*inputs, "w"] if op == "MatMul" and len(inputs) == 1 else inputs, [output]))
    names = {name for node in made for name in node.output}
    model = helper.make_model(
        helper.make_graph(
            made,
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", size])],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", size]) for name in outputs],
            [
                numpy_helper.from_array(np.eye(size, dtype=np.float32), "w"),
                numpy_helper.from_array(np.ones(size, np.float32), "b"),
                numpy_helper.from_array(np.array([-1, size]), "s"),
            ],
            value_info=[helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", size]) for n in names - set(outputs)],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
    )
    onnx.checker.check_model(model)
    return model


KERNELS = {
    "alone": (["m=MatMul(x)"], ["m"], {"m": "m"}),
    "bias and activation": (["m=MatMul(x)", "a=Add(m,b)", "r=Relu(a)", "y=Softmax(r)"], ["y"], {"m": "r"}),
    "moved before its bias": (["m=MatMul(x)", "v=Reshape(m,s)", "a=Add(v,b)", "y=Softmax(a)"], ["y"], {"m": "a"}),
    "moved at the end": (["m=MatMul(x)", "a=Relu(m)", "v=Reshape(a,s)", "y=Softmax(v)"], ["y"], {"m": "a"}),
    "swish": (["m=MatMul(x)", "s1=Sigmoid(m)", "y1=Mul(m,s1)", "y=Softmax(y1)"], ["y"], {"m": "y1"}),
    "gelu": (
        ["m=MatMul(x)", "h=Mul(m,b)", "n=Neg(m)", "e=Erf(n)", "o=Sub(b,e)", "g=Mul(h,o)", "y=Softmax(g)"],
        ["y"],
        {"m": "g"},
    ),
    "half of a gelu is wanted elsewhere": (
        ["m=MatMul(x)", "h=Mul(m,b)", "e=Erf(m)", "g=Mul(h,e)", "y=Softmax(g)", "z=Softmax(h)"],
        ["y", "z"],
        {"m": "m"},
    ),
    "an output in between": (["m=MatMul(x)", "a=Add(m,b)", "r=Relu(a)"], ["a", "r"], {"m": "a"}),
    "two readers": (["m=MatMul(x)", "r=Relu(m)", "y=Softmax(m)", "z=Softmax(r)"], ["y", "z"], {"m": "m"}),
    "shortcut": (["m=MatMul(x)", "a=Add(m,x)", "r=Relu(a)", "y=Softmax(r)"], ["y"], {"m": "r x"}),
    "shortcut and a second one": (
        ["m=MatMul(x)", "a=Add(m,x)", "c=Add(a,x)", "y=Softmax(c)"],
        ["y"],
        {"m": "a x"},
    ),
    "two branches: the later one takes the sum": (
        ["m=MatMul(x)", "m2=MatMul(x)", "a=Add(m,m2)", "r=Relu(a)", "y=Softmax(r)"],
        ["y"],
        {"m": "m", "m2": "r m"},
    ),
    "the later branch has a bias": (
        ["m=MatMul(x)", "m2=MatMul(x)", "p=Relu(m)", "q=Add(m2,b)", "a=Add(p,q)", "y=Softmax(a)"],
        ["y"],
        {"m": "p", "m2": "a p"},
    ),
    "a product of two branches is no shortcut": (["m=MatMul(x)", "a=Mul(m,x)", "y=Softmax(a)"], ["y"], {"m": "m"}),
    "added to itself": (["m=MatMul(x)", "a=Add(m,m)", "y=Softmax(a)"], ["y"], {"m": "a"}),
    "chain": (["m=MatMul(x)", "r=Relu(m)", "m2=MatMul(r)"], ["m2"], {"m": "r", "m2": "m2"}),
}


@pytest.mark.parametrize("case", KERNELS)
def test_where_the_kernel_of_a_product_ends(case):
    nodes, outputs, expected = KERNELS[case]
    model = graph(nodes, outputs)
    epilogues = Epilogues(Scope(model, model.graph), shapes_of(model))
    found = {}
    for index in reversed(range(len(model.graph.node))):
        node = model.graph.node[index]
        if node.op_type == "MatMul":
            epilogue = epilogues.of(index)
            added = [model.graph.node[position].input[operand] for position, operand in epilogue.shortcuts]
            found[node.output[0]] = " ".join([epilogue.output, *added])
    assert found == expected


def test_a_shortcut_of_another_shape_is_broadcast_and_so_none():
    model = graph(["m=MatMul(x)", "a=Add(m,x)", "y=Softmax(a)"], ["y"])
    shapes = shapes_of(model) | {"x": (1, 4)}
    assert Epilogues(Scope(model, model.graph), shapes).of(0).shortcuts == ()


def test_masks_are_what_is_tested(written):
    """The oracle of these tests, by other means: 2:4 in the values that the file's own quantizers make."""
    _, path, report = written
    file = File(path)
    session_nodes = {node.name: node for node in file.products()}
    for row in report.layers:
        name = session_nodes[row.op].input[1]
        quantize = file.producer[file.producer[name].input[0]]
        weight, scale = (file.stored[quantize.input[i]] for i in (0, 1))
        axis = {0: 1, 1: 0}[0 if row.type == "Conv" else 1]
        shaped = scale.reshape([-1 if i == 1 - axis else 1 for i in range(weight.ndim)])
        levels = np.rint(weight / shaped)
        assert np.abs(levels).max() == 127
        assert (masks.violations(levels, axis) == 0) == (row.status == "sparse")


def test_the_keras_model_is_left_alone(tmp_path):
    model = one_shot(convnet())
    before = [weight.copy() for weight in model.get_weights()]
    tfmot_asp.export.onnx(model, tmp_path / "m.onnx", precision="int8", calibration_data=tf.constant(images()))
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
