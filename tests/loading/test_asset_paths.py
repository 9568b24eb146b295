"""SavedModels whose ops name files: they open assets of their own, and nothing else."""

import ctypes
import os
import shutil
import sys

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow.python.framework import op_def_registry

from tfmot_asp.export.read_tensorflow import load_signature
from tfmot_asp.export.verify import verify
from tfmot_asp.loading import UnsafeModelError, check_saved_model, load_model

INDEX = tf.lookup.TextFileIndex
STRING, NUMBER = [tf.TensorSpec([None], tf.string)], [tf.TensorSpec([None])]


@pytest.fixture
def words(tmp_path):
    path = tmp_path / "outside" / "words.txt"
    path.parent.mkdir()
    path.write_text("a\nb\n")
    return path


class Opened:
    """Whether a file was opened, by anyone, as Linux tells."""

    def __init__(self, path):
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.queue = self.libc.inotify_init1(os.O_NONBLOCK)
        in_open = 0x20
        assert self.libc.inotify_add_watch(self.queue, os.fsencode(path), in_open) >= 0

    def __bool__(self):
        try:
            return len(os.read(self.queue, 4096)) > 0
        except BlockingIOError:
            return False

    def close(self):
        os.close(self.queue)


@pytest.fixture
def opened(words):
    if sys.platform != "linux":
        pytest.skip("needs inotify")
    watch = Opened(words)
    yield watch
    watch.close()


def table(words):
    initializer = tf.lookup.TextFileInitializer(str(words), tf.string, INDEX.WHOLE_LINE, tf.int64, INDEX.LINE_NUMBER)
    return tf.lookup.StaticHashTable(initializer, -1)


def save(path, function, signature, **attributes):
    module = tf.Module()
    for name, value in attributes.items():
        setattr(module, name, value)
    module.serve = tf.function(function, input_signature=signature)
    tf.saved_model.save(module, str(path), signatures=module.serve)
    return path


def save_table(path, words):
    held = table(words)
    return save(path, lambda x: {"y": held.lookup(x)}, STRING, table=held)


def save_v1(path, words):
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        held = table(words)
        x = tf.compat.v1.placeholder(tf.string, [None], "x")
        y = held.lookup(x)
        initialize = tf.compat.v1.tables_initializer()
        session.run(initialize)
        tf.compat.v1.saved_model.simple_save(session, str(path), {"x": x}, {"y": y}, legacy_init_op=initialize)
    return path


def edit(path, change):
    proto = saved_model_pb2.SavedModel.FromString((path / "saved_model.pb").read_bytes())
    change(proto.meta_graphs[0])
    (path / "saved_model.pb").write_bytes(proto.SerializeToString())


def reader_in(meta_graph):
    """The function that fills the table, and the op that does."""
    return next(
        (function, node)
        for function in meta_graph.graph_def.library.function
        for node in function.node_def
        if node.op == "InitializeTableFromTextFileV2"
    )


# What is allowed.


def test_assets_are_opened_however_they_got_there(tmp_path, words):
    save_table(tmp_path / "once", words)
    once = tf.saved_model.load(str(tmp_path / "once"))
    tf.saved_model.save(once, str(tmp_path / "twice"), signatures=once.signatures)
    save_v1(tmp_path / "v1", words)
    loaded = tf.saved_model.load(str(tmp_path / "v1"))
    tf.saved_model.save(loaded, str(tmp_path / "v1 as v2"), signatures=loaded.signatures)
    shutil.rmtree(words.parent)
    for name in ("once", "twice", "v1", "v1 as v2"):
        found = load_signature(tmp_path / name)(tf.constant(["b"]))
        assert found["y"].numpy() == [1], name


# What is refused.


def fill(path):
    handle = tf.raw_ops.HashTableV2(key_dtype=tf.string, value_dtype=tf.int64, shared_name="planted")
    tf.raw_ops.InitializeTableFromTextFileV2(
        table_handle=handle, filename=path, key_index=INDEX.WHOLE_LINE, value_index=INDEX.LINE_NUMBER
    )
    return 0


