"""Written files are judged by their graphs. Each weight is checked against what was written, by other means."""

import json

import keras as keras3
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from tf_keras import layers

import tfmot_asp
from tests.small_models import convnet, mlp
from tfmot_asp import masks
from tfmot_asp.export.read_tensorflow import load_signature
from tfmot_asp.graph.flatten import trace_function
from tfmot_asp.graph.gemms import find_gemms
from tfmot_asp.graph.trace import trace


def sparse(weight, axis):
    weight = np.asarray(weight)
    return masks.apply_mask(weight, masks.m_by_n_mask(np.abs(weight), axis))


def one_shot(model):
    return tfmot_asp.strip_pruning(tfmot_asp.prune_low_magnitude(model, permute=False))


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
@pytest.mark.parametrize("name", ["keras_saved_model", "model.keras", "model.h5", "ours"])
def test_a_planted_violation_is_found_in_every_format(tmp_path, name):
    model = one_shot(convnet())

    def write(path):
        if name == "ours":
            tfmot_asp.export.saved_model(model, path)
        else:
            model.save(path)

    write(tmp_path / f"good_{name}")
    report = tfmot_asp.export.verify(tmp_path / f"good_{name}")
    assert report.ok
    assert report.sparse == 3
    kernel = model.get_layer("fc").kernel.numpy()
    stripe = kernel[8:12, 3]
    stripe[np.flatnonzero(stripe == 0)[0]] = 1e-6
    model.get_layer("fc").kernel.assign(kernel)
    write(tmp_path / f"bad_{name}")
    report = tfmot_asp.export.verify(tmp_path / f"bad_{name}")
    assert not report.ok
    rows = {layer.name.split("/")[-2]: layer for layer in report.layers}
    assert (rows["fc"].status, rows["fc"].violations) == ("broken", 1)
    assert rows["conv"].status == "sparse"
    assert rows["stem"].status == "dense"
    assert "NOT ok" in str(report)
    assert json.loads(json.dumps(report.to_dict()))["ok"] is False


class ByHand(tf.Module):
    """A serving function with weights in all positions and disguises, built from raw ops."""

    def __init__(self):
        super().__init__()
        normal = np.random.default_rng(0).standard_normal
        self.expected = {}
        self.a = tf.Variable(self._sparse("transposed_b", normal((8, 16)), 1), name="transposed_b")
        self.b = tf.Variable(self._sparse("on_the_left", normal((8, 8)), 1), name="on_the_left")
        self.c = tf.Variable(self._sparse("half", normal((8, 16)).astype(np.float16), 0), name="half")
        self.d = tf.Variable(self._sparse("as_einsum", normal((4, 4, 8)), (0, 1)), name="as_einsum")
        self.e = tf.Variable(self._sparse("wrong_axis", normal((8, 16)), 1), name="wrong_axis")
        self.f = self._sparse("frozen", normal((16, 8)), 0)
        self.g = tf.Variable(self._sparse("folded", normal((1, 1, 8, 16)), 2), name="folded")
        self.h = tf.Variable(self._sparse("batched", normal((2, 8, 8)), 1), name="batched")

    def _sparse(self, name, weight, axis):
        weight = weight if weight.dtype == np.float16 else weight.astype(np.float32)
        self.expected[name] = sparse(weight, axis)
        return self.expected[name]

    @tf.function(input_signature=[tf.TensorSpec((None, 16), tf.float32)])
    def __call__(self, x):
        y = tf.matmul(x, self.a, transpose_b=True)  # (n, 8)
        y = tf.transpose(tf.matmul(self.b, y, transpose_b=True))
        y = tf.matmul(y, tf.cast(self.c, tf.float32))  # (n, 16)
        y = tf.einsum("nab,abk->nk", tf.reshape(y, (-1, 4, 4)), self.d)  # (n, 8)
        y = tf.matmul(y, self.e)  # (n, 16): 2:4, but along its outputs
        y = tf.matmul(y, tf.constant(self.f))  # (n, 8)
        scaled = self.g * tf.reshape(tf.range(1.0, 17.0), (1, 1, 1, 16))  # what folding a batch norm leaves
        y = tf.nn.conv2d(tf.reshape(y, (-1, 1, 1, 8)), scaled, 1, "VALID")
        y = tf.matmul(tf.reshape(y, (2, -1, 8)), self.h)
        return {"out": tf.matmul(y, y, transpose_b=True)}  # two activations: no weight


