"""Small files that ask for a lot: one line, exit code 2, and little memory above that of an idle process."""

import gc
import io
import json
import re
import zipfile
from pathlib import Path

import flatbuffers
import h5py
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from onnx import TensorProto, helper, numpy_helper
from tensorflow.lite.python import schema_py_generated as schema
from tf_keras import layers

from tests.small_models import mlp
from tfmot_asp.cli import main

MOST = 200 << 20  # bytes above an idle process


@pytest.fixture(scope="module", autouse=True)
def idle(tmp_path_factory):
    """What an idle process has, it has: every reader has run once."""
    folder = tmp_path_factory.mktemp("honest")
    mlp().save(folder / "model.keras")
    honest_h5(folder / "model.h5")
    table(folder / "saved")
    onnx_file(folder / "model.onnx", [], [numpy_helper.from_array(np.ones((8, 8), np.float32), "w")])
    tflite_file(folder / "model.tflite", lambda model: None)
    for name in ("model.keras", "model.h5", "saved", "model.onnx", "model.tflite"):
        assert main(["verify", str(folder / name), "--quiet"]) in (0, 1), name


def peak():
    """The largest memory of this process since the last call, and what it has now."""
    status = Path("/proc/self/status").read_text()
    found = {line.split(":")[0]: int(line.split()[1]) << 10 for line in status.splitlines() if line.endswith("kB")}
    Path("/proc/self/clear_refs").write_text("5")
    return found["VmHWM"], found["VmRSS"]


# Keras


def keras_file(path, config, others=(), compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("config.json", config if isinstance(config, (str, bytes)) else json.dumps(config))
        archive.writestr("metadata.json", json.dumps({"keras_version": "2.15.0"}))
        for name, content in others:
            archive.writestr(name, content)


def honest_h5(path):
    with h5py.File(path, "w") as file:
        model = mlp()
        file.attrs["model_config"] = model.to_json().encode()
        file.attrs["keras_version"], file.attrs["backend"] = b"2.15.0", b"tensorflow"
        tf_keras.src.saving.legacy.hdf5_format.save_weights_to_hdf5_group(file.create_group("model_weights"), model)


def layer(name, /, **config):
    return {"module": "keras.layers", "class_name": name, "config": config, "registered_name": None}


def sequential(*inner):
    return layer("Sequential", name="s", layers=list(inner)) | {"module": "keras"}


def spaces(path):
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("config.json", "w") as file,
    ):
        for _ in range(1 << 10):
            file.write(b" " * (1 << 20))


def input_of(*shape):
    return layer("InputLayer", batch_input_shape=[None, *shape], name="i")


def called_twice_on_each_level(path):
    """Each model calls the one inside it twice: no more text, and twice the layers, for each level."""
    x = layers.Input((4,))
    inner = tf_keras.Model(x, layers.Activation("relu")(x), name="inner")
    config = inner.get_config()
    twice = tf_keras.Model(x, inner(inner(x)), name="outer").get_config()
    at = next(i for i, layer in enumerate(twice["layers"]) if layer["name"] == "inner")
    for _ in range(40):
        layers_of_it = list(twice["layers"])
        layers_of_it[at] = {**layers_of_it[at], "config": {**config, "name": "inner"}}
        config = {**twice, "layers": layers_of_it}
    keras_file(path, {"module": "keras", "class_name": "Functional", "config": config, "registered_name": None})


def npz_of(*shape):
    """An archive with an array that says what it is, and has no more."""
    header, archive = io.BytesIO(), io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"shape": shape, "fortran_order": False, "descr": "<f4"})
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("d.npy", header.getvalue())
    return archive.getvalue()


def h5_with(path, change):
    honest_h5(path)
    with h5py.File(path, "a", libver="latest") as file:
        change(file)


def chunks(file):
    file["model_weights"].create_dataset("bomb", (1 << 14, 1 << 14), "f4", chunks=True, compression="gzip")


def repeated_text(file):
    """An array of references to one long text."""
    text = file["model_weights"].create_dataset("bomb", 1 << 16, h5py.string_dtype())
    text[0] = "x" * (1 << 20)


