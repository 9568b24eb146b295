"""Files made by TensorFlow's own TFLite converter: each weight that is read is the one that was converted."""

import pathlib

import flatbuffers
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorflow.lite.python import schema_py_generated as schema
from tf_keras import layers

from tests.export.pack_sparse import random_sparse_tensor
from tfmot_asp import masks
from tfmot_asp.export import verify
from tfmot_asp.export.tflite_files.read_tflite import read_tflite
from tfmot_asp.export.tflite_files.tflite_file import TfliteFile, Unreadable, _densify

pytestmark = pytest.mark.filterwarnings("ignore:.*tf.lite.Interpreter is deprecated")


def sparse(shape, axes, seed=0):
    weight = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    return masks.apply_mask(weight, masks.m_by_n_mask(np.abs(weight), axes))


def convert(function, *shapes, optimize=None, **options):
    """A TFLite file of a function of tensors, by TensorFlow's converter."""
    concrete = tf.function(function, input_signature=[tf.TensorSpec(s) for s in shapes]).get_concrete_function()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete], tf.Module())
    converter.optimizations = [optimize] if optimize else []
    for name, value in options.items():
        setattr(converter, name, value)
    return converter.convert()


def write(tmp_path, content, name="m.tflite"):
    (tmp_path / name).write_bytes(bytes(content))
    return tmp_path / name


def quantized_by(*shapes):
    generator = np.random.default_rng(1)
    return lambda: ([generator.standard_normal(s).astype(np.float32) for s in shapes] for _ in range(3))


def edited(content, change):
    """The file with its object tree changed, packed again."""
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(bytearray(content), 0))
    change(model)
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def weight_tensor(model, size):
    """The constant tensor of so many elements."""
    (found,) = [
        tensor
        for tensor in model.subgraphs[0].tensors
        if tensor.shape is not None and np.prod(tensor.shape) == size and model.buffers[tensor.buffer].data is not None
    ]
    return found


CONV, POINT, DENSE = sparse((3, 3, 16, 8), 2), sparse((1, 1, 8, 16), 2, 1), sparse((64, 8), 0, 2)


def network(x):
    y = tf.nn.relu(tf.nn.conv2d(x, tf.constant(CONV), 1, "SAME"))
    y = tf.nn.conv2d(y, tf.constant(POINT), 1, "SAME")
    return tf.matmul(tf.reshape(y, (-1, 64)), tf.constant(DENSE))


EXPECTED = [("CONV_2D", CONV.transpose(3, 0, 1, 2)), ("CONV_2D", POINT.transpose(3, 0, 1, 2))]
EXPECTED += [("FULLY_CONNECTED", DENSE.T)]
KINDS = {
    "float": {},
    "float16": {"optimize": tf.lite.Optimize.DEFAULT, "target_spec": tf.lite.TargetSpec(supported_types=[tf.float16])},
    "dynamic": {"optimize": tf.lite.Optimize.DEFAULT},
    "int8": {"optimize": tf.lite.Optimize.DEFAULT, "representative_dataset": quantized_by((1, 4, 4, 16))},
    "sparse": {"optimize": tf.lite.Optimize.EXPERIMENTAL_SPARSITY},
    "sparse int8": {
        "optimizations": [tf.lite.Optimize.EXPERIMENTAL_SPARSITY, tf.lite.Optimize.DEFAULT],
        "representative_dataset": quantized_by((1, 4, 4, 16)),
    },
}


@pytest.mark.parametrize("kind", KINDS)
def test_weights_of_every_kind_of_file_are_those_that_were_converted(kind, tmp_path):
    path = write(tmp_path, convert(network, (1, 4, 4, 16), **KINDS[kind]))
    found = read_tflite(path)
    assert [gemm.type for gemm in found] == [name for name, _ in EXPECTED]
    for gemm, (_, weight) in zip(found, EXPECTED, strict=True):
        assert gemm.problem is None
        assert gemm.reduction_axes == (weight.ndim - 1,)
        assert gemm.output_axes == (0,)
        steps = {"float": 1e-7, "sparse": 1e-7, "float16": 2.0**-11}.get(kind, 0.6 / 127)
        np.testing.assert_allclose(gemm.weight, weight, rtol=0, atol=steps * np.abs(weight).max())
        assert not np.any(gemm.weight[weight == 0]), "a zero did not stay zero"
    assert verify(path).ok
    if kind.startswith("sparse"):
        tensors = TfliteFile(path).subgraphs[0].tensors
        assert sum(tensor.table.Sparsity() is not None for tensor in tensors) == 3