def test_weights_are_found_in_every_position_and_through_every_disguise(tmp_path):
    module = ByHand()
    tf.saved_model.save(module, str(tmp_path / "m"), signatures=module.__call__)
    report = tfmot_asp.export.verify(tmp_path / "m")
    found = {layer.name: layer for layer in report.layers}
    frozen = found.pop(next(name for name in found if "onst" in name))
    assert {name: (layer.status, layer.reduction_axes) for name, layer in found.items()} == {
        "transposed_b": ("sparse", (1,)),
        "on_the_left": ("sparse", (1,)),
        "half": ("sparse", (0,)),
        "as_einsum": ("sparse", (0, 1)),
        "wrong_axis": ("broken", (0,)),  # half zeros, but in the wrong places
        "folded": ("sparse", (2,)),
        "batched": ("sparse", (1,)),
    }
    assert (frozen.status, frozen.shape) == ("sparse", (16, 8))
    for gemm in find_gemms(trace_function(load_signature(tmp_path / "m"))):
        if gemm.weight_name in ("folded", "half"):
            continue
        expected = module.expected.get(gemm.weight_name, module.expected["frozen"])
        np.testing.assert_array_equal(gemm.weight, expected)


def test_tensordot_conv1d_depthwise_grouped_and_transposed_layers(tmp_path):
    x = layers.Input((8, 16))
    y = layers.Dense(16, name="dense3")(x)
    y = layers.Conv1D(32, 3, padding="same", name="conv1d")(y)
    y = layers.Reshape((8, 4, 8))(y)
    y = layers.DepthwiseConv2D(3, name="depthwise")(y)
    y = layers.Conv2D(16, 1, groups=2, name="grouped")(y)
    y = layers.Conv2DTranspose(8, 2, name="up")(y)
    y = layers.Conv2D(8, 1, name="twice")(layers.Conv2D(8, 1, name="small_in")(y))
    model = tf_keras.Model(x, y)
    model.get_layer("up").kernel.assign(sparse(model.get_layer("up").kernel, 3))
    tfmot_asp.export.saved_model(model, tmp_path / "m")
    rows = {layer.name.split("/")[0]: layer for layer in tfmot_asp.export.verify(tmp_path / "m").layers}
    assert rows["dense3"].shape == (16, 16)
    assert rows["dense3"].reduction_axes == (0,)
    assert rows["conv1d"].shape == (1, 3, 16, 32)
    assert rows["conv1d"].reduction_axes == (2,)
    assert rows["depthwise"].status == "depthwise"
    assert rows["grouped"].reason == "2 groups"
    assert (rows["up"].status, rows["up"].reason) == (
        "sparse",
        "a transposed convolution is not among what TensorRT documents",
    )
    assert rows["twice"].reason is None


def test_a_layer_called_twice_is_listed_once():
    shared = layers.Dense(16, name="shared")
    x = layers.Input((16,))
    model = tf_keras.Model(x, shared(shared(x)))
    assert [gemm.weight_name for gemm in find_gemms(trace(model))] == ["shared/kernel"]


def test_equal_names_are_told_apart_by_identity():
    inner = tf_keras.Sequential([layers.Input((16,)), layers.Dense(16, name="fc")], name="block")
    outer = tf_keras.Sequential([layers.Input((16,)), inner, layers.Dense(16, name="fc")])
    kernels = [inner.get_layer("fc").kernel.numpy(), outer.get_layer("fc").kernel.numpy()]
    for gemm, kernel in zip(find_gemms(trace(outer)), kernels, strict=True):
        np.testing.assert_array_equal(gemm.weight, kernel)


def test_a_wrapped_model_can_be_verified_as_saved(tmp_path):
    pruned = tfmot_asp.prune_low_magnitude(mlp(), permute=False)
    pruned.compile("adam", "mse")
    pruned.fit(np.ones((4, 16), np.float32), np.ones((4, 8), np.float32), verbose=0)
    for name in ("m.keras", "m"):
        pruned.save(tmp_path / name)
        report = tfmot_asp.export.verify(tmp_path / name)
        assert (report.ok, report.sparse) == (True, 2)


def test_other_patterns_and_small_layers(tmp_path):
    model = tf_keras.Sequential([layers.Input((2,)), layers.Dense(16, name="tiny"), layers.Dense(8, name="fc")])
    kernel = model.get_layer("fc").kernel.numpy()
    model.get_layer("fc").kernel.assign(masks.apply_mask(kernel, masks.m_by_n_mask(np.abs(kernel), 0, (3, 4))))
    tfmot_asp.export.saved_model(model, tmp_path / "m")
    report = tfmot_asp.export.verify(tmp_path / "m", sparsity_m_by_n=(3, 4))
    assert [layer.status for layer in report.layers] == ["dense", "sparse"]
    assert [layer.status for layer in tfmot_asp.export.verify(tmp_path / "m").layers] == ["small", "sparse"]


