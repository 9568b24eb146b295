"""ONNX files from elsewhere: each weight is compared with the array that the file was made from, by hand."""

import json

import numpy as np
import pytest
import tf_keras
from tf_keras import layers

import tfmot_asp
from tfmot_asp import masks

onnx = pytest.importorskip("onnx")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from tfmot_asp.export.onnx_files.read_onnx import read_onnx  # noqa: E402

OPSETS = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
GENERATOR = np.random.default_rng(0)


def sparse(shape, axis, dtype=np.float32):
    weight = GENERATOR.uniform(1, 2, shape) * GENERATOR.choice((-1, 1), shape)
    return masks.apply_mask(weight, masks.m_by_n_mask(np.abs(weight), axis)).astype(dtype)


def write(path, nodes, constants, inputs=(("x", None),), outputs=("y",), functions=(), opsets=OPSETS, **options):
    graph = helper.make_graph(
        nodes,
        "by_hand",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=opsets, functions=functions, ir_version=9)
    onnx.save_model(model, path, **options)
    return path


def node(op, inputs, output="y", name="the product", **given):
    domain = given.pop("domain", "")
    return helper.make_node(op, inputs, [output], name=name, domain=domain, **given)


def only(path):
    (gemm,) = read_onnx(path)
    assert gemm.problem is None, gemm.problem
    return gemm


SCALE, ZERO, ZERO3 = np.float32(0.5), np.int8(3), np.full(8, 3, np.int8)
W = sparse((16, 8), 0)
Q = np.rint(W * 20).astype(np.int8)  # a quantized weight: int8, zero point 3 added where it is used
SCALARS = {"s": SCALE, "z": ZERO, "zu": np.uint8(7)}

# What the node reads, the constants, and what must be found: the weight, its reduction and output axes.
PRODUCTS = {
    "MatMul": (node("MatMul", ["x", "w"]), {"w": W}, W, (0,), (1,)),
    "MatMul, weight on the left": (node("MatMul", ["w", "x"]), {"w": W.T}, W.T, (1,), (0,)),
    "MatMul, weight and vector": (node("MatMul", ["x", "w"]), {"w": W[:, 0].copy()}, W[:, 0], (0,), ()),
    "batch of MatMul": (node("MatMul", ["x", "w"]), {"w": np.stack([W, W])}, np.stack([W, W]), (1,), (2,)),
    "Gemm": (node("Gemm", ["x", "w", "b"]), {"w": W, "b": W[0]}, W, (0,), (1,)),
    "Gemm of torch": (node("Gemm", ["x", "w"], transB=1, alpha=0.5), {"w": W.T.copy()}, W.T, (1,), (0,)),
    "Gemm, weight on the left": (node("Gemm", ["w", "x"], transA=1), {"w": W}, W, (0,), (1,)),
    "Conv": (node("Conv", ["x", "w"]), {"w": sparse((8, 16, 3, 3), 1)}, None, (1,), (0,)),
    "Conv1D": (node("Conv", ["x", "w"]), {"w": sparse((8, 16, 3), 1)}, None, (1,), (0,)),
    "ConvTranspose": (node("ConvTranspose", ["x", "w"]), {"w": sparse((16, 8, 3, 3), 0)}, None, (0,), (1,)),
    "Einsum": (node("Einsum", ["x", "w"], equation="bth,hnd->btnd"), {"w": sparse((16, 2, 4), 0)}, None, (0,), (1, 2)),
    "Einsum, two axes": (
        node("Einsum", ["x", "w"], equation="btnd, ndh -> bth"),
        {"w": sparse((2, 8, 8), (0, 1))},
        None,
        (0, 1),
        (2,),
    ),
    "Einsum without output": (node("Einsum", ["w", "x"], equation="ki,bk"), {"w": W}, W, (0,), (1,)),
    "Einsum with dots": (
        node("Einsum", ["x", "w"], equation="...k,...kn->...n"),
        {"w": np.stack([W, W])},
        None,
        (1,),
        (2,),
    ),
    "LSTM": (node("LSTM", ["x", "w", "r"], hidden_size=2), {"w": sparse((1, 8, 16), 2)}, None, (2,), (1,)),
    "QLinearConv": (
        node("QLinearConv", ["xi", "s", "zu", "w", "s", "z", "s", "zu"], "q"),
        {"w": np.rint(sparse((8, 16, 1, 1), 1) * 20).astype(np.int8) + ZERO},
        None,
        (1,),
        (0,),
    ),
    "QLinearMatMul": (
        node("QLinearMatMul", ["xi", "s", "zu", "w", "s", "z3", "s", "zu"], "q"),
        {"w": Q + ZERO},
        Q.astype(np.int32),
        (0,),
        (1,),
    ),
    "MatMulInteger": (node("MatMulInteger", ["xi", "w", "zu", "z"], "q"), {"w": Q + ZERO}, Q, (0,), (1,)),
    "ConvInteger": (
        node("ConvInteger", ["xi", "w"], "q"),
        {"w": np.rint(sparse((8, 16, 3, 3), 1) * 20).astype(np.int8)},
        None,
        (1,),
        (0,),
    ),
    "FusedMatMul": (
        node("FusedMatMul", ["x", "w"], domain="com.microsoft", transB=1),
        {"w": W.T.copy()},
        W.T,
        (1,),
        (0,),
    ),
    "FusedConv": (
        node("FusedConv", ["x", "w"], domain="com.microsoft", activation="Relu"),
        {"w": sparse((8, 16, 3, 3), 1)},
        None,
        (1,),
        (0,),
    ),
    "Attention": (
        node("Attention", ["x", "w"], domain="com.microsoft", num_heads=2),
        {"w": sparse((16, 48), 0)},
        None,
        (0,),
        (1,),
    ),
}


