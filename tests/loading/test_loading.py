"""Model files that are damaged, foreign or malicious: an error of one line, and nothing of them runs."""

import json
import os
import subprocess
import sys
import warnings
import zipfile

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras
from hypothesis import given, settings
from hypothesis import strategies as st
from tf_keras import layers

import tfmot_asp
from tests.small_models import convnet, mlp
from tfmot_asp.loading import UnsafeModelError, check_saved_model, load_model
from tfmot_asp.loading.allowed_ops import is_pure_symbol, why_refused
from tfmot_asp.loading.keras_config import check_config

SUFFIXES = (".keras", ".h5", "")  # a folder without suffix is a SavedModel


def save(model, path):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*HDF5 file via")
        model.save(path)
    return path


def edit_keras(path, change):
    """Rewrites the config in a .keras archive."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(members["config.json"])
    members["config.json"] = json.dumps(change(config) or config).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def dense_of(config):
    return next(layer for layer in config["config"]["layers"] if layer["class_name"] == "Dense")


# What loads.


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("make", [mlp, convnet])
def test_loads_what_tf_keras_saves(tmp_path, make, suffix):
    model = make()
    model.compile("adam", "mse")
    loaded = load_model(save(model, tmp_path / f"model{suffix}"))
    assert isinstance(loaded, tf_keras.Model)
    for expected, got in zip(model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(expected, got)
    assert tfmot_asp.permute(loaded).permuted == tfmot_asp.permute(model).permuted > 0


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_loads_models_of_many_layers(tmp_path, suffix):
    """All that a large honest file asks for: names of layers, of weights, and an object for each."""
    inputs = x = layers.Input((4,))
    for _ in range(many := 60 if suffix else 10):  # a SavedModel is slow to write
        x = layers.Activation("relu")(layers.Dense(4)(x))
    loaded = load_model(save(tf_keras.Model(inputs, x), tmp_path / f"model{suffix}"))
    assert len(loaded.layers) == 2 * many + 1


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_loads_what_keras_3_saves(tmp_path, suffix):
    model = keras.Sequential([keras.layers.Input((16,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(4)])
    path = tmp_path / f"model{suffix}"
    model.save(path)
    loaded = load_model(path)
    assert isinstance(loaded, keras.Model)
    np.testing.assert_array_equal(model.get_weights()[0], loaded.get_weights()[0])


def test_loads_a_keras_3_model_of_ops(tmp_path):
    x = keras.Input((8, 16))
    y = keras.ops.reshape(keras.ops.relu(x + 1.0)[:, 1:], (-1, 7 * 16))
    keras.Model(x, keras.layers.Dense(4)(y)).save(tmp_path / "ops.keras")
    assert load_model(tmp_path / "ops.keras").output_shape == (None, 4)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_loads_tensorflow_functions_that_only_compute(tmp_path, suffix):
    x = layers.Input((8, 4))
    y = tf.reshape(tf.concat([tf.nn.relu(x + 1.0), x], -1)[:, 1:], [-1, 56])
    model = tf_keras.Model(x, layers.Dense(4, activation="gelu")(y))
    loaded = load_model(save(model, tmp_path / f"model{suffix}"))
    np.testing.assert_array_equal(loaded(np.ones((2, 8, 4))), model(np.ones((2, 8, 4))))


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("wrap", ["ours", "tfmot's", "clustered"])
def test_loads_wrapped_models(tmp_path, suffix, wrap):
    if wrap == "ours":
        model = tfmot_asp.prune_low_magnitude(mlp(), permute=False)
    elif wrap == "tfmot's":
        model = tfmot.sparsity.keras.prune_low_magnitude(mlp(), sparsity_m_by_n=(2, 4))
    else:
        model = tfmot.clustering.keras.cluster_weights(
            mlp(),
            number_of_clusters=4,
            cluster_centroids_init=tfmot.clustering.keras.CentroidInitialization.LINEAR,
        )
    loaded = load_model(save(model, tmp_path / f"model{suffix}"))
    assert [type(layer).__name__ for layer in loaded.layers] == [type(layer).__name__ for layer in model.layers]


@pytest.mark.parametrize("suffix", [".h5", ""])  # tf_keras cannot read quantized .keras files back
def test_loads_quantization_aware_models(tmp_path, suffix):
    model = tfmot.quantization.keras.quantize_model(mlp())
    loaded = load_model(save(model, tmp_path / f"model{suffix}"))
    assert type(loaded.layers[-1]).__name__ == "QuantizeWrapperV2"


def test_the_content_decides_and_not_the_suffix(tmp_path):
    save(mlp(), tmp_path / "model.h5").rename(tmp_path / "model.keras")
    assert load_model(tmp_path / "model.keras").name == "mlp"
    save(mlp(), tmp_path / "other.keras").rename(tmp_path / "other.h5")
    with pytest.raises(ValueError, match=r"is a \.keras archive by another name; rename it to other\.keras"):
        load_model(tmp_path / "other.h5")


@tf_keras.saving.register_keras_serializable(package="tests")
class Registered(layers.Layer):
    def call(self, inputs):
        return 2 * inputs


class Unregistered(layers.Layer):
    def call(self, inputs):
        return 2 * inputs


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_registered_layers_are_trusted(tmp_path, suffix):
    model = tf_keras.Sequential([layers.Input((4,)), Registered(), layers.Dense(3)])
    assert isinstance(load_model(save(model, tmp_path / f"model{suffix}")).layers[0], Registered)


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_layers_that_are_not_registered_are_named(tmp_path, suffix):
    model = tf_keras.Sequential([layers.Input((4,)), Unregistered(name="mine"), layers.Dense(3)])
    with pytest.raises(ValueError, match=r"'mine' is a custom Unregistered.*register_keras_serializable.*--import"):
        load_model(save(model, tmp_path / f"model{suffix}"))


def test_a_saved_model_revives_layers_that_are_not_registered(tmp_path):
    model = tf_keras.Sequential([layers.Input((4,)), Unregistered(name="mine"), layers.Dense(3)])
    loaded = load_model(save(model, tmp_path / "model"))
    np.testing.assert_allclose(loaded(np.ones((2, 4))), model(np.ones((2, 4))), rtol=1e-6)


# Malicious files. The payload writes a file, and each test looks for it.


@pytest.fixture
def marker(tmp_path):
    return tmp_path / "payload_was_here"


def lambda_layer(marker):
    # Bound by a default argument, which Keras stores, since a module's globals are not there when the file is loaded.
    return layers.Lambda(lambda x, path=str(marker): open(path, "w").close() or x, output_shape=(16,), name="evil")


NESTS = {
    "plain": lambda layer: tf_keras.Sequential([layers.Input((16,)), layer]),
    "in a nested model": lambda layer: tf_keras.Sequential(
        [layers.Input((16,)), tf_keras.Sequential([layers.Input((16,)), layer])]
    ),
    "in a wrapper": lambda layer: tf_keras.Sequential([layers.Input((3, 16)), layers.TimeDistributed(layer)]),
}


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("nest", NESTS)
def test_lambda_layers_are_refused_at_any_depth(tmp_path, marker, suffix, nest):
    path = save(NESTS[nest](lambda_layer(marker)), tmp_path / f"model{suffix}")
    marker.unlink(missing_ok=True)
    with pytest.raises(UnsafeModelError, match=r"'evil' is a Lambda layer, which is Python code.*--allow-unsafe"):
        load_model(path)
    assert not marker.exists()
    load_model(path, allow_unsafe=True)
    assert marker.exists()  # so the payload was real


@pytest.fixture
def evil_module(tmp_path, monkeypatch, marker):
    """A module whose import is the payload."""
    name = f"evil_{abs(hash(str(tmp_path)))}"
    (tmp_path / f"{name}.py").write_text(
        f"open({str(marker)!r}, 'w').close()\nclass Dense: pass\ndef relu(x): return x\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


KEYS = (
    "activation", "kernel_initializer", "kernel_regularizer", "bias_constraint", "activity_regularizer", "dtype",
    "nothing",
)  # fmt: skip


KINDS = {
    "class": {"class_name": "Dense", "config": {}, "registered_name": None},
    "function": {"class_name": "function", "config": "relu", "registered_name": "relu"},
    "nothing": {"class_name": None, "config": {}, "registered_name": "x"},
    "tuple": {"class_name": "__tuple__", "config": {}},
    "type spec": {"class_name": "TypeSpec", "config": {}},
}


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("kind", KINDS)
def test_modules_are_not_imported_because_a_file_says_so(tmp_path, marker, evil_module, key, kind):
    path = save(mlp(), tmp_path / "model.keras")
    planted = {"module": evil_module, **KINDS[kind]}
    edit_keras(path, lambda config: dense_of(config)["config"].__setitem__(key, planted))
    with pytest.raises(ValueError, match="its layer 'first' "):
        load_model(path)
    assert not marker.exists()


@pytest.mark.parametrize("kind", KINDS)
def test_the_module_of_the_model_itself_is_not_imported(tmp_path, marker, evil_module, kind):
    """tf_keras imports the module before it looks for the name, and so whatever the name."""
    path = edit_keras(save(mlp(), tmp_path / "model.keras"), lambda config: {"module": evil_module, **KINDS[kind]})
    with pytest.raises(ValueError, match=r"it (is a custom|names)"):
        load_model(path)
    assert not marker.exists()
    with pytest.raises(ValueError, match=r"cannot be loaded|no Keras model"):
        load_model(path, allow_unsafe=True)
    assert marker.exists()  # so the payload was real


PLANTED = {
    "a pickled lambda": {"class_name": "__lambda__", "config": {"value": ["4wEA", None, None]}},
    "a download": {"module": "keras.utils", "class_name": "function", "config": "get_file"},
    "a download as a class": {"module": "keras.utils", "class_name": "get_file", "config": {}, "registered_name": None},
    "a loader": {"module": "keras.models", "class_name": "function", "config": "load_model", "registered_name": "x"},
    "a switch": {
        "module": "keras.config", "class_name": "function", "config": "enable_unsafe_deserialization",
        "registered_name": "enable_unsafe_deserialization",
    },
    "a builtin": {"module": "builtins", "class_name": "function", "config": "eval", "registered_name": "eval"},
    "a builtin class": {"module": "builtins", "class_name": "Exception", "config": {}, "registered_name": None},
    "another registered name": {"module": "keras.layers", "class_name": "Dense", "config": {}, "registered_name": "x"},
    "code by a harmless name": {
        "module": None, "class_name": "Lambda", "config": {}, "registered_name": "tests>Registered",
    },
    "a type spec": {
        "class_name": "__typespec__", "module": "os", "spec_name": "system", "registered_name": None, "config": [],
    },
    "a SavedModel layer": {
        "module": "keras.layers", "class_name": "TFSMLayer", "config": {"filepath": "/x"}, "registered_name": None,
    },
    "pickled Torch": {
        "module": "keras.layers", "class_name": "TorchModuleWrapper", "config": {"module": "x"},
    },
    "another registered function": {
        "module": "keras.utils", "class_name": "function", "config": "relu", "registered_name": "get_file",
    },
    "a function that is no name": {"module": "builtins", "class_name": "function", "config": {"a": 1}},
    "a name of nothing": {"module": "evil", "class_name": None, "config": {}},
    "data of a module": {"module": "evil", "class_name": "__tuple__", "config": {}, "items": []},
    "a version of code": {"module": "keras.layers", "class_name": "LambdaV2", "config": {}},
    "no name": {"module": "keras.layers", "class_name": ["Dense"], "config": {}},
    "a submodule of the like name": {"module": "keras_evil.x", "class_name": "Dense", "config": {}},
}  # fmt: skip


@pytest.mark.parametrize("planted", PLANTED.values(), ids=PLANTED)
@pytest.mark.parametrize("package", [tf_keras, keras], ids=["tf_keras", "keras"])
@pytest.mark.parametrize("where", [lambda p: p, lambda p: [1, {"deep": (p,)}], lambda p: {"build_config": p}])
def test_names_that_are_not_known_are_refused(planted, package, where):
    config = {"class_name": "Dense", "module": "keras.layers", "config": {"name": "d", "activation": where(planted)}}
    with pytest.raises(ValueError, match=r"\S"):
        check_config(config, keras=package)


def test_tensorflow_functions_that_reach_outside_are_refused(tmp_path, marker):
    x = layers.Input(type_spec=tf.TensorSpec([], tf.string), name="text")
    model = tf_keras.Model(x, tf.strings.lower(x))
    path = save(model, tmp_path / "model.keras")

    def plant(config):
        layer = next(layer for layer in config["config"]["layers"] if layer["class_name"] == "TFOpLambda")
        layer["config"]["function"] = "io.read_file"
        layer["inbound_nodes"][0][-1] = {}

    edit_keras(path, plant)
    with pytest.raises(UnsafeModelError, match=r"calls tf\.io\.read_file"):
        load_model(path)
    marker.write_text("secret")
    assert load_model(path, allow_unsafe=True)(tf.constant(str(marker))) == b"secret"


@pytest.mark.parametrize(
    "symbol",
    ["py_function", "numpy_function", "io.read_file", "compat.v1.py_func", "raw_ops.WriteFile", "saved_model.load",
     "load_library", "print", "data.Dataset.from_generator", "keras.utils.get_file", "keras.backend.function", None, 3,
     "math.__class__.x", "train.Checkpoint", "nn.fixed_unigram_candidate_sampler"],
)  # fmt: skip
def test_symbols_that_do_more_than_compute(symbol):
    assert not is_pure_symbol(symbol)


@pytest.mark.parametrize(
    "symbol",
    ["math.add", "nn.relu", "__operators__.getitem", "concat", "compat.v1.nn.softmax", "image.resize", "linalg.matmul"],
)
def test_symbols_that_only_compute(symbol):
    assert is_pure_symbol(symbol)


@pytest.mark.parametrize(
    ("class_name", "config", "message"),
    [
        ("StringLookup", {"vocabulary": "/etc/hostname"}, "reads its vocabulary from the file '/etc/hostname'"),
        ("TextVectorization", {"vocabulary": "/etc/hostname"}, "reads its vocabulary"),
        ("TensorFlowOpLayer", {"node_def": {"name": "w", "op": "WriteFile"}}, "runs the op WriteFile"),
        ("TensorFlowOpLayer", {"node_def": 3}, "holds an op that cannot be read"),
        ("ClassMethod", {"cls_symbol": "io.gfile.GFile", "method_name": "write"}, "calls tf.io.gfile.GFile.write"),
        ("InstanceMethod", {"method_name": "__reduce__"}, "calls '__reduce__' of a tensor"),
    ],
)
def test_layers_whose_options_are_dangerous(class_name, config, message):
    layer = {"class_name": class_name, "config": {"name": "here", **config}}
    with pytest.raises(UnsafeModelError, match=rf"'here' .*{message}"):
        check_config({"layers": [layer]}, keras=tf_keras)


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/evil", "a\\..\\evil"])
def test_names_that_are_paths_are_refused(name):
    config = {"class_name": "Sequential", "config": {"layers": [{"class_name": "Dense", "config": {"name": name}}]}}
    with pytest.raises(UnsafeModelError, match="which is a path to elsewhere"):
        check_config(config, keras=tf_keras)


def test_messages_hold_nothing_that_a_terminal_would_obey(tmp_path):
    path = save(mlp(), tmp_path / "model.keras")
    edit_keras(path, lambda config: dense_of(config).__setitem__("class_name", "Evil\x1b[2J\n\n"))
    with pytest.raises(ValueError, match="names 'Evil") as caught:
        load_model(path)
    assert str(caught.value).isprintable()


def test_an_archive_must_not_unpack_outside_its_folder(tmp_path):
    path = save(mlp(), tmp_path / "model.keras")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("../../evil", b"x")
    with pytest.raises(UnsafeModelError, match=r"would unpack '\.\./\.\./evil' outside its folder"):
        load_model(path)


def test_an_archive_must_not_hold_more_than_its_size_explains(tmp_path, monkeypatch):
    monkeypatch.setattr("tfmot_asp.graph.budget.FREE", 1 << 20)
    path = save(mlp(), tmp_path / "model.keras")
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("assets/zeros", bytes(1 << 25))
    with pytest.raises(UnsafeModelError, match=r"bytes do not explain assets/zeros in it, which would make it 33,\d"):
        load_model(path)


@pytest.mark.parametrize("trick", ["link", "storage", "virtual"])
def test_hdf5_files_must_not_read_other_files(tmp_path, trick):
    secret = tmp_path / "secret.h5"
    with h5py.File(secret, "w") as file:
        file["data"] = np.zeros(3)
    path = save(mlp(), tmp_path / "model.h5")
    with h5py.File(path, "a") as file:
        if trick == "link":
            file["model_weights/planted"] = h5py.ExternalLink(str(secret), "/data")
        elif trick == "storage":
            file.create_dataset("planted", (3,), "f8", external=[(str(secret), 0, 24)])
        else:
            layout = h5py.VirtualLayout((3,), "f8")
            layout[:] = h5py.VirtualSource(str(secret), "data", (3,))
            file.create_virtual_dataset("planted", layout)
    with pytest.raises(UnsafeModelError, match=r"planted' (is a link into|takes its data from) another file"):
        load_model(path)


# SavedModels: their ops.


class Resource(tf.saved_model.experimental.TrackableResource):
    """Runs a function whenever the SavedModel is loaded, as tables do."""

    def __init__(self, payload):
        super().__init__()
        self.payload = payload

    @property
    def resource_handle(self):
        return self._create_resource()

    def _create_resource(self):
        return tf.raw_ops.VarHandleOp(dtype=tf.float32, shape=[])

    def _initialize(self):
        self.payload()


def saved(tmp_path, serve, **attributes):
    module = tf.Module()
    module.serve = tf.function(serve, input_signature=[tf.TensorSpec([None, 16])])
    module.weight = tf.Variable(tf.ones([16, 8]))
    for name, value in attributes.items():
        setattr(module, name, value)
    tf.saved_model.save(module, str(tmp_path / "saved"), signatures=module.serve)
    return tmp_path / "saved"


def test_what_runs_when_a_saved_model_is_loaded_is_checked(tmp_path, marker):
    path = saved(tmp_path, lambda x: {"y": x}, evil=Resource(lambda: tf.io.write_file(str(marker), "x")))
    marker.unlink(missing_ok=True)
    with pytest.raises(UnsafeModelError, match=r"its op WriteFile \(node '.*' in function '.*'\) can reach outside"):
        check_saved_model(path)
    assert not marker.exists()
    check_saved_model(path, allow_unsafe=True)
    tf.saved_model.load(str(path))
    assert marker.exists()


EVIL = {
    "WriteFile": lambda x, path: tf.io.write_file(path, "x"),
    "EagerPyFunc": lambda x, path: tf.py_function(lambda: 0.0, [], tf.float32),
    "PyFunc": lambda x, path: tf.numpy_function(lambda: 0.0, [], tf.float32),
    "PyFuncStateless": lambda x, path: tf.numpy_function(lambda: 0.0, [], tf.float32, stateful=False),
    "ReadFile": lambda x, path: tf.io.read_file(path),
    "MatchingFiles": lambda x, path: tf.io.matching_files(path),
    "PrintV2": lambda x, path: tf.print(x, output_stream=f"file://{path}"),
    "SaveV2": lambda x, path: tf.raw_ops.SaveV2(prefix=path, tensor_names=["x"], shape_and_slices=[""], tensors=[x]),
    "RestoreV2": lambda x, path: tf.raw_ops.RestoreV2(
        prefix=path, tensor_names=["x"], shape_and_slices=[""], dtypes=[tf.float32]
    ),
    "MergeV2Checkpoints": lambda x, path: tf.raw_ops.MergeV2Checkpoints(
        checkpoint_prefixes=[path], destination_prefix=path
    ),
    "TextLineDataset": lambda x, path: tf.raw_ops.TextLineDataset(filenames=path, compression_type="", buffer_size=1),
    "DebugIdentityV2": lambda x, path: tf.raw_ops.DebugIdentityV2(input=x, debug_urls=[f"file://{path}"]),
    "DecodeProtoV2": lambda x, path: tf.raw_ops.DecodeProtoV2(
        bytes=["x"], message_type="m", field_names=[], output_types=[], descriptor_source=path
    ),
    "FixedUnigramCandidateSampler": lambda x, path: tf.random.fixed_unigram_candidate_sampler(
        [[1]], 1, 1, False, 3, vocab_file=path
    ),
    "Abort": lambda x, path: tf.raw_ops.Abort(),
}  # fmt: skip


@pytest.mark.parametrize("op", EVIL)
@pytest.mark.parametrize("nested", [False, True], ids=["", "nested"])
def test_ops_that_reach_outside_are_refused(tmp_path, marker, op, nested):
    def payload(x):
        EVIL[op](x, str(marker))
        return x

    def serve(x):
        return {
            "y": tf.cond(tf.reduce_sum(x) > 0, lambda: tf.function(payload)(x), lambda: x) if nested else payload(x)
        }

    path = saved(tmp_path, serve)
    with pytest.raises(UnsafeModelError, match=rf"{op}|reads or writes files"):
        check_saved_model(path)
    assert not marker.exists()
    check_saved_model(path, allow_unsafe=True)


def test_checkpoint_functions_are_for_the_saver_alone(tmp_path):
    """A signature that calls the saver's own function, with a path of its own."""
    path = saved(tmp_path, lambda x: {"y": x})
    proto, graph = _proto(path)
    saver = next(f.signature.name for f in graph.library.function if any(n.op == "SaveV2" for n in f.node_def))
    victim = next(f for f in graph.library.function if "signature_wrapper" in f.signature.name)
    call = victim.node_def.add(name="planted", op="StatefulPartitionedCall")
    call.attr["f"].func.name = saver
    _write(path, proto)
    with pytest.raises(UnsafeModelError, match=r"calls '.*', which reads or writes files"):
        check_saved_model(path)


