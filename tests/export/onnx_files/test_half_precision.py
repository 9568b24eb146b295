"""What is said of a float16 file is true on a GPU: results are rounded node by node, and norms stay in float32."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import tfmot_asp

onnx = pytest.importorskip("onnx")
pytest.importorskip("tf2onnx")
pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from onnx.reference import ReferenceEvaluator  # noqa: E402

from tfmot_asp.export.onnx_files.float16 import to_float16  # noqa: E402
from tfmot_asp.export.onnx_files.half_rounding import HalfRunner  # noqa: E402

DATA = np.random.default_rng(0).normal(size=(4, 6, 6, 8)).astype(np.float32)


def exported(keras, build, path, spread, **options):
    """The report of a model's file, and the true error: of ONNX's reference, which computes float16 in float16."""
    keras.utils.set_random_seed(0)
    x = keras.layers.Input(DATA.shape[1:], name="x")
    model = keras.Model(x, keras.layers.Dense(8)(build(keras.layers, x)))
    data = DATA * np.float32(spread)
    report = tfmot_asp.export.onnx(model, path, precision="fp16", calibration_data=data, **options)
    wanted = np.asarray(model(data))
    with np.errstate(over="ignore"):
        (got,) = ReferenceEvaluator(str(path)).run(None, {"x": data})
    return report, float(np.abs(got - wanted).max() / np.abs(wanted).max())


def stated(report):
    (note,) = (note for note in report.notes if "of their size" in note)
    return float(note.split(" of their size")[0].rsplit(" ", 1)[1])


NORMS = {
    "layer": lambda layers, x: layers.LayerNormalization(epsilon=1e-6)(x),
    "layer, not the last axis": lambda layers, x: layers.LayerNormalization(axis=2)(x),
    "group": lambda layers, x: layers.GroupNormalization(groups=2)(layers.Conv2D(8, 3)(x)),
    "unit": lambda layers, x: layers.UnitNormalization()(layers.Conv2D(8, 1)(x)),
    "root mean square": lambda layers, x: layers.RMSNormalization()(layers.Dense(8)(x)),
}


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("which", ["tf_keras", "keras"])
def test_norms_of_large_activations(which, norm, tmp_path):
    keras = tf_keras if which == "tf_keras" else pytest.importorskip("keras", minversion="3")
    if norm == "root mean square" and which == "tf_keras":
        pytest.skip("tf_keras has none")
    report, error = exported(keras, NORMS[norm], tmp_path / "m.onnx", 300)
    assert error < 2e-3
    assert stated(report) == pytest.approx(error, rel=0.1)
    assert not any("fp16: overflow" in note for note in report.notes)


def test_norms_of_an_opset_without_the_op(tmp_path):
    assert exported(tf_keras, NORMS["layer"], tmp_path / "m.onnx", 300, opset=15)[1] < 2e-3


def test_roots_of_sums_of_squares(tmp_path):
    def build(layers, x):
        moments = tf.math.reduce_std, tf.norm
        return layers.Lambda(lambda x: tf.concat([moment(x, axis=-1, keepdims=True) for moment in moments], -1))(x)

    report, error = exported(tf_keras, build, tmp_path / "m.onnx", 300)
    assert error < 2e-3
    assert not any("fp16: overflow" in note for note in report.notes)


def test_what_overflows_and_does_no_harm_is_noted(tmp_path):
    def build(layers, x):
        return layers.Lambda(lambda x: 1 / (1 + tf.square(x)))(x)

    report, error = exported(tf_keras, build, tmp_path / "m.onnx", 100)
    assert error < 2e-3
    (note,) = (note for note in report.notes if note.startswith("fp16: overflow on calibration_data"))
    assert "lambda" in note
    assert "export it in fp32" in note


def test_what_overflows_and_does_harm_is_refused_with_the_node(tmp_path):
    def build(layers, x):
        return layers.Lambda(lambda x: tf.square(x) / 300)(x)

    with pytest.raises(
        ValueError, match=r"in fp16 the model overflows on calibration_data: .*lambda.* \(Mul\) computes"
    ):
        exported(tf_keras, build, tmp_path / "m.onnx", 300)
    assert not list(tmp_path.iterdir())


def test_inputs_and_outputs_of_float16():
    weight = np.random.default_rng(1).normal(size=(8, 8)).astype(np.float16)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["product"], name="product"),
            helper.make_node("Mul", ["product", "product"], ["square"], name="square"),
            helper.make_node("Sqrt", ["square"], ["y"]),
        ],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT16, ("batch", 8))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT16, ("batch", 8))],
        [numpy_helper.from_array(weight, "w")],
    )
    model = onnx.shape_inference.infer_shapes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]))
    runner = HalfRunner(model)
    assert [value.name for value in runner.get_outputs()] == ["y"]
    for spread, overflows in ((1, False), (1e3, True)):
        x = (spread * np.random.default_rng(2).normal(size=(3, 8))).astype(np.float32)
        with np.errstate(over="ignore"):
            (wanted,) = ReferenceEvaluator(model).run(None, {"x": x.astype(np.float16)})
        np.testing.assert_array_equal(runner.run(["y"], {"x": x})[0], wanted.astype(np.float32))
        assert bool(runner.overflows) == overflows
    assert list(runner.overflows) == ["square"]


def test_branches_may_hold_constants_of_one_name():
    """onnxruntime's converter takes no two of one name, which the loops of a bidirectional layer have."""

    def branch(kind, value):
        made = helper.make_tensor_value_info(f"{kind}/y", TensorProto.FLOAT, ("batch", 4))
        constant = numpy_helper.from_array(np.full(4, value, "f"), "constant")
        return helper.make_graph([helper.make_node(kind, ["x", "constant"], [made.name])], kind, [], [made], [constant])

    chosen = helper.make_node("If", ["is"], ["y"], then_branch=branch("Add", 1), else_branch=branch("Mul", 2))
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ("batch", 4)),
        helper.make_tensor_value_info("is", TensorProto.BOOL, ()),
    ]
    graph = helper.make_graph(
        [chosen], "graph", inputs, [helper.make_tensor_value_info("y", TensorProto.FLOAT, ("batch", 4))]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    half, x = to_float16(model, False), np.arange(8, dtype="f").reshape(2, 4)
    for which, wanted in ((True, x + 1), (False, x * 2)):
        (found,) = ReferenceEvaluator(half).run(None, {"x": x, "is": np.array(which)})
        np.testing.assert_array_equal(found, wanted)