@pytest.mark.parametrize("case", PRODUCTS)
def test_every_kind_of_product(case, tmp_path):
    product, constants, weight, reduction, outputs = PRODUCTS[case]
    extra = {"z3": ZERO3, "r": np.ones((1, 8, 2), np.float32)} | SCALARS
    nodes = [product]
    if "xi" in product.input:
        nodes.insert(0, node("QuantizeLinear", ["x", "s", "zu"], "xi", "quantize"))
    if product.output[0] == "q":
        nodes.append(node("Cast", ["q"], to=TensorProto.FLOAT))
    path = write(tmp_path / "m.onnx", nodes, constants | {k: np.asarray(v) for k, v in extra.items()})
    gemm = read_onnx(path)[0]
    assert (gemm.op, gemm.type, gemm.problem) == ("the product", product.op_type, None)
    assert (gemm.reduction_axes, gemm.output_axes, gemm.weight_name) == (reduction, outputs, "w")
    if weight is not None:
        np.testing.assert_array_equal(gemm.weight, weight)
    assert masks.violations(gemm.weight, reduction) == 0
    assert gemm.weight.any()
    (row, *rest) = tfmot_asp.export.verify(path).layers
    assert row.status == "sparse", row
    assert (row.reason == "a transposed convolution is not among what TensorRT documents") == (case == "ConvTranspose")
    assert [other.type for other in rest] == (["LSTM"] if case == "LSTM" else [])


def disguised():
    """(nodes that lead to "k", constants, what arrives there) for the ways in which a weight reaches its product."""
    half, exact = sparse((16, 8), 0, np.float16), sparse((16, 8), 0)
    scales = np.linspace(0.5, 2, 8, dtype=np.float32)
    levels = np.rint(exact * 50).astype(np.int8)
    shape = np.array([16, 8], np.int64)
    perm = {"perm": [1, 0]}
    coordinates = np.argwhere(exact)
    stored = helper.make_sparse_tensor(
        numpy_helper.from_array(exact[exact != 0], "w"),
        numpy_helper.from_array(coordinates.astype(np.int64), "i"),
        (16, 8),
    )
    return {
        "Cast": ([node("Cast", ["w"], "k", "c", to=TensorProto.FLOAT)], {"w": half}, half.astype(np.float32)),
        "Transpose": ([node("Transpose", ["w"], "k", "t", **perm)], {"w": exact.T.copy()}, exact),
        "Constant": ([node("Constant", [], "k", "w", value=numpy_helper.from_array(exact))], {}, exact),
        "sparse Constant": ([node("Constant", [], "k", "w", sparse_value=stored)], {}, exact),
        "Reshape": ([node("Reshape", ["w", "shape"], "k", "r")], {"w": exact.reshape(-1), "shape": shape}, exact),
        "Squeeze": ([node("Squeeze", ["w"], "k", "r")], {"w": exact[None]}, exact),
        "Mul": ([node("Mul", ["w", "s"], "k", "m")], {"w": exact, "s": scales}, exact * scales),
        "chain": (
            [node("Identity", ["w"], "a", "i"), node("Transpose", ["a"], "b", "t"), node("Transpose", ["b"], "k", "u")],
            {"w": exact},
            exact,
        ),
        "long chain": (
            [node("Neg", [f"n{i}"], f"n{i + 1}", f"n{i}") for i in range(1200)] + [node("Neg", ["n1200"], "k", "n")],
            {"n0": exact},
            -exact,
        ),
        "Q and DQ": (
            [
                node("QuantizeLinear", ["w", "s", "z"], "q", "q", axis=1),
                node("DequantizeLinear", ["q", "s", "z"], "k", "d", axis=1),
            ],
            {"w": levels * scales, "s": scales, "z": np.zeros(8, np.int8)},
            levels * scales,
        ),
        "DQ": (
            [node("DequantizeLinear", ["w", "s", "z"], "k", "d", axis=1)],
            {"w": levels, "s": scales, "z": np.zeros(8, np.int8)},
            levels * scales,
        ),
        "DQ of onnxruntime": (
            [node("DequantizeLinear", ["w", "s", "z"], "k", "d", domain="com.microsoft")],
            {"w": levels + 5, "s": np.float32(0.5), "z": np.int8(5)},
            levels * np.float32(0.5),
        ),
        "product of constants": (
            [node("MatMul", ["w", "i"], "k", "low rank")],
            {"w": exact, "i": np.diag(scales)},
            exact @ np.diag(scales),
        ),
    }