def test_the_main_graph_is_checked_where_it_can_run(tmp_path):
    path = saved(tmp_path, lambda x: {"y": x})
    proto, graph = _proto(path)
    graph.node.add(name="planted", op="SaveV2")
    _write(path, proto)
    check_saved_model(path)  # nothing runs it
    output = next(iter(proto.meta_graphs[0].signature_def["serving_default"].outputs.values())).name.split(":")[0]
    next(node for node in graph.node if node.name == output).input.append("^planted")
    _write(path, proto)
    with pytest.raises(UnsafeModelError, match=r"its op SaveV2 \(node 'planted' in the main graph\)"):
        check_saved_model(path)


def test_ops_that_nobody_knows_are_refused(tmp_path):
    path = saved(tmp_path, lambda x: {"y": x})
    proto, graph = _proto(path)
    graph.node.add(name="planted", op="FromALibrary")
    _write(path, proto)
    with pytest.raises(UnsafeModelError, match=r"its op FromALibrary .* is not known to this TensorFlow"):
        check_saved_model(path)


def test_assets_must_lie_in_the_folder(tmp_path):
    (tmp_path / "words.txt").write_text("a\nb\n")
    table = tf.lookup.StaticHashTable(
        tf.lookup.TextFileInitializer(
            str(tmp_path / "words.txt"),
            tf.string,
            tf.lookup.TextFileIndex.WHOLE_LINE,
            tf.int64,
            tf.lookup.TextFileIndex.LINE_NUMBER,
        ),
        -1,
    )
    path = saved(tmp_path, lambda x: {"y": x}, table=table)
    check_saved_model(path)
    proto, _ = _proto(path)
    proto.meta_graphs[0].asset_file_def[0].filename = "../../etc/passwd"
    _write(path, proto)
    with pytest.raises(UnsafeModelError, match=r"asset '\.\./\.\./etc/passwd' lies outside its folder"):
        check_saved_model(path)