@pytest.mark.parametrize("kind", ["float", "float16", "int8", "dynamic"])
def test_one_planted_weight_is_found(kind, tmp_path):
    content = convert(network, (1, 4, 4, 16), **KINDS[kind])

    def plant(model):
        tensor = weight_tensor(model, DENSE.size)
        dtype = {0: np.float32, 1: np.float16, 9: np.int8}[tensor.type]
        data = np.frombuffer(np.asarray(model.buffers[tensor.buffer].data, np.uint8).tobytes(), dtype).copy()
        stripe = data.reshape(8, 64)[3, 8:12]
        stripe[np.flatnonzero(stripe == 0)[0]] = 1
        model.buffers[tensor.buffer].data = np.frombuffer(data.tobytes(), np.uint8)

    assert verify(write(tmp_path, content)).ok
    report = verify(write(tmp_path, edited(content, plant)))
    assert not report.ok
    assert [(layer.status, layer.violations) for layer in report.layers] == [
        ("sparse", 0),
        ("sparse", 0),
        ("broken", 1),
    ]


def test_zeros_are_where_the_stored_value_is_the_zero_point(tmp_path):
    content = convert(network, (1, 4, 4, 16), **KINDS["int8"])

    def shift(model):
        tensor = weight_tensor(model, DENSE.size)
        data = np.asarray(model.buffers[tensor.buffer].data, np.uint8).view(np.int8).astype(int)
        channels = len(tensor.quantization.scale)
        points = np.arange(channels) % 2 if channels > 1 else np.array([1])
        shifted = np.clip(data.reshape(8, 64) + points[:, None], -128, 127).astype(np.int8)
        tensor.quantization.zeroPoint = points.astype(np.int64)
        model.buffers[tensor.buffer].data = shifted.reshape(-1).view(np.uint8)

    path = write(tmp_path, edited(content, shift))
    gemm = read_tflite(path)[-1]
    assert masks.violations(gemm.weight, 1) == 0
    np.testing.assert_allclose(gemm.weight, DENSE.T, rtol=0, atol=2 / 127 * np.abs(DENSE).max())


def test_uint8_and_packed_int4_weights(tmp_path):
    content = convert(network, (1, 4, 4, 16), **KINDS["int8"])
    levels = np.where(DENSE.T == 0, 0, np.random.default_rng(0).integers(1, 8, DENSE.T.shape)).astype(np.int8)
    levels = levels * np.where(DENSE.T < 0, -1, 1).astype(np.int8)

    def as_uint8(model):
        tensor = weight_tensor(model, DENSE.size)
        tensor.type = schema.TensorType.UINT8
        tensor.quantization.scale, tensor.quantization.zeroPoint = np.float32([0.5]), np.int64([100])
        model.buffers[tensor.buffer].data = (levels.astype(int) + 100).astype(np.uint8).reshape(-1)

    def as_int4(model):
        tensor = weight_tensor(model, DENSE.size)
        tensor.type = schema.TensorType.INT4
        tensor.quantization.scale, tensor.quantization.zeroPoint = np.float32([0.5]), np.int64([0])
        nibbles = (levels.reshape(-1, 2) & 15).astype(np.uint8)
        model.buffers[tensor.buffer].data = nibbles[:, 0] | nibbles[:, 1] << 4

    for change in (as_uint8, as_int4):
        gemm = read_tflite(write(tmp_path, edited(content, change)))[-1]
        np.testing.assert_array_equal(gemm.weight, levels * np.float32(0.5))


def no_scales(tensor, model):
    tensor.quantization.scale = np.float32([1, 2, 3])


def blockwise(tensor, model):
    tensor.quantization.detailsType = schema.QuantizationDetails.BlockwiseQuantization
    tensor.quantization.details = schema.BlockwiseQuantizationT()