@pytest.mark.parametrize("case", disguised())
def test_weights_are_found_through_every_disguise(case, tmp_path):
    before, constants, expected = disguised()[case]
    constants = {name: np.asarray(value) for name, value in constants.items()}
    gemm = only(write(tmp_path / "m.onnx", [*before, node("MatMul", ["x", "k"])], constants))
    np.testing.assert_array_equal(gemm.weight, expected)
    assert gemm.weight_name == {"Constant": "k", "sparse Constant": "k", "long chain": "n0"}.get(case, "w")
    assert masks.violations(gemm.weight, 0) == 0


@pytest.mark.parametrize("layout", ["Gemm of torch", "Conv", "MatMul"])
def test_one_planted_violation_is_found(layout, tmp_path):
    product, constants, _, reduction, _ = PRODUCTS[layout]
    weight = constants["w"].copy()
    assert tfmot_asp.export.verify(write(tmp_path / "good.onnx", [product], {"w": weight})).ok
    moved = np.moveaxis(weight, reduction[0], 0)
    lane = (slice(4, 8), *(1,) * (weight.ndim - 1))
    stripe = moved[lane]
    stripe[np.flatnonzero(stripe == 0)[0]] = 1e-30
    report = tfmot_asp.export.verify(write(tmp_path / "bad.onnx", [product], {"w": weight}))
    assert [(row.status, row.violations) for row in report.layers] == [("broken", 1)]
    assert not report.ok
    assert json.loads(json.dumps(report.to_dict()))["layers"][0]["op"] == "the product"


def test_bodies_of_control_flow_see_the_weights_around_them(tmp_path):
    inner = sparse((16, 8), 0)

    def body(name, weight):
        constants = [numpy_helper.from_array(inner, "own")]
        output = helper.make_tensor_value_info("out", TensorProto.FLOAT, None)
        return helper.make_graph([node("MatMul", ["x", weight], "out", name)], name, [], [output], constants)

    steps = helper.make_graph(
        [node("Identity", ["going"], "still", "go"), node("MatMul", ["state", "square"], "next", "step")],
        "steps",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("going", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("still", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, None),
        ],
    )
    square = sparse((8, 8), 0)
    nodes = [
        node("ReduceMax", ["x"], "high", "max", keepdims=0),
        node("Greater", ["high", "zero"], "positive", "compare"),
        helper.make_node("If", ["positive"], ["a"], then_branch=body("then", "outer"), else_branch=body("else", "own")),
        helper.make_node("Loop", ["three", "", "a"], ["y"], body=steps),
    ]
    constants = {"outer": W, "square": square, "zero": np.float32(0), "three": np.int64(3)}
    found = read_onnx(write(tmp_path / "m.onnx", nodes, {k: np.asarray(v) for k, v in constants.items()}))
    weights = {gemm.op: gemm.weight for gemm in found}
    assert [gemm.op for gemm in found[2:]] == ["step"]
    for name, expected in {"then": W, "else": inner, "step": square}.items():
        np.testing.assert_array_equal(weights[name], expected)