def test_a_keras_saved_model_with_such_an_op_is_refused(tmp_path, marker):
    class Evil(layers.Layer):
        def call(self, inputs):
            tf.io.write_file(str(marker), "x")
            return inputs

    path = tmp_path / "model"
    tf_keras.Sequential([layers.Input((4,)), Evil()]).save(path)
    marker.unlink(missing_ok=True)
    with pytest.raises(UnsafeModelError, match="its op WriteFile"):
        load_model(path)
    assert not marker.exists()


def test_ordinary_saved_models_pass(tmp_path):
    x = layers.Input((4, 16))
    y = layers.LSTM(8)(layers.Dropout(0.5)(x))
    tf_keras.Model(x, layers.Dense(2)(y)).save(tmp_path / "recurrent")
    check_saved_model(tmp_path / "recurrent")
    lookup = tf_keras.Sequential([layers.StringLookup(vocabulary=["a", "b"]), layers.Embedding(4, 8)])
    lookup(tf.constant([["a"]]))
    lookup.save(tmp_path / "table")
    assert load_model(tmp_path / "table")(tf.constant([["b"]])).shape == (1, 1, 8)
    tfmot_asp.export.saved_model(convnet(), tmp_path / "exported")
    check_saved_model(tmp_path / "exported")
    model = keras.Sequential([keras.layers.Input((16,)), keras.layers.Dense(8)])
    model.export(tmp_path / "keras3", verbose=False)
    check_saved_model(tmp_path / "keras3")


