"""The tensors of ONNX files: external data, dtypes and shapes."""

import os

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tfmot_asp.export.onnx_files.onnx_graph import load_onnx
from tfmot_asp.export.onnx_files.read_onnx import read_onnx
from tfmot_asp.export.verify import verify

WEIGHT = np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32)


def model_of(*initializers, nodes=(), weight="w"):
    product = helper.make_node("MatMul", ["x", weight], ["y"], name="product")
    graph = helper.make_graph(
        [*nodes, product],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        initializers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def external(name="w", dims=(8, 4), **entries):
    tensor = TensorProto(name=name, dims=dims, data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def write(path, model):
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(model.SerializeToString())
    return path


def weight_in(path):
    (found,) = read_onnx(path)
    assert found.problem is None
    return found.weight


@pytest.fixture
def path(tmp_path):
    """Of a model to be, beside its data: 16 bytes of something else, then the weight."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "data").write_bytes(bytes(16) + WEIGHT.tobytes())
    (tmp_path / "secret").write_bytes(bytes(16) + WEIGHT.tobytes())
    return folder / "m.onnx"


PLACE = {"location": "data", "offset": 16, "length": WEIGHT.nbytes}


@pytest.mark.parametrize("entries", [PLACE, {"location": "data", "offset": 16}, {**PLACE, "location": "./data"}])
def test_external_data(path, entries):
    np.testing.assert_array_equal(weight_in(write(path, model_of(external(**entries)))), WEIGHT)


def test_several_tensors_may_share_data(path):
    first, second = external("w", **PLACE), external("v", dims=[4, 4], **{**PLACE, "length": 64})
    model = load_onnx(write(path, model_of(first, second)))
    assert [tensor.data_location for tensor in model.graph.initializer] == [TensorProto.DEFAULT] * 2
    np.testing.assert_array_equal(numpy_helper.to_array(model.graph.initializer[1]), WEIGHT[:4])


def test_data_of_constants_in_bodies_and_functions(path):
    constant = helper.make_node("Constant", [], ["c"], value=external("t", **PLACE))
    function = helper.make_function("local", "f", [], ["c"], [constant], [helper.make_opsetid("", 17)])
    model = model_of(nodes=[helper.make_node("f", [], ["w"], domain="local")])
    model.functions.append(function)
    model.opset_import.append(helper.make_opsetid("local", 1))
    np.testing.assert_array_equal(weight_in(write(path, model)), WEIGHT)


def test_links_within_the_folder_and_a_linked_folder(tmp_path, path):
    write(path, model_of(external(**{**PLACE, "location": "link"})))
    (path.parent / "link").symlink_to("data")
    (tmp_path / "folder").symlink_to("model")
    np.testing.assert_array_equal(weight_in(tmp_path / "folder" / "m.onnx"), WEIGHT)


@pytest.mark.parametrize(
    ("entries", "because"),
    [
        ({**PLACE, "location": "../secret"}, "not in its folder"),
        ({**PLACE, "location": "inner/../../secret"}, "not in its folder"),
        ({**PLACE, "location": "..\\secret"}, "not in its folder"),
        ({**PLACE, "location": "C:\\secret"}, "not in its folder"),
        ({**PLACE, "location": "/etc/passwd"}, "not in its folder"),
        ({**PLACE, "location": ""}, "not in its folder"),
        ({"offset": 0}, "not in its folder"),
        ({**PLACE, "location": "link"}, "a link out of its folder"),
        ({**PLACE, "location": "linked/secret"}, "a link out of its folder"),
        ({**PLACE, "location": "nothing"}, "cannot be read: 'nothing': No such file"),
        ({**PLACE, "location": "folder"}, "which is no file"),
        ({**PLACE, "location": "pipe"}, "which is no file"),
        ({**PLACE, "length": WEIGHT.nbytes + 1}, "would be bytes 16 to 145 of 'data', which has 144"),
        ({**PLACE, "offset": 17}, "which has 144"),
        ({**PLACE, "offset": -16}, "would be bytes -16 to"),
        ({**PLACE, "length": -1}, "would be bytes 16 to 15"),
        ({**PLACE, "offset": 1 << 70}, "which has 144"),
        ({"location": "data", "offset": 1 << 70}, "which has 144"),
        ({**PLACE, "offset": "many"}, "no number as offset or length"),
        ({**PLACE, "length": WEIGHT.nbytes - 4}, "needs 128 bytes, and 124 are stored"),
        ({"location": "data"}, "needs 128 bytes, and 144 are stored"),
    ],
)
def test_external_data_that_are_not_read(tmp_path, path, entries, because):
    (path.parent / "link").symlink_to(tmp_path / "secret")
    (path.parent / "linked").symlink_to(tmp_path)
    (path.parent / "folder").mkdir()
    os.mkfifo(path.parent / "pipe")
    write(path, model_of(external(**entries)))
    with pytest.raises(ValueError, match=because):
        read_onnx(path)


def test_a_file_that_was_cut_short(path):
    write(path, model_of(external(**PLACE)))
    (path.parent / "data").write_bytes((path.parent / "data").read_bytes()[:100])
    with pytest.raises(ValueError, match="would be bytes 16 to 144 of 'data', which has 100"):
        read_onnx(path)


@pytest.mark.parametrize("known", ["FLOAT", "FLOAT16", "BFLOAT16", "INT8", "DOUBLE", "BOOL", "INT4"])
def test_every_dtype_is_as_long_as_it_says(path, known):
    kind = getattr(TensorProto, known)
    tensor = helper.make_tensor("v", kind, [5], [1, 0, 1, 1, 0])
    raw = TensorProto(name="u", dims=[5], data_type=kind)
    bits = 4 if known == "INT4" else helper.tensor_dtype_to_np_dtype(kind).itemsize * 8
    raw.raw_data = bytes(-(-5 * bits // 8))
    load_onnx(write(path, model_of(numpy_helper.from_array(WEIGHT, "w"), tensor, raw)))


def test_dtypes_and_shapes_that_none_can_have(path):
    weight = numpy_helper.from_array(WEIGHT, "w")
    weight.data_type = 99
    with pytest.raises(ValueError, match="the file says that its tensor 'w' has the dtype 99"):
        read_onnx(write(path, model_of(weight)))
    weight = numpy_helper.from_array(WEIGHT, "w")
    weight.dims[:] = [-16, 16]
    with pytest.raises(ValueError, match=r"the file says that its tensor 'w' has the shape \[-16, 16\]"):
        read_onnx(write(path, model_of(weight)))
    sparse = helper.make_sparse_tensor(
        numpy_helper.from_array(np.ones(1, np.float32), "w"), numpy_helper.from_array(np.array([3]), "at"), [-4, -4]
    )
    model = model_of()
    model.graph.sparse_initializer.append(sparse)
    with pytest.raises(ValueError, match=r"its tensor 'w' has the shape \[-4, -4\]"):
        read_onnx(write(path, model))


@pytest.mark.parametrize("at", [[99], [-1], [[0, 99]], [[-1, 0]]])
def test_sparse_indices_outside(path, at):
    model = model_of()
    values = numpy_helper.from_array(np.ones(1, np.float32), "w")
    model.graph.sparse_initializer.append(
        onnx.SparseTensorProto(values=values, indices=numpy_helper.from_array(np.array(at), "at"), dims=[8, 4])
    )
    (found,) = read_onnx(write(path, model))
    assert found.weight is None
    assert found.problem


@pytest.mark.parametrize(
    "node",
    [
        helper.make_node("Einsum", ["big", "big", "big"], ["w"], equation="ij,kl,mn->in"),
        helper.make_node("Conv", ["image", "image"], ["w"]),
        helper.make_node("StringSplit", ["text"], ["w", "n"]),
    ],
)
def test_what_may_take_for_ever_is_not_computed(path, node):
    """No weight is made so; the report says that it cannot be read."""
    big = numpy_helper.from_array(np.ones((200, 200), np.float32), "big")
    image = numpy_helper.from_array(np.ones((1, 1, 200, 200), np.float32), "image")
    text = helper.make_tensor("text", TensorProto.STRING, [1], [b"a b"])
    (layer,) = verify(write(path, model_of(big, image, text, nodes=[node]))).layers
    assert layer.status == "unreadable"
    assert "cannot be computed" in layer.reason