@pytest.mark.parametrize("inputs", [1, 2, 5, 6, 9])
def test_the_end_of_a_dense_kernel_is_no_part_of_a_pattern(tmp_path, inputs):
    # Of a last stripe of one or two weights 2:4 keeps all: it holds there whatever they are.
    model = tf_keras.Sequential([layers.Input((16,)), layers.Dense(inputs, name="fc"), layers.Dense(3, name="head")])
    tfmot_asp.prune_trained_model(model, policy=OnlyFirst(model), permute=False).remove()
    model.save(tmp_path / "m.keras")
    report = tfmot_asp.export.verify(tmp_path / "m.keras")
    assert [layer.status for layer in report.layers] == ["sparse", "small" if inputs <= 2 else "dense"]
    assert report.ok
    rows = tfmot_asp.sparsity_report(model).layers
    assert [(row.holds, row.stripes) for row in rows] == [(layer.holds, layer.stripes) for layer in report.layers]


def test_a_file_and_a_model_say_the_same_of_what_tensorrt_can_use(tmp_path):
    model = tf_keras.Sequential([layers.Input((260,)), layers.Dense(18, name="fc"), layers.Dense(8, name="head")])
    policy = tfmot_asp.PruneForSparseTensorCores(padding=True, skip=model.get_layer("fc"))
    tfmot_asp.prune_trained_model(model, policy=policy, permute=False).remove()
    model.save(tmp_path / "m.keras")
    rows = tfmot_asp.sparsity_report(model, policy=policy).layers
    assert [row.tensorrt.usable for row in rows] == [True, False]  # multiples of 4, whatever the policy asks for
    reasons = [layer.reason for layer in tfmot_asp.export.verify(tmp_path / "m.keras").layers]
    assert reasons == [None, "18 inputs, no multiple of 4"]
    assert rows[1].tensorrt.reason == reasons[1]


class OnlyFirst:
    def __init__(self, model):
        self.first = model.layers[0]

    def why(self, layer):
        return None if layer is self.first else "it is not the first"