def test_saved_models_of_tensorflow_1_pass(tmp_path):
    graph = tf.Graph()
    with graph.as_default(), tf.compat.v1.Session(graph=graph) as session:
        x = tf.compat.v1.placeholder(tf.float32, [None, 4], "x")
        weight = tf.compat.v1.get_variable("w", [4, 2], use_resource=True)
        y = tf.matmul(x, weight)
        session.run(tf.compat.v1.global_variables_initializer())
        tf.compat.v1.saved_model.simple_save(session, str(tmp_path / "v1"), {"x": x}, {"y": y})
    check_saved_model(tmp_path / "v1")
    assert tf.saved_model.load(str(tmp_path / "v1")).signatures["serving_default"](tf.ones([1, 4]))["y"].shape == (1, 2)


def test_state_is_refused_unless_it_is_listed():
    from tensorflow.core.framework import node_def_pb2
    from tensorflow.python.framework import op_def_registry

    def refused(name):
        return op_def_registry.get(name) is None or why_refused(node_def_pb2.NodeDef(op=name)) is not None

    assert not any(map(refused, ["MatMul", "Conv2D", "VarHandleOp", "While", "RandomUniform", "LookupTableFindV2"]))
    assert all(map(refused, ["RpcCall", "WriteSummary", "Send", "_Recv", "CreateSummaryFileWriter", "RemoteCall"]))