def too_short(tensor, model):
    model.buffers[tensor.buffer].data = model.buffers[tensor.buffer].data[:100]


def a_string(tensor, model):
    tensor.type = schema.TensorType.STRING


UNREADABLE = {
    no_scales: "it has 3 scales for axis 0 of shape (8, 64)",
    too_short: "100 values are stored, 512 belong to it",
    a_string: "its type STRING is no number",
}
if hasattr(schema, "BlockwiseQuantizationT"):
    UNREADABLE[blockwise] = "it is quantized in blocks"


@pytest.mark.parametrize("change", UNREADABLE, ids=lambda change: change.__name__)
def test_a_weight_that_cannot_be_read_says_why(change, tmp_path):
    content = convert(network, (1, 4, 4, 16), **KINDS["int8"])
    path = write(tmp_path, edited(content, lambda model: change(weight_tensor(model, DENSE.size), model)))
    gemm = read_tflite(path)[-1]
    assert gemm.weight is None
    assert UNREADABLE[change] in gemm.problem
    report = verify(path)
    assert (report.layers[-1].status, report.ok) == ("unreadable", False)


def test_every_product_has_its_axes(tmp_path):
    kernels = {
        "CONV_3D": sparse((2, 2, 2, 8, 16), 3),
        "TRANSPOSE_CONV": sparse((2, 2, 16, 8), 3),
        "DEPTHWISE_CONV_2D": np.random.default_rng(0).standard_normal((3, 3, 8, 1)).astype(np.float32),
        "CONV_2D": sparse((3, 3, 4, 8), 2),
        "BATCH_MATMUL": sparse((2, 8, 16), 1),
    }

    def products(x, y, z):
        volume = tf.nn.conv3d(x, tf.constant(kernels["CONV_3D"]), [1] * 5, "SAME")
        up = tf.nn.conv2d_transpose(y, tf.constant(kernels["TRANSPOSE_CONV"]), (1, 8, 8, 16), 2)
        image = tf.nn.depthwise_conv2d(y, tf.constant(kernels["DEPTHWISE_CONV_2D"]), [1] * 4, "SAME")
        image = tf.nn.conv2d(image, tf.constant(kernels["CONV_2D"]), 1, "SAME")  # two groups
        return {"a": volume, "b": up, "c": image, "d": tf.matmul(z, tf.constant(kernels["BATCH_MATMUL"]))}

    path = write(tmp_path, convert(products, (1, 3, 3, 3, 8), (1, 4, 4, 8), (2, 5, 8)))
    found = {gemm.type: gemm for gemm in read_tflite(path)}
    layouts = {
        "CONV_3D": ((3,), (4,), (0, 1, 2, 3, 4)),
        "TRANSPOSE_CONV": ((3,), (0,), (2, 0, 1, 3)),
        "DEPTHWISE_CONV_2D": ((), (3,), (3, 0, 1, 2)),
        "CONV_2D": ((3,), (0,), (3, 0, 1, 2)),
    }
    for name, (reduction, output, order) in layouts.items():
        gemm = found[name]
        assert (gemm.reduction_axes, gemm.output_axes) == (reduction, output)
        np.testing.assert_array_equal(gemm.weight, kernels[name].transpose(order))
    assert found["CONV_2D"].groups == 2
    weight, gemm = kernels["BATCH_MATMUL"], found["BATCH_MATMUL"]
    assert masks.violations(gemm.weight, gemm.reduction_axes) == 0
    assert gemm.weight.shape in ((2, 8, 16), (2, 16, 8))
    assert np.sort(gemm.weight, axis=None).tolist() == np.sort(weight, axis=None).tolist()


def test_a_constant_on_the_left_and_a_weight_read_twice(tmp_path):
    left, twice = sparse((8, 16), 1), sparse((8, 8), 0, 3)

    def products(x):
        y = tf.transpose(tf.matmul(tf.constant(left), x))
        return tf.matmul(tf.nn.relu(tf.matmul(y, tf.constant(twice))), tf.constant(twice))

    found = read_tflite(write(tmp_path, convert(products, (16, 4))))
    assert len(found) == 2
    assert all(masks.violations(gemm.weight, gemm.reduction_axes) == 0 for gemm in found)
    sums = sorted(float(np.abs(gemm.weight).sum()) for gemm in found)
    np.testing.assert_allclose(sums, sorted([np.abs(left).sum(), np.abs(twice).sum()]), rtol=1e-6)