PLANTED = {
    "constant": lambda path: fill(path),
    "relative": lambda path: fill(os.path.relpath(path)),
    "identity": lambda path: fill(tf.identity(tf.identity(tf.constant(path)))),
    "joined": lambda path: fill(tf.strings.join([tf.constant(os.path.dirname(path)), tf.constant("words.txt")], "/")),
    "decoded": lambda path: fill(tf.io.decode_base64(tf.io.encode_base64(path))),
    "branch": lambda path: tf.cond(tf.random.uniform([]) < 2, lambda: fill(path), lambda: 0),
    "branch's argument": lambda path: (
        lambda computed: tf.cond(tf.random.uniform([]) < 2, lambda: fill(computed), lambda: 0)
    )(tf.strings.lower(path)),
    "loop": lambda path: tf.while_loop(lambda i: i < 1, lambda i: i + 1 + fill(path), [0]),
    "function": lambda path: tf.function(lambda: fill(path))(),
    "function's argument": lambda path: tf.function(fill)(tf.constant(path)),
    "function in a function": lambda path: tf.function(lambda p: tf.function(fill)(p))(tf.strings.join([path])),
    "url": lambda path: fill("gs://bucket/words.txt"),
}


@pytest.mark.parametrize("kind", PLANTED)
def test_paths_that_are_no_assets_are_refused(tmp_path, words, opened, kind):
    def serve(x):
        PLANTED[kind](str(words))
        return {"y": x}

    path = save(tmp_path / "saved", serve, NUMBER)
    with pytest.raises(UnsafeModelError, match=r"its op InitializeTableFromTextFileV2 \(node .* opens a path that"):
        load_signature(path)
    assert not opened


def test_the_watch_would_see_it(tmp_path, words, opened):
    def serve(x):
        fill(str(words))
        return {"y": x}

    load_signature(save(tmp_path / "saved", serve, NUMBER), allow_unsafe=True)(tf.zeros([1]))
    assert opened


def test_a_path_that_the_user_hands_in_is_refused(tmp_path):
    def serve(path):
        fill(path)
        return {"y": path}

    path = save(tmp_path / "saved", serve, [tf.TensorSpec([], tf.string)])
    with pytest.raises(UnsafeModelError, match=r"opens a path that is no asset of it: '.*' takes it from its caller"):
        check_saved_model(path)


def unbound(meta_graph):
    function, _ = reader_in(meta_graph)
    del meta_graph.object_graph_def.concrete_functions[function.signature.name].bound_inputs[:]


def bound_to_something_else(meta_graph):
    function, _ = reader_in(meta_graph)
    nodes = meta_graph.object_graph_def.nodes
    captured = nodes.add()
    captured.captured_tensor.name, captured.captured_tensor.concrete_function = "c", function.signature.name
    meta_graph.object_graph_def.concrete_functions[function.signature.name].bound_inputs[0] = len(nodes) - 1


def asset_with_a_child(meta_graph):
    """TensorFlow sets an asset's attributes to its children, its path too."""
    nodes = meta_graph.object_graph_def.nodes
    asset = next(node for node in nodes if node.WhichOneof("kind") == "asset")
    asset.children.add(node_id=0, local_name="_path")


def asset_of_another_class(meta_graph):
    asset = next(node for node in meta_graph.object_graph_def.nodes if node.WhichOneof("kind") == "asset")
    asset.registered_name = "tf.TrackableConstant"


def asset_that_is_a_slot(meta_graph):
    nodes = meta_graph.object_graph_def.nodes
    number = next(i for i, node in enumerate(nodes) if node.WhichOneof("kind") == "asset")
    nodes[0].slot_variables.add(slot_variable_node_id=number, slot_name="m")


def list_argument(meta_graph):
    """Which of a call's inputs is which argument cannot be told any more."""
    function, _ = reader_in(meta_graph)
    function.signature.input_arg[1].number_attr = "N"


def replaced_by_the_optimizer(meta_graph):
    function, _ = reader_in(meta_graph)
    function.attr["api_implements"].s = b"something"


def gradient(meta_graph):
    function, _ = reader_in(meta_graph)
    meta_graph.graph_def.library.gradient.add(function_name="f", gradient_func=function.signature.name)


def caller(meta_graph):
    """A function that hands the initializer a path of its own."""
    function, _ = reader_in(meta_graph)
    planted = meta_graph.graph_def.library.function.add()
    planted.signature.name = "planted"
    planted.node_def.add(name="path", op="Const")
    call = planted.node_def.add(name="call", op="StatefulPartitionedCall", input=["path:output:0"] * 2)
    call.attr["f"].func.name = function.signature.name


def reference(meta_graph):
    function, _ = reader_in(meta_graph)
    planted = meta_graph.graph_def.library.function.add()
    planted.signature.name = "planted"
    planted.node_def.add(name="loop", op="While").attr["body"].func.name = function.signature.name