KERAS = {
    "a gigabyte of spaces": spaces,
    "a wide layer": lambda path: keras_file(path, sequential(input_of(64), layer("Dense", units=10**6, name="d"))),
    "wide layers": lambda path: keras_file(
        path, sequential(input_of(4), *(layer("Dense", units=3000, name=f"d{i}") for i in range(99)))
    ),
    "an embedding": lambda path: keras_file(
        path, sequential(input_of(3), layer("Embedding", input_dim=10**9, output_dim=10**3, name="e"))
    ),
    "a million layers": lambda path: keras_file(
        path, '{"class_name": "Sequential", "config": {"layers": [' + '{"class_name": "ReLU", "config": {}},' * 10**6
    ),
    "layers in small text": lambda path: keras_file(
        path, sequential(input_of(4), *[{"class_name": "ReLU", "config": {}}] * 30_000)
    ),
    "models called twice": called_twice_on_each_level,
    "deep lists": lambda path: keras_file(path, '{"class_name": "Sequential", "config": ' + "[" * 10**6),
    "deep models": lambda path: keras_file(
        path, '{"module": "keras", "class_name": "Sequential", "config": {"name": "s", "layers": [' * 200 + "]}}" * 200
    ),
    "an archive of zeros": lambda path: keras_file(
        path, sequential(input_of(4)), [("assets/zeros", bytes(1 << 28))]
    ),
    "an archive in bzip2": lambda path: keras_file(path, b" " * (1 << 25), compression=zipfile.ZIP_BZIP2),
    "many entries": lambda path: keras_file(path, sequential(input_of(4)), [(f"a/{i}", b"") for i in range(50_000)]),
    "weights as npz": lambda path: keras_file(
        path, sequential(input_of(4)), [("model.weights.npz", npz_of(10**6, 10**6))]
    ),
    "keras 3": lambda path: zip_of_keras_3(path),
}  # fmt: skip


def repeated_names(path):
    """The same, as an attribute: the references to its texts are made references to a long one."""
    honest_h5(path)
    with h5py.File(path, "a") as file:
        file["model_weights"].attrs["long"] = "x" * (1 << 20)
        file["model_weights"].attrs.create("names", np.array([b"y" * 7777] * 1000, object), dtype=h5py.string_dtype())
    content = path.read_bytes()
    long, short = ((length).to_bytes(4, "little") for length in (1 << 20, 7777))
    reference = re.search(re.escape(long) + b".{8}\x01\0\0\0", content, re.DOTALL)[0]
    content, count = re.subn(re.escape(short) + b".{6}\0\0.{2}\0\0", lambda _: reference, content, flags=re.DOTALL)
    assert count == 1000
    path.write_bytes(content)


H5 = {
    "compressed chunks": chunks,
    "one text many times": repeated_text,
}


def zip_of_keras_3(path):
    config = layer("Sequential", layers=[
        layer("InputLayer", batch_shape=[None, 64], dtype="float32", name="i"),
        layer("Dense", units=10**6, name="d"),
    ], name="s") | {"module": "keras"}  # fmt: skip
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", json.dumps(config))
        archive.writestr("metadata.json", json.dumps({"keras_version": "3.0.0"}))


# SavedModels


def table(path, change=lambda meta_graph: None):
    from tensorflow.core.protobuf import saved_model_pb2

    module = tf.Module()
    module.w = tf.Variable(tf.ones([16, 8]))
    module.serve = tf.function(lambda x: {"y": x @ module.w}, input_signature=[tf.TensorSpec([None, 16])])
    tf.saved_model.save(module, str(path), signatures=module.serve)
    proto = saved_model_pb2.SavedModel.FromString((path / "saved_model.pb").read_bytes())
    change(proto.meta_graphs[0])
    (path / "saved_model.pb").write_bytes(proto.SerializeToString())


def splat(meta_graph):
    constant = meta_graph.graph_def.library.function[0].node_def.add(name="bomb", op="Const")
    constant.attr["dtype"].type = tf.float32.as_datatype_enum
    constant.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(1.0, shape=[10**4, 10**5]))


