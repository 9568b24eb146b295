import importlib
import os

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from tf_keras import layers

import tfmot_asp
from tests.small_models import compiled, convnet, data, mlp
from tfmot_asp.export.lowering.inference import inference_function
from tfmot_asp.export.read_tensorflow import load_signature


@pytest.fixture(scope="module")
def trained():
    pruned = compiled(tfmot_asp.prune_low_magnitude(convnet(), permute=False))
    x, y = data(pruned)
    pruned.fit(x, y, batch_size=8, verbose=0, callbacks=[tfmot_asp.UpdatePruningStep()])
    return pruned, x


def test_a_wrapped_model_is_written_stripped_and_reads_back_equal(trained, tmp_path):
    pruned, x = trained
    before = [weight.copy() for weight in pruned.get_weights()]
    report = tfmot_asp.export.saved_model(pruned, tmp_path / "exported")
    assert report.ok
    assert {layer.name: layer.status for layer in report.layers} == {
        "stem/kernel": "dense",
        "conv/kernel": "sparse",
        "fc/kernel": "sparse",
        "head/kernel": "sparse",
    }
    assert report.path == str(tmp_path / "exported")
    function = load_signature(tmp_path / "exported")
    got = function(image=tf.constant(x))["head"].numpy()
    expected = pruned.predict(x, verbose=0)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    ops = {op.type for op in function.graph.get_operations()}
    assert not any(kind.startswith("Assign") for kind in ops), "a pruning wrapper was exported"
    assert os.listdir(tmp_path) == ["exported"]
    for old, new in zip(before, pruned.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    pruned.fit(x, np.zeros(len(x)), verbose=0)  # still wrapped, still trainable
    assert pruned.get_layer("prune_low_magnitude_fc").layer.kernel.constraint is not None


@pytest.mark.parametrize("batch_size", [None, 3])
def test_the_signature_has_the_models_names_and_the_batch_size_asked_for(tmp_path, batch_size):
    left, right = layers.Input((16,), name="left"), layers.Input((4, 8), name="right", dtype="float16")
    y = layers.Concatenate()([layers.Dense(8, name="fc")(left), layers.Flatten()(right)])
    model = tf_keras.Model({"l": left, "r": right}, [layers.Dense(8, name="a")(y), layers.Dense(4, name="b")(y)])
    tfmot_asp.export.saved_model(model, tmp_path / "m", batch_size=batch_size)
    function = load_signature(tmp_path / "m")
    specs = function.structured_input_signature[1]
    assert {name: (spec.shape.as_list(), spec.dtype) for name, spec in specs.items()} == {
        "left": ([batch_size, 16], tf.float32),
        "right": ([batch_size, 4, 8], tf.float16),
    }
    values = {"left": tf.random.normal((3, 16)), "right": tf.cast(tf.random.normal((3, 4, 8)), tf.float16)}
    got = function(**values)
    expected = model({"l": values["left"], "r": values["right"]})
    np.testing.assert_allclose(got["a"], expected[0], atol=1e-5)
    np.testing.assert_allclose(got["b"], expected[1], atol=1e-5)


def test_batch_norm_is_exported_in_inference_mode(tmp_path):
    model = tf_keras.Sequential(
        [layers.Input((16,)), layers.Dense(8), layers.BatchNormalization(), layers.Dropout(0.5)]
    )
    model.layers[1].moving_mean.assign(tf.range(8.0))
    tfmot_asp.export.saved_model(model, tmp_path / "m")
    x = tf.random.normal((5, 16))
    (got,) = load_signature(tmp_path / "m")(x).values()
    np.testing.assert_allclose(got, model(x, training=False), atol=1e-5)


def test_subclassed_and_keras_3_models(tmp_path):
    class Net(tf_keras.Model):
        def __init__(self):
            super().__init__()
            self.fc = layers.Dense(8)

        def call(self, x, training=False):
            return {"out": self.fc(x)}

    net = Net()
    net(tf.zeros((1, 16)))
    keras3 = pytest.importorskip("keras", minversion="3")
    three = keras3.Sequential([keras3.layers.Input((16,), name="x"), keras3.layers.Dense(8)])
    x = tf.random.normal((5, 16))
    for model, options in ((net, {"input_shapes": (None, 16)}), (three, {})):
        tfmot_asp.export.saved_model(model, tmp_path / "m", overwrite=True, **options)
        (got,) = load_signature(tmp_path / "m")(x).values()
        (expected,) = tf.nest.flatten(model(x))
        np.testing.assert_allclose(got, expected, atol=1e-6)


def test_lookup_tables_are_exported_too(tmp_path):
    word = layers.Input((), dtype="string", name="word")
    table = layers.StringLookup(vocabulary=["a", "b"], output_mode="one_hot")
    model = tf_keras.Model(word, layers.Dense(8)(table(word)))
    tfmot_asp.export.saved_model(model, tmp_path / "m")
    words = tf.constant(["b", "a", "?"])
    (got,) = load_signature(tmp_path / "m")(words).values()
    np.testing.assert_allclose(got, model(words), atol=1e-6)


def test_an_existing_folder_is_only_replaced_when_asked_and_if_it_is_a_saved_model(tmp_path):
    target = tmp_path / "m"
    tfmot_asp.export.saved_model(mlp(), target)
    with pytest.raises(FileExistsError, match="overwrite=True to replace a SavedModel"):
        tfmot_asp.export.saved_model(mlp(), target)
    second = mlp()
    tfmot_asp.export.saved_model(second, target, overwrite=True)
    x = tf.random.normal((2, 16))
    np.testing.assert_allclose(load_signature(target)(x)["second"], second(x), atol=1e-6)
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.tex").write_text("1")
    with pytest.raises(FileExistsError, match="is no SavedModel, so overwrite=True does not replace it"):
        tfmot_asp.export.saved_model(second, precious, overwrite=True)
    assert sorted(os.listdir(tmp_path)) == ["m", "precious"]


@pytest.mark.parametrize("failing", ["tf.saved_model.save", "tfmot_asp.export.saved_model.verify"])
def test_a_failure_leaves_the_old_model_and_no_half_of_the_new_one(tmp_path, monkeypatch, failing):
    target = tmp_path / "m"
    first = mlp()
    tfmot_asp.export.saved_model(first, target)

    def fail(*args, **kwargs):
        raise OSError("disk full")

    if failing == "tf.saved_model.save":
        monkeypatch.setattr(tf.saved_model, "save", fail)
    else:
        monkeypatch.setattr(importlib.import_module("tfmot_asp.export.saved_model"), "verify", fail)
    with pytest.raises(OSError, match="disk full"):
        tfmot_asp.export.saved_model(mlp(), target, overwrite=True)
    assert os.listdir(tmp_path) == ["m"]
    x = tf.random.normal((2, 16))
    np.testing.assert_allclose(load_signature(target)(x)["second"], first(x), atol=1e-6)


def test_a_file_that_does_not_say_what_the_model_says_is_not_kept(tmp_path, monkeypatch):
    other = inference_function(mlp())
    save = tf.saved_model.save
    monkeypatch.setattr(
        tf.saved_model, "save", lambda _, path, signatures, options: save(tf.Module(), path, signatures=other)
    )
    with pytest.raises(RuntimeError, match=r"weight of .*MatMul.* \(first/kernel\) differs from the model's"):
        tfmot_asp.export.saved_model(mlp(), tmp_path / "m")
    assert os.listdir(tmp_path) == []


def test_unfinished_pruning_is_refused_and_finished_pruning_is_not(tmp_path):
    pruned = tfmot_asp.prune_low_magnitude(mlp(), permute=False)
    with pytest.raises(ValueError, match="Layer 'first' has not reached its pattern 2:4"):
        tfmot_asp.export.saved_model(pruned, tmp_path / "m")
    assert os.listdir(tmp_path) == []
    assert tfmot_asp.export.saved_model(tfmot_asp.strip_pruning(pruned), tmp_path / "m").ok


@pytest.mark.parametrize(
    ("thing", "match"),
    [
        ("model", "takes a Keras model, got a str"),
        (layers.Dense(3), "takes a Keras model, got a Dense"),
        (tf_keras.Sequential([layers.Dense(3)], name="later"), "'later' is not built"),
    ],
)
def test_what_is_no_built_model_is_refused(thing, match, tmp_path):
    with pytest.raises(ValueError, match=match):
        tfmot_asp.export.saved_model(thing, tmp_path / "m")


@pytest.mark.parametrize("export", ["saved_model", "onnx", "tflite"])
def test_weights_that_are_no_numbers_are_refused_by_name(export, tmp_path):
    model = convnet()
    kernel = model.get_layer("fc").kernel
    kernel.assign(np.where(np.arange(kernel.shape[-1]) == 2, np.inf, kernel.numpy()))
    match = rf"the weights of 'fc' hold {kernel.shape[0]} NaN or infinite values out of"
    path = tmp_path / f"m.{export}"
    with pytest.raises(ValueError, match=match):
        getattr(tfmot_asp.export, export)(model, path)
    kernel.assign(tf.ones_like(kernel))
    model.get_layer("fc").bias.assign(np.full(model.get_layer("fc").bias.shape, np.nan))
    with pytest.raises(ValueError, match=r"the weights of 'fc/bias.*' hold"):
        getattr(tfmot_asp.export, export)(model, path)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("export", ["saved_model", "onnx", "tflite"])
def test_token_ids_may_be_floats(export, tmp_path, caplog):
    ids = layers.Input((8,), name="ids")  # Keras makes it float32, and an embedding casts it
    model = tf_keras.Model(ids, layers.Dense(4)(layers.Embedding(50, 16)(layers.Rescaling(10.0)(ids))))
    getattr(tfmot_asp.export, export)(model, tmp_path / f"m.{export}", batch_size=4)
    assert "not compared" not in caplog.text


@pytest.mark.parametrize("export", ["saved_model", "onnx", "tflite"])
def test_a_model_that_refuses_any_random_input_is_exported_with_a_warning(export, tmp_path, caplog):
    ids = layers.Input((8,), name="ids")
    model = tf_keras.Model(ids, layers.Dense(4)(layers.Embedding(50, 16)(layers.Rescaling(1.0, 1e4)(ids))))
    report = getattr(tfmot_asp.export, export)(model, tmp_path / f"m.{export}", batch_size=4)
    assert "not compared" in caplog.text
    said = [record.getMessage() for record in caplog.records if "not compared" in record.getMessage()]
    assert all(len(text.splitlines()) == 1 for text in said)
    assert report.layers


def test_custom_gradients_are_left_out(tmp_path):
    model = tf_keras.Sequential([layers.Input((16,)), layers.Dense(16, activation="swish"), layers.Dense(8)])
    for fold in (True, False):
        tfmot_asp.export.saved_model(model, tmp_path / "m", fold_batch_norm=fold, overwrite=True)
        x = tf.random.normal((2, 16))
        (got,) = load_signature(tmp_path / "m")(x).values()
        np.testing.assert_allclose(got, model(x), atol=1e-5)


@pytest.mark.parametrize("export", ["saved_model", "onnx", "tflite"])
def test_inputs_of_any_name_also_one_that_is_an_output(export, tmp_path):
    a, b = layers.Input((16,), name="a b"), layers.Input((16,), name="a_b")
    model = tf_keras.Model([a, b], [layers.Dense(8, name="out")(a), b])
    path = tmp_path / f"m.{export}"
    getattr(tfmot_asp.export, export)(model, path)
    if export == "onnx":
        onnx = pytest.importorskip("onnx")
        graph = onnx.load(str(path)).graph
        assert [value.name for value in graph.input] == ["a_b", "a_b_1"]
        assert [value.name for value in graph.output] == ["out", "a_b_output"]
    elif export == "saved_model":
        assert sorted(load_signature(path).structured_input_signature[1]) == ["a_b", "a_b_1"]


@pytest.mark.parametrize("export", ["saved_model", "onnx", "tflite"])
def test_impossible_sizes_are_refused_in_one_line(export, tmp_path):
    write = getattr(tfmot_asp.export, export)
    for bad in (0, -1, True, "4", 2.5):
        with pytest.raises(ValueError, match="batch_size must be a positive number, or None for an open batch, got"):
            write(mlp(), tmp_path / f"m.{export}", batch_size=bad)
    with pytest.raises(ValueError, match=r"input_shapes=\(None, 17\): Input 0 of layer .* incompatible.*") as caught:
        write(mlp(), tmp_path / f"m.{export}", input_shapes=(None, 17))
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == []
    write(mlp(), tmp_path / f"m.{export}", batch_size=np.int64(2))


def folder_size(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_batch_norm_is_folded_and_the_pattern_survives(trained, tmp_path):
    pruned, x = trained
    folded = tfmot_asp.export.saved_model(pruned, tmp_path / "folded")
    plain = tfmot_asp.export.saved_model(pruned, tmp_path / "plain", fold_batch_norm=False)
    assert [layer.status for layer in folded.layers] == [layer.status for layer in plain.layers]

    def kinds(folder):
        functions = load_signature(folder).graph.as_graph_def().library.function
        return {node.op for function in functions for node in function.node_def}

    assert "FusedBatchNormV3" in kinds(tmp_path / "plain")
    assert "FusedBatchNormV3" not in kinds(tmp_path / "folded")
    results = [load_signature(tmp_path / name)(image=tf.constant(x))["head"] for name in ("folded", "plain")]
    np.testing.assert_allclose(*results, rtol=0, atol=1e-5 * np.abs(results[0]).max())


def test_weights_in_half_precision_halve_the_file(tmp_path):
    model = mlp(hidden=512, inputs=256)
    pruned = tfmot_asp.prune_trained_model(model, permute=False)
    tfmot_asp.export.saved_model(model, tmp_path / "single")
    report = tfmot_asp.export.saved_model(model, tmp_path / "half", precision="fp16")
    assert report.ok
    assert {layer.name: layer.status for layer in report.layers} == {
        "first/kernel/float16": "sparse",
        "second/kernel/float16": "sparse",
    }
    assert folder_size(tmp_path / "half") < 0.55 * folder_size(tmp_path / "single")
    x = tf.random.normal((5, 256))
    (got,) = load_signature(tmp_path / "half")(x).values()
    expected = model(x).numpy()
    np.testing.assert_allclose(got, expected, rtol=0, atol=2e-3 * np.abs(expected).max())
    pruned.remove()
    model.get_layer("first").kernel.assign_add(1e5 * tf.ones((256, 512)))
    with pytest.raises(ValueError, match=r"first/kernel has weights up to 1e\+05, too large for float16"):
        tfmot_asp.export.saved_model(model, tmp_path / "large", precision="fp16")
    with pytest.raises(ValueError, match="precision must be one of 'fp32', 'fp16', 'bf16', got 'int8'"):
        tfmot_asp.export.saved_model(model, tmp_path / "whole", precision="int8")
    assert sorted(os.listdir(tmp_path)) == ["half", "single"]


def test_a_model_with_tables_keeps_its_variables_and_cannot_be_narrowed(tmp_path, caplog):
    word = layers.Input((), dtype="string", name="word")
    table = layers.StringLookup(vocabulary=["a", "b"], output_mode="one_hot")
    model = tf_keras.Model(word, layers.Dense(8)(table(word)), name="words")
    tfmot_asp.export.saved_model(model, tmp_path / "m")
    assert "Exported with variables, and batch norm as it is: 'words' reads" in caplog.text
    with pytest.raises(ValueError, match="weights cannot be stored in float16: 'words' reads"):
        tfmot_asp.export.saved_model(model, tmp_path / "half", precision="fp16")
    assert os.listdir(tmp_path) == ["m"]


def test_grouped_convolutions_run_where_they_are_served(tmp_path):
    x = layers.Input((8, 8, 16))
    y = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(32, 3, groups=4, name="grouped")(x)))
    model = tf_keras.Model(x, layers.Conv2D(16, 1, name="after")(y))
    report = tfmot_asp.export.saved_model(model, tmp_path / "m")
    assert [layer.name for layer in report.layers] == ["grouped/kernel", "after/kernel"]
    image = tf.random.normal((5, 8, 8, 16))
    (got,) = load_signature(tmp_path / "m")(image).values()
    np.testing.assert_allclose(got, model(image), rtol=0, atol=1e-5)


def test_an_export_that_lost_the_pattern_is_refused(tmp_path, monkeypatch):
    from tfmot_asp.export.lowering import folding

    change = folding.GraphEdit.change_constant

    def fill(self, name, index, value, dtype):
        change(self, name, index, np.where(value == 0, 1e-9, value).astype(value.dtype), dtype)

    monkeypatch.setattr(folding.GraphEdit, "change_constant", fill)
    model = convnet()
    tfmot_asp.prune_trained_model(model, permute=False)
    model.get_layer("conv").bias.assign(tf.ones(16))
    x = layers.Input((8, 8, 3))
    normed = tf_keras.Model(x, layers.Rescaling(0.5)(model(x)))
    with pytest.raises(RuntimeError, match=r"the SavedModel lost the pattern 2:4 of head/kernel"):
        tfmot_asp.export.saved_model(normed, tmp_path / "m")
    assert os.listdir(tmp_path) == []