def test_local_functions_external_data_and_initializers_listed_as_inputs(tmp_path):
    function = helper.make_function(
        "mine", "Project", ["a", "k"], ["b"], [node("MatMul", ["a", "k"], "b", "inside")], [helper.make_opsetid("", 17)]
    )
    path = write(
        tmp_path / "m.onnx",
        [node("Project", ["x", "w"], domain="mine")],
        {"w": W},
        inputs=(("x", None), ("w", (16, 8))),
        functions=[function],
        opsets=[*OPSETS, helper.make_opsetid("mine", 1)],
        save_as_external_data=True,
        location="m.data",
        size_threshold=0,
    )
    assert (tmp_path / "m.data").stat().st_size == W.nbytes
    np.testing.assert_array_equal(only(path).weight, W)
    (tmp_path / "m.data").write_bytes(b"short")
    with pytest.raises(ValueError, match=r"m\.onnx' cannot be read as an ONNX model"):
        read_onnx(path)
    (tmp_path / "m.data").unlink()
    with pytest.raises(ValueError, match=r"m\.onnx' cannot be read as an ONNX model"):
        read_onnx(path)


def test_grouped_and_depthwise_convolutions(tmp_path):
    weights = {"g": sparse((16, 8, 3, 3), 1), "d": W.T.reshape(8, 1, 4, 4).copy(), "t": W[:, :1].reshape(16, 1, 1, 1)}
    nodes = [
        node("Conv", ["x", "g"], "a", "grouped", group=2),
        node("Conv", ["a", "d"], "b", "depthwise", group=8),
        node("ConvTranspose", ["b", "t"], "y", "transposed", group=16),
    ]
    report = tfmot_asp.export.verify(write(tmp_path / "m.onnx", nodes, weights))
    rows = {row.op: row for row in report.layers}
    assert (rows["grouped"].status, rows["grouped"].reason) == ("sparse", "2 groups")
    assert (rows["depthwise"].status, rows["transposed"].status) == ("depthwise", "depthwise")


def test_weights_that_cannot_be_computed_say_why(tmp_path):
    nodes = [
        node("MatMulNBits", ["x", "w", "s"], "a", "packed", domain="com.microsoft", K=16, N=8, bits=4, block_size=16),
        node("Strange", ["v"], "k", "decode", domain="com.microsoft"),
        node("MatMul", ["a", "k"], "y", "decoded"),
    ]
    constants = {"w": np.zeros((8, 1, 8), np.uint8), "s": np.ones(8, np.float32), "v": W}
    report = tfmot_asp.export.verify(write(tmp_path / "m.onnx", nodes, constants))
    assert [row.status for row in report.layers] == ["unreadable", "unreadable"]
    assert "MatMulNBits is packed" in report.layers[0].reason
    assert "node 'decode' (com.microsoft.Strange) cannot be computed" in report.layers[1].reason
    assert not report.ok


def test_products_of_two_activations_and_of_random_tensors_have_no_weight(tmp_path):
    nodes = [
        node("RandomNormal", [], "r", "random", shape=[16, 8]),
        node("MatMul", ["x", "r"], "a", "noise"),
        node("MatMul", ["a", "a"], "y", "two activations"),
    ]
    assert read_onnx(write(tmp_path / "m.onnx", nodes, {})) == []