def nested_functions(meta_graph):
    library = meta_graph.graph_def.library
    for level in range(60):
        function = library.function.add()
        function.signature.name = f"level{level}"
        for i in range(2 if level else 0):
            call = function.node_def.add(name=f"call{i}", op="PartitionedCall")
            call.attr["f"].func.name = f"level{level - 1}"


def chain_of_functions(meta_graph):
    library = meta_graph.graph_def.library
    for level in range(1000):
        function = library.function.add()
        function.signature.name = f"level{level}"
        if level:
            function.node_def.add(name="call", op="PartitionedCall").attr["f"].func.name = f"level{level - 1}"


def many_objects(meta_graph):
    for _ in range(50_000):
        meta_graph.object_graph_def.nodes.add().user_object.identifier = "x"


def many_functions(meta_graph):
    for number in range(20_000):
        meta_graph.graph_def.library.function.add().signature.name = f"f{number}"


def negative(meta_graph):
    splat(meta_graph)
    meta_graph.graph_def.library.function[0].node_def[-1].attr["value"].tensor.tensor_shape.dim[0].size = -16


def masked_crc(data):
    """CRC-32C as LevelDB stores it."""
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    value ^= 0xFFFFFFFF
    return (value >> 15 | value << 17) + 0xA282EAD8 & 0xFFFFFFFF


def variable_of(shape):
    """A SavedModel whose checkpoint says that a variable has another shape; checksums are right."""

    def write(path):
        module = tf.Module()
        module.w = tf.Variable(tf.ones([1] * 5))
        module.serve = tf.function(
            lambda x: {"y": x * tf.reshape(module.w, [])}, input_signature=[tf.TensorSpec([None])]
        )
        tf.saved_model.save(module, str(path), signatures=module.serve)
        index = path / "variables" / "variables.index"
        content = bytearray(index.read_bytes())
        at = content.index(b"\x12\x02\x08\x01" * 5)
        stored = b"".join(b"\x12" + bytes([len(dim)]) + dim for dim in shape)
        assert len(stored) == 20
        end = next(
            end
            for end in range(at, len(content))
            if masked_crc(content[: end + 1]) == int.from_bytes(content[end + 1 : end + 5], "little")
        )
        content[at : at + 20] = stored
        content[end + 1 : end + 5] = masked_crc(content[: end + 1]).to_bytes(4, "little")
        index.write_bytes(content)

    return write


LARGE, NEGATIVE = b"\x08\xff\xff\xff\xff\x01", b"\x08" + b"\xff" * 9 + b"\x01"


SAVED_MODELS = {
    "a constant": splat,
    "functions called twice": nested_functions,
    "a chain of functions": chain_of_functions,
    "many objects": many_objects,
    "many functions": many_functions,
}


# ONNX


def onnx_file(path, nodes, initializers, functions=(), sparse=(), weight="w"):
    nodes = [*nodes, helper.make_node("MatMul", ["x", weight], ["y"], name="product")]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        initializers,
        sparse_initializer=list(sparse),
    )
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    model = helper.make_model(graph, opset_imports=imports, functions=list(functions), ir_version=8)
    path.write_bytes(model.SerializeToString())


def ints(name, *values):
    return numpy_helper.from_array(np.array(values, np.int64), name)


SMALL = numpy_helper.from_array(np.ones((1, 1), np.float32), "one")


def sparse_initializer(path):
    values = numpy_helper.from_array(np.ones(1, np.float32), "w")
    onnx_file(path, [], [], sparse=[helper.make_sparse_tensor(values, ints("at", 3), [10**5, 10**5])])


def sparse_constant(path):
    values = numpy_helper.from_array(np.ones(1, np.float32), "v")
    node = helper.make_node("Constant", [], ["w"])
    node.attribute.append(
        helper.make_attribute("sparse_value", helper.make_sparse_tensor(values, ints("at", 3), [10**5, 10**5]))
    )
    onnx_file(path, [node], [])


def growing(op, *sources, **attributes):
    def write(path):
        inputs = [f"in{i}" for i in range(len(sources))]
        held = [numpy_helper.from_array(np.array(value), name) for name, value in zip(inputs, sources, strict=True)]
        onnx_file(path, [helper.make_node(op, inputs, ["w"], **attributes)], held)

    return write