def truncated(tmp_path):
    mlp().save(tmp_path / "m.keras")
    content = (tmp_path / "m.keras").read_bytes()
    (tmp_path / "m.keras").write_bytes(content[: len(content) // 2])
    return tmp_path / "m.keras"


def broken_saved_model(tmp_path):
    tfmot_asp.export.saved_model(mlp(), tmp_path / "m")
    (tmp_path / "m" / "saved_model.pb").write_bytes(b"not a protocol buffer")
    return tmp_path / "m"


def without_signature(tmp_path):
    module = tf.Module()
    module.weight = tf.Variable(1.0)
    tf.saved_model.save(module, str(tmp_path / "m"))
    return tmp_path / "m"


def with_code(name):
    def make(tmp_path):
        marker = tmp_path / "ran"
        code = layers.Lambda(lambda x, m=str(marker): (__import__("pathlib").Path(m).touch(), x)[1])
        model = tf_keras.Sequential([layers.Input((4,)), code])
        assert marker.exists()
        model.save(tmp_path / name)
        marker.unlink(missing_ok=True)
        return tmp_path / name

    return make


def text(tmp_path):
    (tmp_path / "m.txt").write_text("weights")
    return tmp_path / "m.txt"


CODE = r"its layer 'lambda.*' is a Lambda layer, which is Python code.* allow_unsafe=True"
FILES = {
    "truncated": (truncated, "is damaged or cut short"),
    "broken": (broken_saved_model, "cannot be read as a SavedModel"),
    "no signature": (without_signature, "has no signature 'serving_default', it has none"),
    "code in keras": (
        with_code("m.keras"),
        r"its layer 'lambda.*' is a Lambda layer, which is Python code.* allow_unsafe=True",
    ),
    "code in h5": (
        with_code("m.h5"),
        r"its layer 'lambda.*' is a Lambda layer, which is Python code.* allow_unsafe=True",
    ),
    "text": (text, "is no SavedModel folder and no .keras, .h5, .onnx or .tflite file"),
}


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
@pytest.mark.parametrize("case", FILES)
def test_files_that_cannot_be_verified_give_an_error_and_run_nothing(case, tmp_path):
    make, match = FILES[case]
    path = make(tmp_path)
    with pytest.raises(ValueError, match=match):
        tfmot_asp.export.verify(path)
    assert not (tmp_path / "ran").exists()


def test_a_file_that_is_trusted_is_verified_all_the_same(tmp_path):
    path = with_code("m.keras")(tmp_path)
    assert tfmot_asp.export.verify(path, allow_unsafe=True).layers == ()


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file or folder .*nowhere"):
        tfmot_asp.export.verify(tmp_path / "nowhere")


OPEN = {
    "images of any size": lambda k: (k.Input((None, None, 16)), k.layers.Conv2D(16, 3)),
    "sequences of any length": lambda k: (k.Input((None, 16)), k.layers.Dense(16)),
    "tokens of any number": lambda k: (
        k.Input((None,), dtype="int32"),
        k.Sequential([k.layers.Embedding(9, 16), k.layers.Dense(16)]),
    ),
}


@pytest.mark.parametrize("keras", [tf_keras, keras3], ids=["tf_keras", "keras"])
@pytest.mark.parametrize("kind", OPEN)
def test_kernels_are_read_without_the_sizes_of_inputs(keras, kind, tmp_path):
    x, layer = OPEN[kind](keras)
    model = keras.Model(x, layer(x))
    tfmot_asp.prune_trained_model(model, permute=False)
    model.save(tmp_path / "m.keras")
    report = tfmot_asp.export.verify(tmp_path / "m.keras")
    assert report.ok
    assert [layer.status for layer in report.layers] == ["sparse"]


def test_kernels_of_keras_3_have_the_paths_of_their_layers(tmp_path):
    @keras3.saving.register_keras_serializable()
    class Net(keras3.Model):
        def __init__(self, **options):
            super().__init__(**options)
            self.a, self.b = keras3.layers.Dense(32, name="a"), keras3.layers.Dense(16, name="b")

        def call(self, x):
            return self.b(self.a(x))

    model = Net(name="net")
    model(np.zeros((1, 16), np.float32))
    tfmot_asp.prune_trained_model(model, permute=False)
    model.save(tmp_path / "m.keras")
    names = [layer.name for layer in tfmot_asp.export.verify(tmp_path / "m.keras").layers]
    assert [name.removeprefix("net/") for name in names] == ["a/kernel", "b/kernel"]


def test_a_weight_that_several_nodes_read_is_one_row(tmp_path):
    """tf2onnx transposes such a kernel by a node, and then has a name of its own for it."""
    pytest.importorskip("tf2onnx")
    shared = layers.Conv2D(16, 3, padding="same", name="shared")
    x = layers.Input((8, 8, 16))
    model = tf_keras.Model(x, layers.Conv2D(8, 1, name="once")(shared(tf.nn.relu(shared(x)))))
    shared.kernel.assign(sparse(shared.kernel, 2))
    report = tfmot_asp.export.onnx(model, tmp_path / "m.onnx")
    assert {row.name: (row.status, len(row.ops)) for row in report.layers} == {
        "shared/kernel": ("sparse", 2),
        "once/kernel": ("dense", 1),
    }
    assert "1 of 2 weights" in str(report)


def test_weights_of_one_name_are_told_apart(tmp_path):
    """Branches of a condition may call different weights alike."""
    onnx = pytest.importorskip("onnx")
    helper, floats = onnx.helper, onnx.TensorProto.FLOAT

    def branch(name: str, weight: np.ndarray) -> onnx.GraphProto:
        made = helper.make_tensor_value_info("y", floats, [1, 8])
        node = helper.make_node("MatMul", ["x", "w"], ["y"], name=name)
        return helper.make_graph([node], name, [], [made], [onnx.numpy_helper.from_array(weight, "w")])

    dense = np.random.default_rng(0).normal(size=(8, 8)).astype("f")
    halved = np.where(np.arange(8)[:, None] % 4 < 2, dense, 0)
    choice = helper.make_node(
        "If", ["which"], ["z"], then_branch=branch("then", dense), else_branch=branch("else", halved)
    )
    inputs = [helper.make_tensor_value_info("x", floats, [1, 8]), helper.make_tensor_value_info("which", 9, [])]
    graph = helper.make_graph([choice], "g", inputs, [helper.make_tensor_value_info("z", floats, [1, 8])])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), str(tmp_path / "m.onnx"))
    rows = tfmot_asp.export.verify(tmp_path / "m.onnx").layers
    assert {row.op: (row.name, row.status) for row in rows} == {"then": ("w", "dense"), "else": ("w", "sparse")}


def test_constants_that_a_function_holds_are_named_by_their_product(tmp_path):
    weight = tf.constant(np.random.default_rng(0).normal(size=(16, 8)).astype("f"))

    @tf.function(input_signature=[tf.TensorSpec([None, 16])])
    def serve(x):
        return {"y": tf.matmul(x, weight, name="late")}

    module = tf.Module()
    module.weight = weight
    tf.saved_model.save(module, str(tmp_path / "m"), signatures={"serving_default": serve})
    (row,) = tfmot_asp.export.verify(tmp_path / "m").layers
    assert row.name == "constant of late"