def test_recurrent_layers_and_loops_are_entered(tmp_path):
    inside = sparse((8, 8), 0)

    def loop(x):
        _, y = tf.while_loop(lambda i, y: i < 3, lambda i, y: (i + 1, tf.matmul(y, tf.constant(inside))), (0, x))
        return y

    (gemm,) = read_tflite(write(tmp_path, convert(loop, (1, 8))))
    np.testing.assert_array_equal(gemm.weight, inside.T)
    assert len(TfliteFile(tmp_path / "m.tflite").subgraphs) == 3
    model = tf_keras.Sequential([layers.Input((5, 4), batch_size=1), layers.LSTM(8)])
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    found = read_tflite(write(tmp_path, converter.convert()))
    assert {gemm.type for gemm in found} == {"UNIDIRECTIONAL_SEQUENCE_LSTM"}
    assert sorted(gemm.weight.shape for gemm in found) == [(8, 4)] * 4 + [(8, 8)] * 4
    gates = np.split(model.layers[0].cell.kernel.numpy().T, 4)
    for gate in gates:
        assert any(np.array_equal(gemm.weight, gate) for gemm in found)


def test_a_constant_that_is_passed_into_a_loop_is_followed(tmp_path):
    inside = sparse((8, 8), 0)

    def loop(x):
        def body(i, y, w):
            return i + 1, tf.matmul(y, w), w

        return tf.while_loop(lambda i, y, w: i < 3, body, (0, x, tf.constant(inside)))[1]

    content = convert(loop, (1, 8))

    def pass_it(model):  # what the converter moves into the body, back out to the call
        body = model.subgraphs[-1]
        number = next(
            i
            for i, t in enumerate(body.tensors)
            if list(t.shape) == [8, 8] and model.buffers[t.buffer].data is not None
        )
        tensor = body.tensors[number]
        copy = schema.TensorT()
        copy.shape, copy.type, copy.buffer, copy.name = tensor.shape, tensor.type, tensor.buffer, b"outside"
        main = model.subgraphs[0]
        main.tensors.append(copy)
        call = next(op for op in main.operators if op.builtinOptionsType == schema.BuiltinOptions.WhileOptions)
        call.inputs = np.append(call.inputs, len(main.tensors) - 1).astype(np.int32)
        tensor.buffer = 0
        for graph in model.subgraphs[1:]:
            if graph is not body:
                graph.tensors.append(tensor)
            added = number if graph is body else len(graph.tensors) - 1
            graph.inputs = np.append(graph.inputs, added).astype(np.int32)
        body.outputs = np.append(body.outputs, number).astype(np.int32)

    (gemm,) = read_tflite(write(tmp_path, edited(content, pass_it)))
    assert gemm.weight_name == "outside"
    np.testing.assert_array_equal(gemm.weight, inside.T)


def test_tensorflow_ops_in_the_file_are_listed_as_unreadable(tmp_path):
    weight = sparse((16, 8), 0).astype(np.float16)
    path = write(
        tmp_path,
        convert(
            lambda x: tf.cast(tf.matmul(tf.cast(x, tf.float16), tf.constant(weight)), tf.float32),
            (1, 16),
            target_spec=tf.lite.TargetSpec(
                supported_ops=[tf.lite.OpsSet.TFLITE_BUILTINS, tf.lite.OpsSet.SELECT_TF_OPS]
            ),
        ),
    )
    (gemm,) = read_tflite(path)
    assert gemm.type == "FlexMatMul"
    assert gemm.problem == "the attributes of FlexMatMul are not read"