def many_copies(path):
    """Each node is small enough, and there are many."""
    nodes = [helper.make_node("Expand", ["one", "to"], [f"w{i}"]) for i in range(100)]
    nodes += [helper.make_node("MatMul", ["x", f"w{i}"], [f"y{i}"]) for i in range(100)]
    onnx_file(path, nodes, [SMALL, ints("to", 8, 200_000)], weight="w0")


def functions_in_functions(path):
    body = [helper.make_node("Relu", ["a"], ["b"])]
    functions = [helper.make_function("local", "f0", ["a"], ["b"], body, [helper.make_opsetid("", 17)])]
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    for level in range(1, 60):
        body = [helper.make_node(f"f{level - 1}", [a], [b], domain="local") for a, b in ("ac", "cb")]
        functions.append(helper.make_function("local", f"f{level}", ["a"], ["b"], body, imports))
    onnx_file(path, [helper.make_node("f59", ["one"], ["w"], domain="local")], [SMALL], functions)


def chain_of_local_functions(path):
    body = [helper.make_node("Relu", ["a"], ["b"])]
    functions = [helper.make_function("local", "f0", ["a"], ["b"], body, [helper.make_opsetid("", 17)])]
    for level in range(1, 2000):
        body = [helper.make_node(f"f{level - 1}", ["a"], ["b"], domain="local")]
        functions.append(helper.make_function("local", f"f{level}", ["a"], ["b"], body, []))
    onnx_file(path, [helper.make_node("f1999", ["one"], ["w"], domain="local")], [SMALL], functions)


def function_that_calls_itself(path):
    body = [helper.make_node("f", ["a"], ["b"], domain="local")]
    function = helper.make_function("local", "f", ["a"], ["b"], body, [helper.make_opsetid("local", 1)])
    onnx_file(path, [helper.make_node("f", ["one"], ["w"], domain="local")], [SMALL], [function])


ONE = np.ones((1, 1), np.float32)
ONNX = {
    "sparse initializer": sparse_initializer,
    "sparse constant": sparse_constant,
    "ConstantOfShape": growing("ConstantOfShape", [8, 10**9]),
    "Expand": growing("Expand", ONE, [8, 10**9]),
    "Tile": growing("Tile", ONE, [8, 10**9]),
    "Range": growing("Range", 0, 10**10, 1),
    "Pad": growing("Pad", ONE, [0, 0, 10**5, 10**5]),
    "OneHot": growing("OneHot", np.arange(8), 10**9, np.array([0, 1], np.float32)),
    "Resize": growing("Resize", ONE[None, None], np.zeros(0, np.float32), np.array([1, 1, 1e5, 1e5], np.float32)),
    "many copies": many_copies,
    "functions in functions": functions_in_functions,
    "a chain of functions": chain_of_local_functions,
    "a function that calls itself": function_that_calls_itself,
}


# TFLite


def tflite_file(path, change):
    """A product with a weight of 8 by 8, after some change to it."""

    def tensor(name, shape, buffer):
        made = schema.TensorT()
        made.name, made.shape, made.buffer, made.type = name, shape, buffer, schema.TensorType.FLOAT32
        return made

    model, graph, code, op = schema.ModelT(), schema.SubGraphT(), schema.OperatorCodeT(), schema.OperatorT()
    model.version, model.subgraphs, model.operatorCodes = 3, [graph], [code]
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.FULLY_CONNECTED
    model.buffers = [schema.BufferT(), schema.BufferT()]
    model.buffers[1].data = np.frombuffer(np.ones((8, 8), np.float32).tobytes(), np.uint8)
    graph.tensors = [tensor("x", [1, 8], 0), tensor("w", [8, 8], 1), tensor("y", [1, 8], 0)]
    op.inputs, op.outputs, op.opcodeIndex = [0, 1], [2], 0
    graph.operators, graph.inputs, graph.outputs = [op], [0], [2]
    change(model)
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(bytes(builder.Output()))