def in_the_main_graph(meta_graph):
    meta_graph.graph_def.node.add(name="path", op="Const")
    meta_graph.graph_def.node.add(name="planted", op="InitializeTableFromTextFile", input=["hash_table", "path"])


def hidden_behind_a_name(meta_graph):
    function, node = reader_in(meta_graph)
    function.node_def.add(name=node.input[1], op="Const")


def of_a_function_named_like_an_op(meta_graph):
    meta_graph.graph_def.library.function.add().signature.name = "WriteFile"


@pytest.mark.parametrize(
    "trick",
    [
        *(unbound, bound_to_something_else, asset_with_a_child, asset_of_another_class, asset_that_is_a_slot),
        *(list_argument, replaced_by_the_optimizer, gradient, caller, reference, in_the_main_graph),
        *(hidden_behind_a_name, of_a_function_named_like_an_op),
    ],
)
def test_tricks_with_the_initializer_of_a_table(tmp_path, words, trick):
    path = save_table(tmp_path / "saved", words)
    check_saved_model(path)
    edit(path, trick)
    with pytest.raises(UnsafeModelError, match=r"opens a path that|two nodes of the same name|has the name of an op"):
        check_saved_model(path)


def test_assets_of_tensorflow_1_must_lie_in_the_folder(tmp_path, words):
    path = save_v1(tmp_path / "saved", words)

    def leave(meta_graph):
        (packed,) = meta_graph.collection_def["saved_model_assets"].any_list.value
        packed.value = packed.value.replace(b"words.txt", b"../../sec")

    edit(path, leave)
    with pytest.raises(UnsafeModelError, match=r"asset '\.\./\.\./sec' lies outside its folder"):
        check_saved_model(path)


def test_signatures_of_tensorflow_1_do_not_open_files(tmp_path, words):
    """An asset's tensor holds whatever the file says unless the loader feeds it, and it does so for initializers."""
    path = save_v1(tmp_path / "saved", words)

    def run_by_signature(meta_graph):
        nodes = {node.name: node for node in meta_graph.graph_def.node}
        reader = next(node for node in nodes.values() if node.op == "InitializeTableFromTextFileV2")
        (output,) = meta_graph.signature_def["serving_default"].outputs.values()
        nodes[output.name.split(":")[0]].input.append(f"^{reader.name}")

    edit(path, run_by_signature)
    with pytest.raises(UnsafeModelError, match="opens a file when a signature runs"):
        check_saved_model(path)


def test_every_op_of_tensorflow_with_a_path_is_refused(tmp_path):
    """By their registration, whatever ops this TensorFlow has."""
    from tensorflow.core.framework import node_def_pb2, op_def_pb2
    from tensorflow.python.client import pywrap_tf_session as session

    from tfmot_asp.loading.allowed_ops import CHECKPOINT_OPS, why_refused
    from tfmot_asp.loading.asset_paths import ASSET_READERS

    def names_a_path(op):
        named = [argument.name for argument in op.input_arg]
        named += [attribute.name for attribute in op.attr if attribute.type in ("string", "list(string)")]
        parts = {part for name in named for part in name.split("_")}
        return parts & {"file", "filename", "filenames", "path", "paths", "dir", "logdir", "directory", "url", "urls",
                        "uri", "address", "prefix", "prefixes", "pattern"}  # fmt: skip

    registered = op_def_pb2.OpList.FromString(session.TF_GetBuffer(session.TF_GetAllOpList())).op
    found = {op.name for op in registered if names_a_path(op)}
    assert {"ReadFile", "RestoreV2", "TextLineDataset", "FixedUnigramCandidateSampler", *ASSET_READERS} <= found
    patterns_of_text = {"RegexFullMatch", "StaticRegexFullMatch", "RegexReplace", "StaticRegexReplace"}
    for name in found - CHECKPOINT_OPS - ASSET_READERS.keys() - patterns_of_text:
        assert why_refused(node_def_pb2.NodeDef(op=name)) is not None, name
    for name in ASSET_READERS:  # checked by where the path comes from, in SavedModels alone
        assert why_refused(node_def_pb2.NodeDef(op=name)) is not None, name
        assert ASSET_READERS[name] == [argument.name for argument in op_def_registry.get(name).input_arg].index(
            "filename"
        )


# What runs on loading.


class Resource(tf.saved_model.experimental.TrackableResource):
    """Runs a function whenever the SavedModel is loaded, as tables do."""

    def __init__(self, run):
        super().__init__()
        self.run = run

    def _create_resource(self):
        return tf.raw_ops.VarHandleOp(dtype=tf.float32, shape=[])

    def _initialize(self):
        self.run()