def _proto(path):
    from tensorflow.core.protobuf import saved_model_pb2

    proto = saved_model_pb2.SavedModel.FromString((path / "saved_model.pb").read_bytes())
    return proto, proto.meta_graphs[0].graph_def


def _write(path, proto):
    (path / "saved_model.pb").write_bytes(proto.SerializeToString())


# Damaged and foreign files.


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """The bytes of one good file per format; of the SavedModel, of each of its files."""
    folder = tmp_path_factory.mktemp("good")
    model = mlp()
    files = {suffix: save(model, folder / f"model{suffix}").read_bytes() for suffix in (".keras", ".h5")}
    model.save(folder / "saved")
    files["saved"] = {
        str(file.relative_to(folder / "saved")): file.read_bytes()
        for file in (folder / "saved").rglob("*")
        if file.is_file()
    }
    return files


def fails_in_one_line(path):
    with pytest.raises(ValueError, match=r"\S") as caught:
        load_model(path)
    message = str(caught.value)
    assert "\n" not in message
    assert path.name in message
    assert len(message) < 1000


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
@settings(max_examples=12)
@given(share=st.floats(0, 0.999))
def test_truncated_files(tmp_path_factory, good, suffix, share):
    path = tmp_path_factory.mktemp("cut") / f"model{suffix}"
    path.write_bytes(good[suffix][: int(share * len(good[suffix]))])
    fails_in_one_line(path)