def dimension(size=None, segments=None, indices=None):
    made = schema.DimensionMetadataT()
    made.format = schema.DimensionType.DENSE if size is not None else schema.DimensionType.SPARSE_CSR
    made.denseSize = size or 0
    if segments is not None:
        made.arraySegmentsType = made.arrayIndicesType = schema.SparseIndexVector.Int32Vector
        made.arraySegments, made.arrayIndices = schema.Int32VectorT(), schema.Int32VectorT()
        made.arraySegments.values, made.arrayIndices.values = segments, indices
    return made


def mostly_empty(model):
    """One value is stored, of ten thousand millions."""
    weight = model.subgraphs[0].tensors[1]
    weight.shape = [1, 10**9]
    weight.sparsity = schema.SparsityParametersT()
    weight.sparsity.traversalOrder = [0, 1]
    weight.sparsity.dimMetadata = [dimension(size=1), dimension(segments=[0, 1], indices=[5])]


def dense_positions(model):
    weight = model.subgraphs[0].tensors[1]
    weight.shape = [1 << 13, 1 << 13]
    weight.sparsity = schema.SparsityParametersT()
    weight.sparsity.traversalOrder = [0, 1]
    weight.sparsity.dimMetadata = [dimension(size=1 << 13), dimension(size=1 << 13)]


def quantized_many_times(model):
    """One buffer of bytes, and many tensors of it that become floats."""
    graph = model.subgraphs[0]
    model.buffers[1].data = np.zeros(1 << 20, np.uint8)
    for i in range(200):
        made = schema.TensorT()
        made.name, made.shape, made.buffer, made.type = f"w{i}", [1 << 10, 1 << 10], 1, schema.TensorType.INT8
        made.quantization = schema.QuantizationParametersT()
        made.quantization.scale, made.quantization.zeroPoint = [0.5], [0]
        graph.tensors.append(made)
        op = schema.OperatorT()
        op.inputs, op.outputs, op.opcodeIndex = [0, len(graph.tensors) - 1], [2], 0
        graph.operators.append(op)


def negative_size(model):
    model.subgraphs[0].tensors[1].shape = [-8, -8]


TFLITE = {
    "mostly empty": mostly_empty,
    "dense positions": dense_positions,
    "quantized many times": quantized_many_times,
    "negative sizes": negative_size,
}


BOMBS = {
    **{f"keras: {name}": (".keras", write) for name, write in KERAS.items()},
    **{f"h5: {name}": (".h5", lambda path, change=change: h5_with(path, change)) for name, change in H5.items()},
    **{
        f"SavedModel: {name}": ("", lambda path, change=change: table(path, change))
        for name, change in SAVED_MODELS.items()
    },
    "h5: one text as many names": (".h5", repeated_names),
    "SavedModel: a variable": ("", variable_of([LARGE, LARGE, b"\x08\x01"])),
    "SavedModel: a negative variable": ("", variable_of([NEGATIVE, b"\x08\xff\xff\xff\x01"])),
    "SavedModel: negative sizes": ("", lambda path: table(path, negative)),
    **{f"onnx: {name}": (".onnx", write) for name, write in ONNX.items()},
    **{f"tflite: {name}": (".tflite", lambda path, c=change: tflite_file(path, c)) for name, change in TFLITE.items()},
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_small_file_does_not_get_what_it_asks_for(tmp_path, bomb, capsys):
    suffix, write = BOMBS[bomb]
    path = tmp_path / f"bomb{suffix}"
    write(path)
    gc.collect()
    measured = Path("/proc/self/clear_refs").exists()
    before = peak()[1] if measured else 0
    code = main(["verify", str(path)])
    most = peak()[0] if measured else 0
    _, error = capsys.readouterr()
    assert code == 2, error
    assert error.startswith("tfmot-asp: error: ")
    assert error.count("\n") == 1
    assert len(error) < 1000
    assert most - before < MOST, f"{(most - before) >> 20} MB: {error}"


def test_names_from_files_do_not_reach_the_terminal_as_they_are(tmp_path, capsys):
    name = "w\x1b[2J\ngood  MatMul  sparse"
    onnx_file(tmp_path / "m.onnx", [], [numpy_helper.from_array(np.ones((8, 8), np.float32), name)], weight=name)
    main(["verify", str(tmp_path / "m.onnx")])
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "w?[2J?good  MatMul  sparse" in out