RUNS = {
    "a loop": lambda: tf.while_loop(lambda i: i < 1, lambda i: i + 1, [0]),
    "a loop of a function": lambda: tf.function(lambda: tf.while_loop(lambda i: i < 1, lambda i: i + 1, [0]))(),
    "memory": lambda: tf.raw_ops.Fill(dims=[2, 2], value=1.0),
    "a range": lambda: tf.raw_ops.Range(start=0, limit=tf.constant(1 << 30), delta=1),
    "random numbers": lambda: tf.random.uniform([2]),
}


@pytest.mark.parametrize("kind", RUNS)
def test_loading_ends(tmp_path, kind):
    def run():
        tf.print(RUNS[kind]())  # or it would be left out

    path = save(tmp_path / "saved", lambda x: {"y": x}, NUMBER, resource=Resource(run))
    with pytest.raises(UnsafeModelError, match=r"runs when it is loaded, and may (never end|need any memory)"):
        load_signature(path)


def test_loops_of_constants_are_not_run(tmp_path):
    """One that never ends would keep whoever reads the weight behind it."""
    weight = tf.constant(np.ones((16, 8), np.float32))

    def serve(x):
        (forever,) = tf.while_loop(lambda i: i >= 0.0, lambda i: i * 1.0, [tf.constant(1.0)])
        return {"y": x @ (weight * forever)}

    report = verify(save(tmp_path / "saved", serve, [tf.TensorSpec([None, 16])]))
    assert not report.ok
    assert [layer.status for layer in report.layers] in ([], ["unreadable"])


# Links, pipes and devices.


@pytest.fixture
def folder(tmp_path, words):
    path = save_table(tmp_path / "saved", words)
    check_saved_model(path)
    return path


@pytest.mark.parametrize(
    "part",
    ["saved_model.pb", "assets", "assets/words.txt", "variables", "variables/variables.index", "fingerprint.pb"],
)
def test_links_out_of_the_folder_are_refused(tmp_path, folder, part):
    (folder / part).rename(tmp_path / "elsewhere")
    (folder / part).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UnsafeModelError, match=f"its '{part}' is a link that leads out of the folder"):
        load_signature(folder)
    load_signature(folder, allow_unsafe=True)


def test_links_through_links_are_resolved(tmp_path, folder, words):
    (folder / "assets" / "words.txt").unlink()
    (folder / "assets" / "words.txt").symlink_to("../debug/inner")
    (folder / "debug").mkdir()
    (folder / "debug" / "inner").symlink_to(words)
    with pytest.raises(UnsafeModelError, match="leads out of the folder"):
        load_signature(folder)


def test_links_within_the_folder_and_hard_links_are_files(tmp_path, folder):
    os.link(folder / "assets" / "words.txt", tmp_path / "hard")
    (folder / "assets" / "words.txt").rename(folder / "assets" / "other")
    (folder / "assets" / "words.txt").symlink_to("other")
    (tmp_path / "link").symlink_to(folder)
    assert load_signature(tmp_path / "link")(tf.constant(["b"]))["y"].numpy() == [1]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
@pytest.mark.parametrize("part", ["saved_model.pb", "assets/words.txt", "variables/variables.index", "fingerprint.pb"])
@pytest.mark.parametrize("linked", [False, True])
def test_pipes_are_not_waited_for(tmp_path, folder, part, linked):
    (folder / part).unlink()
    os.mkfifo(folder / "pipe" if linked else folder / part)
    if linked:
        (folder / part).symlink_to(folder / "pipe")
    with pytest.raises(ValueError, match=r"is neither a file nor a folder|without saved_model.pb"):
        load_signature(folder)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
@pytest.mark.parametrize("suffix", [".keras", ".h5", ".onnx", ".tflite"])
def test_a_model_is_no_pipe(tmp_path, suffix):
    path = tmp_path / f"model{suffix}"
    os.mkfifo(path)
    for read in (verify, load_model):
        with pytest.raises(ValueError, match="is neither a file nor a folder"):
            read(path)


def test_a_loop_of_links_is_damage(folder):
    (folder / "assets" / "a").symlink_to("b")
    (folder / "assets" / "b").symlink_to("a")
    with pytest.raises(ValueError, match=r"cannot be read: its 'assets/[ab]'"):
        check_saved_model(folder)