@pytest.mark.parametrize("part", ["saved_model.pb", "keras_metadata.pb", "variables/variables.index"])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.95])
def test_truncated_saved_models(tmp_path, good, part, share):
    for name, content in good["saved"].items():
        (tmp_path / "cut" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "cut" / name).write_bytes(content[: int(share * len(content))] if name == part else content)
    fails_in_one_line(tmp_path / "cut")


@settings(max_examples=20)
@given(position=st.floats(0, 0.999), value=st.integers(0, 255))
def test_flipped_bytes_load_or_fail_in_one_line(tmp_path_factory, good, position, value):
    content = bytearray(good[".keras"])
    content[int(position * len(content))] = value
    path = tmp_path_factory.mktemp("flip") / "model.keras"
    path.write_bytes(content)
    try:
        load_model(path)
    except ValueError as error:
        assert "\n" not in str(error)  # noqa: PT017 (it may load as well)


FOREIGN = {
    "empty": (b"", "is empty"),
    "picture": (b"\x89PNG\r\n\x1a\n" + bytes(100), r"neither a \.keras archive nor an HDF5 file"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
    "text": (b"hello", "neither"),
    "pickle": (b"\x80\x04\x95", "neither"),
}


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
@pytest.mark.parametrize("kind", FOREIGN)
def test_foreign_files(tmp_path, kind, suffix):
    content, message = FOREIGN[kind]
    path = tmp_path / f"model{suffix}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_model(path)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({}, "damaged or cut short|neither"),
        ({"word/document.xml": "x"}, "without config.json"),
        ({"config.json": "{"}, "cannot be loaded"),
        ({"config.json": "[]"}, "holds no model"),
        ({"config.json": "null", "metadata.json": "3"}, "holds no model"),
        ({"config.json": "[" * 100_000}, "cannot be loaded"),
        ({"config.json": '{"a":' * 100_000}, "cannot be loaded"),
        ({"config.json": "{}", "metadata.json": "{}"}, "cannot be loaded|no Keras model"),
        (
            {"config.json": '{"class_name": "Dense", "module": "keras.layers", "config": {"units": 3}}'},
            "cannot|no Keras",
        ),
    ],
)
def test_archives_without_a_model(tmp_path, members, message):
    path = tmp_path / "model.keras"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    with pytest.raises(ValueError, match=message):
        load_model(path)