def test_nodes_without_a_name_have_the_one_that_tensorrt_gives_them(tmp_path):
    path = write(tmp_path / "m.onnx", [helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": W})
    assert only(path).op == "node_of_y"


def test_small_and_half_types(tmp_path):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    nodes = [node("Cast", ["w"], "k", "c", to=TensorProto.FLOAT), node("MatMul", ["x", "k"])]
    for dtype in (ml_dtypes.bfloat16, np.float64):
        np.testing.assert_array_equal(
            only(write(tmp_path / "m.onnx", nodes, {"w": W.astype(dtype)})).weight, W.astype(dtype).astype(np.float32)
        )
    gemm = only(write(tmp_path / "b.onnx", [node("MatMul", ["x", "w"])], {"w": W.astype(ml_dtypes.bfloat16)}))
    assert masks.violations(gemm.weight, 0) == 0


def test_what_tf2onnx_makes_of_a_keras_model_is_read_back(tmp_path):
    tf2onnx = pytest.importorskip("tf2onnx")
    x = layers.Input((8, 8, 16), batch_size=1)
    y = layers.Conv2D(16, 3, name="conv")(x)
    y = layers.Dense(8, name="fc")(layers.Flatten()(y))
    model = tf_keras.Model(x, y)
    pruned = tfmot_asp.strip_pruning(tfmot_asp.prune_low_magnitude(model, permute=False))
    tf2onnx.convert.from_keras(pruned, output_path=str(tmp_path / "m.onnx"))
    found = read_onnx(tmp_path / "m.onnx")
    assert [gemm.reduction_axes for gemm in found] == [(1,), (0,)]
    conv, fc = (pruned.get_layer(name).kernel.numpy() for name in ("conv", "fc"))
    np.testing.assert_array_equal(found[0].weight, conv.transpose(3, 2, 0, 1))
    np.testing.assert_array_equal(found[1].weight, fc)


@pytest.mark.parametrize("level", ["ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL"])
def test_what_onnxruntime_makes_of_a_file_is_read_too(level, tmp_path):
    ort = pytest.importorskip("onnxruntime")
    weights = {"w": sparse((16, 16, 3, 3), 1), "v": sparse((16, 8), 0), "s": np.array([0, -1])}
    nodes = [
        node("Conv", ["x", "w"], "a", "conv", pads=[1, 1, 1, 1]),
        node("Relu", ["a"], "b", "relu"),
        node("GlobalAveragePool", ["b"], "c", "pool"),
        node("Reshape", ["c", "s"], "d", "flat"),
        node("MatMul", ["d", "v"], "y", "fc"),
    ]
    source = write(tmp_path / "m.onnx", nodes, weights, inputs=(("x", (1, 16, 8, 8)),), opsets=OPSETS[:1])
    options = ort.SessionOptions()
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    ort.InferenceSession(str(source), options)
    rows = tfmot_asp.export.verify(tmp_path / "optimized.onnx").layers
    assert len(rows) == 2
    for row in rows:  # a kernel in blocks of channels must not pass for one that breaks the pattern
        assert row.status == "sparse" or "format of onnxruntime's own" in row.reason, row


def test_a_kernel_in_blocks_of_channels_is_not_judged(tmp_path):
    product = node("Conv", ["x", "w"], domain="com.microsoft.nchwc")
    opsets = [*OPSETS, helper.make_opsetid("com.microsoft.nchwc", 1)]
    path = write(tmp_path / "m.onnx", [product], {"w": sparse((16, 16, 1, 1), 1)}, opsets=opsets)
    (row,) = tfmot_asp.export.verify(path).layers
    assert (row.status, "format of onnxruntime's own" in row.reason) == ("unreadable", True)


def good(path):
    return write(path, [node("MatMul", ["x", "w"])], {"w": W}).read_bytes()


BAD = {
    "empty": lambda content: b"",
    "half": lambda content: content[: len(content) // 2],
    "without its last bytes": lambda content: content[:-6],
    "text": lambda content: b"these are no weights",
    "an image": lambda content: b"\x89PNG\r\n\x1a\n" + content,
    "zeros": lambda content: bytes(100),
}


@pytest.mark.parametrize("case", BAD)
def test_damaged_and_foreign_files_are_named(case, tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(BAD[case](good(path)))
    with pytest.raises(ValueError, match=r"m\.onnx' (cannot be read as an|is no complete) ONNX model"):
        tfmot_asp.export.verify(path)


def test_a_graph_that_reads_what_does_not_exist_is_refused(tmp_path):
    path = write(tmp_path / "m.onnx", [node("MatMul", ["x", "lost"])], {})
    with pytest.raises(ValueError, match="is no valid ONNX model: node 'the product' reads 'lost', which does not"):
        read_onnx(path)
    path = write(tmp_path / "m.onnx", [node("MatMul", ["x", "x"], "z")], {})
    with pytest.raises(ValueError, match="nothing computes its output 'y'"):
        read_onnx(path)


@pytest.mark.parametrize("cut", range(1, 200, 7))
def test_no_truncation_passes_for_the_whole(cut, tmp_path):
    content = good(tmp_path / "m.onnx")
    (tmp_path / "m.onnx").write_bytes(content[:-cut])
    with pytest.raises(ValueError, match="ONNX model"):
        read_onnx(tmp_path / "m.onnx")


def test_a_missing_package_names_the_extra(tmp_path, monkeypatch):
    path = tmp_path / "m.onnx"
    good(path)
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(ImportError, match=r'pip install "tfmot-asp\[onnx\]"'):
        tfmot_asp.export.verify(path)