def test_a_model_trained_with_quantization_reads_through_its_q_dq_pairs(tmp_path):
    weight = sparse((16, 8), 0)

    def fake(x):
        x = tf.quantization.fake_quant_with_min_max_args(x, -4, 4)
        y = tf.matmul(x, tf.quantization.fake_quant_with_min_max_args(tf.constant(weight), -3, 3, narrow_range=True))
        return tf.quantization.fake_quant_with_min_max_args(y, -9, 9)

    for optimize in (None, tf.lite.Optimize.DEFAULT):
        (gemm,) = read_tflite(write(tmp_path, convert(fake, (1, 16), optimize=optimize)))
        assert gemm.problem is None
        assert not np.any(gemm.weight[weight.T == 0])
        np.testing.assert_allclose(gemm.weight, np.clip(weight.T, -3, 3), atol=3 / 127 + 1e-6)


FILE = convert(network, (1, 4, 4, 16), **KINDS["int8"])


@pytest.mark.parametrize("content", [b"", b"TFL3", b"not a model at all", FILE[:8], b"\0" * 4 + b"TFL3" + b"\xff" * 99])
def test_foreign_files_give_an_error(content, tmp_path):
    path = write(tmp_path, content)
    with pytest.raises(ValueError, match=r"is no TFLite file|cannot be read as a TFLite model"):
        read_tflite(path)
    with pytest.raises(ValueError, match=r"m\.tflite"):
        verify(path)


@settings(max_examples=60)
@given(st.integers(0, len(FILE) - 1))
def test_a_truncated_file_gives_an_error(length):
    path = pathlib.Path(_folder()) / "cut.tflite"
    path.write_bytes(FILE[:length])
    with pytest.raises(ValueError, match=r"cut\.tflite"):
        read_tflite(path)


@settings(max_examples=150)
@given(st.lists(st.tuples(st.integers(8, len(FILE) - 1), st.integers(0, 255)), min_size=1, max_size=8))
def test_a_damaged_file_is_read_or_refused_but_nothing_else(changes):
    content = bytearray(FILE)
    for position, value in changes:
        content[position] = value
    path = pathlib.Path(_folder()) / "damaged.tflite"
    path.write_bytes(bytes(content))
    try:
        read_tflite(path)
    except ValueError as error:
        assert "damaged.tflite" in str(error)  # noqa: PT017 (either outcome is right)


_FOLDERS = []


@pytest.fixture(autouse=True, scope="module")
def _a_folder(tmp_path_factory):
    _FOLDERS.append(tmp_path_factory.mktemp("files"))


def _folder():
    return _FOLDERS[0]


def test_weights_behind_the_flatbuffer_are_found(tmp_path):
    """As in files of more than 2 GB: buffers that name an offset in the file."""
    content = convert(network, (1, 4, 4, 16))
    if not hasattr(schema.BufferT(), "offset"):
        pytest.skip("this TensorFlow's schema has no such buffers")
    moved = DENSE.T.copy().tobytes()

    def move(model, offset=1 << 20):
        buffer = model.buffers[weight_tensor(model, DENSE.size).buffer]
        buffer.data, buffer.offset, buffer.size = None, offset, len(moved)

    with_place = edited(content, move)
    at = len(with_place) + (-len(with_place)) % 16
    with_place = edited(content, lambda model: move(model, at)).ljust(at, b"\0")
    gemm = read_tflite(write(tmp_path, with_place + moved))[-1]
    np.testing.assert_array_equal(gemm.weight, DENSE.T)
    with pytest.raises(ValueError, match="a buffer ends at byte"):
        read_tflite(write(tmp_path, with_place + moved[:-1]))


def test_open_shapes_have_no_values(tmp_path):
    file = TfliteFile(write(tmp_path, convert(network, (None, 4, 4, 16))))
    graph = file.subgraphs[0]
    assert graph.tensors[graph.inputs[0]].shape == (-1, 4, 4, 16)
    with pytest.raises(Unreadable, match="is open"):
        file.value(graph.tensors[graph.inputs[0]])


@settings(max_examples=30)
@given(st.data())
def test_sparse_storage_is_written_out_as_it_was_packed(data):
    """Against a naive packer: any order of the axes, blocks on one of them, each dense or compressed."""
    dense, tensor, stored = random_sparse_tensor(data.draw(st.integers(0, 10_000)))

    class Described:
        shape = dense.shape
        table = type("T", (), {"Quantization": staticmethod(lambda: None)})

    np.testing.assert_array_equal(_densify(Described, tensor, lambda count: stored[:count]), dense)