def test_weights_without_a_model(tmp_path):
    mlp().save_weights(tmp_path / "only.weights.h5")
    with pytest.raises(ValueError, match="holds weights only, no model"):
        load_model(tmp_path / "only.weights.h5")


def test_what_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file or folder"):
        load_model(tmp_path / "nowhere.keras")
    with pytest.raises(FileNotFoundError, match="there is no file or folder"):
        check_saved_model(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"folder without saved_model\.pb"):
        load_model(tmp_path)
    with pytest.raises(ValueError, match=r"folder without saved_model\.pb"):
        check_saved_model(tmp_path)


def test_parts_and_other_formats_are_told_apart(tmp_path):
    tf_keras.Sequential([layers.Input((4,)), layers.Dense(2)]).save(tmp_path / "model")
    with pytest.raises(ValueError, match="is a part of a SavedModel; give its folder"):
        load_model(tmp_path / "model" / "saved_model.pb")
    (tmp_path / "model.onnx").write_bytes(b"\x08\x07")
    with pytest.raises(ValueError, match="`verify` reads it"):
        load_model(tmp_path / "model.onnx")
    saved(tmp_path, lambda x: {"y": x})
    with pytest.raises(ValueError, match=r"a SavedModel without Keras layers.*can be verified"):
        load_model(tmp_path / "saved")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_may_not_be_read(tmp_path):
    path = save(mlp(), tmp_path / "model.keras")
    path.chmod(0)
    with pytest.raises(ValueError, match="permission denied"):
        load_model(path)


def test_importing_it_loads_no_tensorflow():
    code = "import sys, tfmot_asp.loading; assert not {'tensorflow', 'keras', 'tf_keras', 'h5py'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
