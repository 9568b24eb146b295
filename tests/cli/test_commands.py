"""Every command, on real files, by its exit code and what it prints."""

import importlib
import inspect
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import textwrap

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from tf_keras import layers

import tfmot_asp
from tests.small_models import convnet
from tfmot_asp.cli import exporting, main
from tfmot_asp.export import activation_ranges
from tfmot_asp.loading import load_model
from tfmot_asp.reports.document import Document

tflite_module = importlib.import_module("tfmot_asp.export.tflite")  # the package's name is the function


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder to work in, with a model that has prunable and other layers."""
    monkeypatch.chdir(tmp_path)
    convnet().save("model.keras")
    return tmp_path


PAGE = (pathlib.Path(__file__).parents[2] / "docs" / "cli.md").read_text()
DOCUMENTED = set(re.findall(r"`(\w+)`", PAGE[PAGE.index("**JSON.**") : PAGE.index("**Exit codes.**")]))


def keys(data):
    """All keys in a document, but those of a fingerprint, which is for the program alone."""
    if isinstance(data, list):
        return {key for item in data for key in keys(item)}
    if not isinstance(data, dict):
        return set()
    return {*data, *(key for name, item in data.items() if name != "fingerprint" for key in keys(item))}


@pytest.fixture
def run(capsys):
    """Runs a command; gives exit code, standard output and standard error."""

    def run(*arguments):
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.out + captured.err
        if "--json" in arguments:
            assert keys(json.loads(captured.out)) <= DOCUMENTED
        return code, captured.out, captured.err

    return run


@pytest.fixture
def fails(run):
    """Runs a command that must fail with a message on standard error alone, and leave nothing behind."""

    def fails(*arguments, because, code=2):
        before = sorted(os.listdir())
        got, out, err = run(*arguments)
        assert got == code
        assert out == ""
        assert because in err
        assert sorted(os.listdir()) == before
        return err

    return fails


def weights(path):
    return [np.asarray(weight) for weight in load_model(path).get_weights()]


# inspect


def test_inspect_says_what_would_happen_and_why_not(here, run):
    code, out, err = run("inspect", "model.keras")
    assert (code, err) == (0, "")
    assert "stem   Conv2D  3x3x3x16" in out
    assert "has 3 input channels; sparse Tensor Cores need a multiple of 16" in " ".join(out.split())
    said = "3 of 3 prunable kernels would be permuted, in 2 groups; `permute` needs up to 0.067 GB of memory"
    assert said in " ".join(out.split())
    assert "head   Dense   permuted  32 of 32" in out


def test_inspect_as_json(here, run):
    code, out, _ = run("inspect", "model.keras", "--json", "--batch-size", 4)
    data = json.loads(out)
    assert code == 0
    assert [layer["name"] for layer in data["permutation"]["layers"]] == ["conv", "fc", "head"]
    assert {layer["status"] for layer in data["permutation"]["layers"]} == {"permuted"}
    assert data["sparsity"]["input_shapes"] == [[4, 8, 8, 3]]
    assert next(row for row in data["sparsity"]["layers"] if row["name"] == "stem")["reason"] is not None
    assert data["pruning"] == {"refused": None}


def test_inspect_names_what_blocks_a_permutation(here, run):
    x = layers.Input((16,))
    y = layers.Dense(16, name="late")(tf.cumsum(layers.Dense(16, name="early")(x), axis=1))
    tf_keras.Model(x, y).save("blocked.keras")
    _, out, _ = run("inspect", "blocked.keras", "--json")
    rows = {row["name"]: row for row in json.loads(out)["permutation"]["layers"]}
    assert rows["late"]["status"] == "fixed"
    assert "Cumsum" in rows["late"]["reason"]


def test_inspect_of_a_model_without_anything_to_prune(here, run):
    tf_keras.Sequential([layers.Input((3,)), layers.Dense(3)]).save("tiny.keras")
    code, out, _ = run("inspect", "tiny.keras")
    assert code == 0
    assert "No permutation could be planned" in out
    assert "has 3 input features" in out


def test_inspect_says_what_prune_would_refuse(here, run):
    tfmot_asp.prune_low_magnitude(convnet(), permute=False).save("wrapped.keras")
    model = convnet()
    tfmot_asp.prune_trained_model(model, permute=False).remove()
    tfmot_asp.quantize_model(model).save("quantized.keras")
    for name, why in (("wrapped", "is wrapped for pruning already"), ("quantized", "is quantized already")):
        code, out, _ = run("inspect", f"{name}.keras", "--wide")
        assert code == 0
        (line,) = [line for line in out.splitlines() if line.startswith("`prune` refuses this model: ")]
        assert why in line
        code, _, err = run("prune", f"{name}.keras", "-o", "out.keras")
        assert code == 2
        assert line.removeprefix("`prune` refuses this model: ") in err


def test_inspect_of_open_sizes(here, run):
    x = layers.Input((None, None, 16), name="image")
    tf_keras.Model(x, layers.Conv2D(16, 3)(layers.Conv2D(16, 3)(x))).save("open.keras")
    code, out, _ = run("inspect", "open.keras")
    assert code == 0
    assert "leaves sizes open: these are for inputs of shape (1, 224, 224, 16), chosen here" in " ".join(out.split())
    for shape in ("1,32,32,16", "?,32,32,16", "image=1,32,32,16"):
        code, out, _ = run("inspect", "open.keras", "--input-shape", shape)
        assert code == 0
        assert "2 of 2 prunable kernels would be permuted" in out or "1 of 2" in out


def test_inspect_of_several_inputs(here, run):
    a, b = layers.Input((None, 16), name="a"), layers.Input((None, 16), name="b")
    y = layers.Dense(16)(layers.Dense(16, name="mine")(a) + layers.Dense(16, name="other")(b))
    tf_keras.Model([a, b], y).save("two.keras")
    for shapes in (["a=1,4,16", "b=1,4,16"], ["1,4,16", "1,4,16"]):
        code, out, err = run("inspect", "two.keras", *(x for s in shapes for x in ("--input-shape", s)), "--json")
        assert (code, err) == (0, "")
        assert json.loads(out)["permutation"]["refused"] is None
    code, _, err = run("inspect", "two.keras", "--input-shape", "a=1,4,16", "--input-shape", "1,4,16")
    assert code == 2
    assert "name all inputs" in err


# permute and prune


@pytest.mark.parametrize(("source", "target"), [("model.keras", "out.keras"), ("model.h5", "out.h5"), ("saved", "out")])
def test_permute_keeps_the_function_and_the_format(here, run, source, target):
    if source != "model.keras":
        convnet().save(source)
    code, out, err = run("permute", source, "-o", target, "--effort", "fast")
    assert (code, err) == (0, "")
    assert f"\nWrote {target}\n\n" in out  # the last line of the summary
    before, after = load_model(source), load_model(target)
    images = np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype(np.float32)
    np.testing.assert_allclose(before(images), after(images), rtol=1e-4, atol=1e-5)
    assert not all(map(np.array_equal, before.get_weights(), after.get_weights()))


def test_permute_is_what_the_library_does(here, run):
    model = load_model("model.keras")
    report = tfmot_asp.permute(model, effort="fast", seed=3)
    code, out, _ = run(
        "permute", "model.keras", "-o", "out.keras", "--effort", "fast", "--seed", 3, "--json", "--report", "r.json"
    )
    assert code == 0
    data = json.loads(out)
    assert data["output"] == "out.keras"
    assert [group["order"] for group in data["permutation"]["groups"]] == [list(group.order) for group in report.groups]
    for expected, got in zip(model.get_weights(), weights("out.keras"), strict=True):
        np.testing.assert_array_equal(expected, got)
    stored = tfmot_asp.PermutationReport.load("r.json")
    assert stored.groups == report.groups
    assert str(tfmot_asp.PermutationReport.load("r.json").apply_to(load_model("model.keras"))).count("permuted") > 2


def test_prune_writes_what_verify_accepts(here, run):
    assert run("verify", "model.keras")[0] == 1
    code, out, err = run("prune", "model.keras", "-o", "sparse.keras", "--effort", "fast")
    assert code == 0
    assert "3 of 3 prunable kernels permuted" in out
    assert "3 of 3 prunable kernels are 2:4" in out
    assert "give --calibration FILE" in err
    code, out, _ = run("verify", "sparse.keras", "--json")
    assert code == 0
    assert json.loads(out)["sparse"] == 3
    assert tfmot_asp.sparsity_report(load_model("sparse.keras"), batch_size=None).sparse == 3


def test_prune_on_data(here, run):
    tf_keras.utils.set_random_seed(0)
    convnet().save("model.keras")
    images = np.random.default_rng(0).normal(size=(24, 8, 8, 3)).astype(np.float32)
    np.save("images.npy", images)
    outputs = {}
    for name, options in {"dense": None, "magnitude": [], "data": ["--calibration", "images.npy"]}.items():
        if options is not None:
            code, out, err = run("prune", "model.keras", "-o", f"{name}.keras", "--effort", "fast", *options, "--json")
            assert code == 0, err
        outputs[name] = load_model("model.keras" if options is None else f"{name}.keras").predict(images, verbose=0)
    report = json.loads(out)
    assert (report["calibration"]["samples"], report["sparsity"]["sparse"]) == (24, 3)
    assert all(row["error_after"] < row["error_before"] for row in report["calibration"]["layers"])
    lost = {name: np.abs(outputs[name] - outputs["dense"]).mean() for name in ("magnitude", "data")}
    assert lost["data"] < lost["magnitude"]
    code, out, _ = run("prune", "model.keras", "-o", "few.keras", "--calibration", "images.npy", "--samples", 8)
    assert code == 0
    assert "on 8 samples" in out
    assert run("prune", "model.keras", "-o", "none.keras", "--samples", 8)[2].startswith(
        "tfmot-asp: error: --samples counts"
    )
    np.save("images.npy", np.full((4, 8, 8, 3), np.nan, np.float32))
    code, _, err = run("prune", "model.keras", "-o", "none.keras", "--calibration", "images.npy")
    assert code == 2
    assert "NaN" in err
    assert not os.path.exists("none.keras")


@pytest.mark.parametrize("target", ["sparse.keras", "sparse.h5", "sparse"])
def test_prune_without_permutation_is_the_mask(here, run, target):
    code, out, err = run("prune", "model.keras", "-o", target, "--no-permute", "--json", "--quiet")
    assert (code, err) == (0, "")
    assert json.loads(out)["permutation"] is None
    for dense, sparse in zip(weights("model.keras"), weights(target), strict=True):
        kept = sparse != 0
        np.testing.assert_array_equal(dense[kept], sparse[kept])


def test_the_policy_options(here, run):
    code, out, _ = run("prune", "model.keras", "-o", "a.keras", "--skip", "h*", "--effort", "fast", "--json")
    assert code == 0
    rows = {row["name"]: row for row in json.loads(out)["sparsity"]["layers"]}
    assert {name for name, row in rows.items() if row["zeros"] == 0.5} == {"conv", "fc"}
    assert "skip asks for it" in rows["head"]["reason"]
    code, out, _ = run("prune", "model.keras", "-o", "b.keras", "--kinds", "Conv2D", "--effort", "fast", "--json")
    assert code == 0
    rows = {row["name"]: row for row in json.loads(out)["sparsity"]["layers"]}
    assert {name for name, row in rows.items() if row["zeros"] == 0.5} == {"conv"}
    _, out, _ = run("inspect", "model.keras", "--min-channels", 32, "--json")
    rows = {row["name"]: row for row in json.loads(out)["sparsity"]["layers"]}
    assert {name for name, row in rows.items() if row["reason"] is None} == {"fc"}


def test_times(here, run, fails):
    options = ("--gpu", "H100", "--precision", "int8", "--batch-size", 32)
    code, out, _ = run("inspect", "model.keras", *options)
    assert code == 0
    assert "Estimated microseconds on NVIDIA H100 80GB HBM3 in int8" in out
    code, out, _ = run("prune", "model.keras", "-o", "a.keras", "--no-permute", "--json", *options)
    data = json.loads(out)["sparsity"]
    assert (code, data["precision"], data["input_shapes"]) == (0, "int8", [[32, 8, 8, 3]])
    assert data["estimated"]["now"] == data["estimated"]["prunable"]
    fails("inspect", "no.keras", "--gpu", "A100", because="no times are known for --gpu A100")
    fails("inspect", "no.keras", "--gpu", "none.json", because="none.json': No such file")
    fails("prune", "model.keras", "-o", "b.keras", "--precision", "int8", because="times on a --gpu")
    code, out, _ = run("inspect", "model.keras", "--min-gain", 1.5, "--json")
    data = json.loads(out)
    assert (code, data["sparsity"]["precision"], data["sparsity"]["prunable"]) == (0, "fp16", 0)
    assert "less than min_gain=1.5" in data["permutation"]["refused"]
    assert "less than min_gain=1.5" in data["pruning"]["refused"]
    code, out, _ = run("permute", "model.keras", "-o", "c.keras", "--min-gain", 1, "--batch-size", 4, "--json")
    assert (code, json.loads(out)["permutation"]["prunable"]) == (0, 2)  # `head` has 8 outputs
    fails("permute", "model.keras", "-o", "d.keras", "--gpu", "H100", because="--gpu goes with --min-gain here")


def test_other_patterns(here, run):
    assert run("prune", "model.keras", "-o", "one.keras", "--m-by-n", "1:4", "--effort", "fast", "-q")[0] == 0
    for same in (("--m-by-n", "1,4"), ("--pattern", "3:4")):
        code, out, _ = run("verify", "one.keras", *same)
        assert code == 0
        assert "3 of 4 weights are 3:4 (1 zero in every 4); ok" in out
    assert run("verify", "one.keras")[0] == 1
    code, out, _ = run("export", "one.keras", "--to", "saved_model", "-o", "one", "--pattern", "3:4")
    assert code == 0
    assert "3 of 4 weights are 3:4 (1 zero in every 4); ok" in out


def test_keras_3_models(here, run, fails):
    model = keras.Sequential([keras.layers.Input((16,)), keras.layers.Dense(32, "relu"), keras.layers.Dense(8)])
    model.save("three.keras")
    assert run("inspect", "three.keras")[0] == 0
    assert run("prune", "three.keras", "-o", "sparse.keras", "--effort", "fast", "-q")[0] == 0
    assert run("verify", "sparse.keras")[0] == 0
    assert isinstance(load_model("sparse.keras"), keras.Model)
    fails("permute", "three.keras", "-o", "folder", "--effort", "fast", "-q", because="which Keras 3 does not write")


def test_nothing_is_replaced_unless_forced(here, run, fails):
    convnet().save("other.keras")
    other = (here / "other.keras").read_bytes()
    fails("permute", "model.keras", "-o", "model.keras", because="is the file that is read")
    fails("prune", "model.keras", "-o", "other.keras", because="exists; give another -o, or --force")
    assert (here / "other.keras").read_bytes() == other
    (here / "full").mkdir()
    (here / "full" / "thesis.txt").write_text("years of work")
    fails("prune", "model.keras", "-o", "full", "--force", because="of another kind")
    (here / "folder.keras").mkdir()
    fails("prune", "model.keras", "-o", "folder.keras", "--force", because="of another kind")
    assert run("prune", "model.keras", "-o", "other.keras", "--force", "--effort", "fast", "-q")[0] == 0
    assert run("verify", "other.keras")[0] == 0
    assert run("prune", "model.keras", "-o", "model.keras", "--force", "--effort", "fast", "-q")[0] == 0
    assert run("verify", "model.keras")[0] == 0
    assert sorted(os.listdir()) == ["folder.keras", "full", "model.keras", "other.keras"]


def test_a_file_that_was_written_wrongly_is_not_kept(here, run, fails, monkeypatch):
    def wrong(self, path, *args, **kwargs):
        original(convnet(), path, *args, **kwargs)  # with other weights

    original = tf_keras.Model.save
    monkeypatch.setattr(tf_keras.Model, "save", wrong)
    fails(
        "permute",
        "model.keras",
        "-o",
        "out.keras",
        "--effort",
        "fast",
        because="does not hold the weights of the model",
    )


def test_an_interrupt_leaves_nothing_behind(here, run, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("tfmot_asp.cli.writing._compare", interrupted)  # the file is written by then
    code, out, err = run("prune", "model.keras", "-o", "out.keras", "--effort", "fast")
    assert (code, out) == (130, "")
    assert err.endswith("tfmot-asp: error: interrupted\n")
    assert os.listdir() == ["model.keras"]


def test_models_that_keras_cannot_write_in_a_format(here, fails):
    class Doubled(layers.Layer):
        def call(self, inputs):
            return 2 * inputs

    tf_keras.Sequential([layers.Input((16,)), Doubled(), layers.Dense(16), layers.Dense(8)]).save("revived")
    fails(
        "permute",
        "revived",
        "-o",
        "out.keras",
        "--effort",
        "fast",
        because="what Keras writes as .keras cannot be read again: it cannot",
    )


def test_a_report_is_applied_to_another_file(here, run, fails):
    tf_keras.utils.set_random_seed(1)
    convnet().save("other.keras")
    command = "permute", "model.keras", "--effort", "fast", "-q"
    assert run(*command, "-o", "first.keras", "--report", "orders.json")[0] == 0
    assert run(*command, "-o", "again.keras", "--apply", "orders.json", "--plot", "graph.dot")[0] == 0
    assert all(map(np.array_equal, weights("first.keras"), weights("again.keras")))
    assert os.path.exists("graph.dot")
    code, out, _ = run("permute", "other.keras", "-o", "third.keras", "--apply", "orders.json", "--json")
    assert code == 0
    orders = [group.order for group in tfmot_asp.PermutationReport.load("orders.json").groups]
    assert [tuple(group["order"]) for group in json.loads(out)["permutation"]["groups"]] == orders
    tf_keras.Sequential([layers.Input((16,)), layers.Dense(32), layers.Dense(8)]).save("unlike.keras")
    fails("permute", "unlike.keras", "-o", "x.keras", "--apply", "orders.json", because="does not fit this model")
    fails("permute", "model.keras", "-o", "x.keras", "--apply", "none.json", because="none.json': No such file")
    fails("permute", "model.keras", "-o", "x.keras", "--apply", "model.keras", because="is not a report saved by")


def test_strip_and_quantize(here, run, fails):
    model = tfmot_asp.prune_low_magnitude(convnet(), permute=False)
    model.save("wrapped.keras")
    code, out, err = run("strip", "wrapped.keras", "-o", "stripped.keras")
    assert (code, err) == (0, "")
    assert "3 pruning wrappers taken off" in out
    assert run("verify", "stripped.keras")[0] == 0
    expected = tfmot_asp.strip_pruning(model).get_weights()
    assert all(map(np.array_equal, expected, weights("stripped.keras")))
    fails("strip", "model.keras", "-o", "x.keras", because="has no pruning wrappers")
    fails("prune", "wrapped.keras", "-o", "x.keras", because="take the wrappers off first: `tfmot-asp strip`")
    code, out, err = run("quantize", "stripped.keras", "-o", "quantized.keras", "--json")
    assert code == 0
    assert "keep_sparsity" in err
    report = json.loads(out)["quantization"]
    assert [row["holds"] for row in report["layers"] if row["quantized"]] == [False, True, True, True]
    assert json.loads(run("inspect", "quantized.keras", "--json")[1])["quantization"]["layers"][1]["kept"] is False
    assert "4 of 4 kernels in 8 bits" in run("inspect", "quantized.keras")[1]
    fails("quantize", "model.keras", "-o", "x.keras", because="there is nothing to preserve")


def test_weights_in_files(here, run, fails):
    model = keras.Sequential([keras.layers.Input((16,)), keras.layers.Dense(64, "relu"), keras.layers.Dense(8)])
    (here / "model.json").write_text(model.to_json())
    model.save_weights("model.weights.h5")
    command = "permute-shards", "model.json", "model.weights.h5", "--effort", "fast"
    code, out, err = run(*command, "-o", "pruned", "--prune")
    assert (code, err) == (0, "")
    assert "1 of 2 prunable kernels permuted" in out
    assert sorted(os.listdir("pruned")) == ["SHA256SUMS", "model.weights.h5", "permutation.json", "tfmot_asp.jsonl"]
    loaded = keras.models.model_from_json(model.to_json())
    loaded.load_weights("pruned/model.weights.h5")
    tfmot_asp.prune_trained_model(model, permute={"effort": "fast", "progress": False}).remove()
    assert all(map(np.array_equal, model.get_weights(), loaded.get_weights()))
    model.save("three.keras")
    options = "--apply", "pruned/permutation.json", "--json"
    code, out, _ = run("permute-shards", "three.keras", *command[2:], "-o", "b", *options)
    assert code == 0
    assert json.loads(out)["pruned"] is False
    fails(*command[:2], "none.weights.h5", "-o", "c", because="'none.weights.h5' is missing")
    (here / "text.json").write_text("[1]")
    fails("permute-shards", "text.json", *command[2:], "-o", "c", because="neither what model.to_json() gives")
    code = keras.Sequential([keras.layers.Input((16,)), keras.layers.Lambda(lambda x: x, name="mine")])
    (here / "code.json").write_text(code.to_json())
    fails("permute-shards", "code.json", *command[2:], "-o", "c", because="'mine' is a Lambda layer")


# verify


def test_verify_of_every_format(here, run):
    run("prune", "model.keras", "-o", "sparse.keras", "--effort", "fast", "-q")
    assert run("export", "sparse.keras", "--to", "saved_model", "-o", "exported")[0] == 0
    for path in ("sparse.keras", "exported"):
        code, out, _ = run("verify", path)
        assert code == 0
        assert f"{path}: 3 of 4 weights are 2:4; ok" in out


def test_verify_finds_a_planted_violation(here, run):
    run("prune", "model.keras", "-o", "sparse.keras", "--effort", "fast", "-q")
    model = load_model("sparse.keras")
    kernel = model.get_layer("fc").kernel
    values = kernel.numpy()
    values[:4, 5] = 1
    kernel.assign(values)
    model.save("planted.keras")
    code, out, _ = run("verify", "planted.keras", "--json")
    assert code == 1
    row = next(row for row in json.loads(out)["layers"] if row["name"].startswith("fc"))
    assert (row["status"], row["violations"]) == ("broken", 1)


# plot


def test_plot(here, run, fails):
    code, out, _ = run("plot", "model.keras", "-o", "graph.dot")
    assert code == 0
    assert "Drew" in out
    assert "digraph" in (here / "graph.dot").read_text()
    assert "convnet: plan, nothing was changed: 3 of 3 prunable kernels would be permuted, in 2 groups" in out
    fails("plot", "model.keras", "-o", "graph.dot", because="exists")
    tf_keras.Sequential([layers.Input((3,)), layers.Dense(3)]).save("tiny.keras")
    assert "no kernel would be pruned" in run("plot", "tiny.keras", "-o", "tiny.dot")[1]
    assert "stays dense: has 3 input features" in (here / "tiny.dot").read_text()
    assert json.loads(run("plot", "model.keras", "-o", "graph.dot", "--force", "--json")[1])["output"] == "graph.dot"
    fails("plot", "model.keras", "-o", "graph.bmp", because="its suffix '.bmp' is none of")


# export


def test_export_prints_what_was_verified(here, run):
    run("prune", "model.keras", "-o", "sparse.keras", "--effort", "fast", "-q")
    code, out, err = run("export", "sparse.keras", "--to", "saved_model", "-o", "exported", "--batch-size", 2, "--json")
    assert (code, err) == (0, "")
    data = json.loads(out)
    assert data["ok"]
    assert data["output"] == "exported"
    signature = tf.saved_model.load("exported").signatures["serving_default"]
    assert signature.structured_input_signature[1]["image"].shape == (2, 8, 8, 3)


def test_export_of_a_dense_model_says_so(here, run):
    code, out, err = run("export", "model.keras", "--to", "saved_model", "-o", "exported")
    assert code == 0
    assert "NOT ok" in out
    assert "No weight in it is 2:4" in err


def test_export_passes_its_options_on(here, run, monkeypatch):
    """To stand-ins: the exporters have tests of their own."""
    calls = {}

    class Report:
        sparse = 1

        def document(self):
            return Document(["written"])

        def to_dict(self):
            return {"ok": True}

    for name in ("onnx", "tflite", "saved_model"):
        monkeypatch.setattr(
            f"tfmot_asp.export.{name}",
            lambda model, path, name=name, sparsity_m_by_n=None, progress=None, **o: (
                calls.update({name: o}) or Report()
            ),
            raising=False,
        )
    np.save("images.npy", np.zeros((5, 8, 8, 3), np.float32))
    np.savez("images.npz", image=np.zeros((5, 8, 8, 3), np.float32))
    command = "export", "model.keras", "--to", "onnx", "-o", "m.onnx"
    assert run(*command, "--precision", "int8", "--calibration", "images.npy", "--opset", 17, "--force")[0] == 0
    onnx = calls["onnx"]
    assert onnx.pop("calibration_data").shape == (5, 8, 8, 3)
    assert onnx == {"overwrite": True, "input_shapes": None, "precision": "int8", "opset": 17}
    assert run(*command, "--no-fold-batch-norm", "--input-shape", "1,8,8,3", "--batch-size", 3)[0] == 0
    shape = (1, 8, 8, 3)
    assert calls["onnx"] == {"overwrite": False, "input_shapes": shape, "batch_size": 3, "fold_batch_norm": False}
    options = (
        "--float16-io",
        "--inputs-as-nchw",
        "image",
        "--outputs-as-nchw",
        "y",
        "--calibration-method",
        "mse",
        "--percentile",
        99,
    )
    assert run(*command, *options, "--keep-float", "a", "--keep-float", "b", "--int8-weights")[0] == 0
    assert calls["onnx"] == {
        "overwrite": False, "input_shapes": None, "float16_io": True, "inputs_as_nchw": ["image"],
        "outputs_as_nchw": ["y"],
        "calibration_method": "mse", "percentile": 99.0, "keep_float": ["a", "b"], "int8_weights": True,
    }  # fmt: skip
    assert run(*command, "--tensorrt-version", "8.6", "--batch-sizes", "1,8,16", "--shapes", "s=1,2,3")[0] == 0
    assert calls["onnx"] == {
        "overwrite": False, "input_shapes": None, "tensorrt": "8.6", "batch_sizes": (1, 8, 16),
        "shapes": {"s": (1, 2, 3)},
    }  # fmt: skip
    command = "export", "model.keras", "--to", "tflite", "-o", "m.tflite"
    old_names = "--quantize", "int8", "--calibration-data", "images.npz"
    assert run(*command, *old_names, "--io-dtype", "uint8")[0] == 0
    assert list(calls["tflite"].pop("calibration_data")) == ["image"]
    assert calls["tflite"] == {"overwrite": False, "input_shapes": None, "precision": "int8", "io_dtype": "uint8"}
    assert run(*command, "--batch-size", "open", "--select-tf-ops", "--uncompared", "b")[0] == 0
    assert calls["tflite"] == {
        "overwrite": False, "input_shapes": None, "batch_size": None, "select_tf_ops": True, "uncompared": ["b"],
    }  # fmt: skip
    assert run(*command)[0] == 0
    assert calls["tflite"] == {"overwrite": False, "input_shapes": None}
    command = "export", "model.keras", "--to", "saved_model", "-o", "m"
    assert run(*command, "--precision", "fp16")[0] == 0
    assert calls["saved_model"] == {"overwrite": False, "input_shapes": None, "precision": "fp16"}
    assert run(*command, "--precision", "float32")[0] == 0
    assert calls["saved_model"] == {"overwrite": False, "input_shapes": None, "precision": "fp32"}


@pytest.mark.parametrize("target", ["onnx", "tflite", "saved_model", "tftrt"])
def test_every_option_of_the_exporters_is_on_the_command_line(target):
    by_the_command = {"model", "path", "overwrite", "input_shapes", "sparsity_m_by_n", "progress"}
    if target == "tftrt":  # which reads a SavedModel, made here if need be
        by_the_command = by_the_command - {"model", "path"} | {"saved_model_dir", "out_dir", "allow_unsafe"}
    function = getattr(tfmot_asp.export, target)
    options = set(exporting._OPTIONS[target]) - ({"batch_size"} if target == "tftrt" else set())
    assert options | by_the_command == set(inspect.signature(function).parameters)


def test_choices_are_those_of_the_exporters(capsys):
    main(["export", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for choices in (activation_ranges.METHODS, tflite_module._IO_DTYPES):
        assert f"{{{','.join(choices)}}}" in text


@pytest.mark.filterwarnings("ignore:.*tf.lite.Interpreter is deprecated")
def test_exports_in_int8_take_their_options(here, run):
    """For real: the files are read back."""
    run("prune", "model.keras", "-o", "sparse.keras", "--effort", "fast", "-q")
    images = np.random.default_rng(0).normal(size=(16, 8, 8, 3)).astype(np.float32)
    np.save("images.npy", images)
    command = "export", "sparse.keras", "--calibration", "images.npy"
    code, out, _ = run(*command, "--to", "tflite", "-o", "m.tflite", "--precision", "int8", "--io-dtype", "int8")
    assert code == 0
    assert "3 of 4 weights are 2:4; ok" in out
    interpreter = tf.lite.Interpreter("m.tflite")
    assert [detail["dtype"] for detail in interpreter.get_input_details()] == [np.int8]
    pytest.importorskip("tf2onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    options = "--int8-weights", "--keep-float", "head/kernel", "--inputs-as-nchw", "image", "--batch-size", 2
    code, out, _ = run(*command, "--to", "onnx", "-o", "m.onnx", "--precision", "int8", *options)
    assert code == 0
    said = "3 of 4 products quantized, 2 of them with their output, on 16 samples (percentile)"
    assert said in " ".join(out.split())
    (given,) = onnxruntime.InferenceSession("m.onnx").get_inputs()
    assert given.shape == [2, 3, 8, 8]


@pytest.mark.parametrize(
    ("options", "because"),
    [
        (["--to", "onnx", "-o", "m.tflite"], "has the suffix '.tflite'; this command writes .onnx"),
        (["--to", "saved_model", "-o", "m.onnx"], "this command writes a folder without a suffix"),
        (
            ["--to", "saved_model", "-o", "m", "--calibration", "x.npy"],
            "--calibration goes with --to onnx and --to tflite and --to tftrt, not with --to saved_model",
        ),
        (["--to", "onnx", "-o", "m.onnx", "--precision", "fp8"], "'fp8' is none of fp32, fp16, int8"),
        (["--to", "onnx", "-o", "m.onnx", "--precision", "fp16", "--quantize", "int8"], "--quantize: not allowed with"),
        (["--to", "tflite", "-o", "m.tflite", "--opset", "17"], "--opset goes with --to onnx, not with --to tflite"),
        (["--to", "tflite", "-o", "m.tflite", "--no-fold-batch-norm"], "--no-fold-batch-norm goes with --to onnx"),
        (["--to", "saved_model", "-o", "m", "--precision", "int8"], "--to saved_model writes fp32 or fp16, not int8"),
        (["--to", "onnx", "-o", "m.onnx", "--precision", "int8"], "int8 needs --calibration:"),
        (["--to", "tflite", "-o", "m.tflite", "--precision", "int8"], "int8 needs --calibration:"),
        (
            ["--to", "onnx", "-o", "m.onnx", "--io-dtype", "int8"],
            "--io-dtype goes with --to tflite, not with --to onnx",
        ),
        (["--to", "saved_model", "-o", "m", "--int8-weights"], "--int8-weights goes with --to onnx"),
        (["--to", "onnx", "-o", "m.onnx", "--keep-float", "a"], "--keep-float and --int8-weights are for --precision"),
        (["--to", "onnx", "-o", "m.onnx", "--percentile", "nan"], "percentile must be above 50"),
        (["--to", "onnx", "-o", "m.onnx", "--batch-size", "closed"], "'closed' is no positive integer"),
        (["--to", "onnx", "-o", "m.onnx", "--batch-sizes", "8,1,16"], "'8,1,16' is not smallest, most frequent and"),
        (["--to", "onnx", "-o", "m.onnx", "--tensorrt-version", "7"], "--tensorrt-version must be a version from 8 on"),
        (["--to", "tflite", "-o", "m.tflite", "--batch-sizes", "1,2,3"], "--batch-sizes goes with --to onnx"),
        (["--to", "tflite", "-o", "m.tflite", "--tensorrt-version", "10"], "--tensorrt-version goes with --to onnx"),
        (
            ["--to", "onnx", "-o", "m.onnx", "--precision", "int8", "--calibration", "none.npy"],
            "there is no file 'none.npy'",
        ),
        (["--to", "saved_model", "-o", "model.keras"], "this command writes a folder"),
    ],
)
def test_export_refuses_options_that_do_not_fit(here, fails, options, because):
    fails("export", "model.keras", *options, because=because)


# search


def test_search_is_what_the_library_does(here, run):
    matrix = np.random.default_rng(0).normal(size=(32, 16))
    np.save("m.npy", matrix)
    expected = tfmot_asp.search(matrix, effort="fast", seed=1)
    code, out, err = run("search", "m.npy", "-o", "order.npy", "--effort", "fast", "--seed", 1)
    assert (code, err) == (0, "")
    assert "np.take(old, permutation, axis=1)" in out
    order = np.load("order.npy")
    np.testing.assert_array_equal(order, expected.permutation)
    code, out, _ = run("search", "m.npy", "--effort", "fast", "--seed", 1)
    assert out.splitlines()[-1] == " ".join(map(str, expected.permutation))
    data = json.loads(run("search", "m.npy", "--effort", "fast", "--seed", 1, "--json")[1])
    assert data["permutation"] == expected.permutation.tolist()
    assert data["retained_after"] == expected.retained_after


@pytest.mark.parametrize("axis", [0, 2, -2])
def test_search_of_a_kernel_along_an_axis(here, run, axis):
    kernel = np.random.default_rng(0).normal(size=(16, 3, 16, 8)).astype(np.float16)
    np.save("kernel.npy", kernel)
    data = json.loads(run("search", "kernel.npy", "--axis", axis, "--effort", "fast", "--json")[1])
    matrix = np.moveaxis(kernel, axis, -1).reshape(-1, kernel.shape[axis])
    assert data["permutation"] == tfmot_asp.search(matrix, effort="fast").permutation.tolist()
    code, out, _ = run("search", "kernel.npy", "--axis", axis, "--effort", "fast", "-o", "order.npy")
    assert code == 0
    assert f"axis={axis % 4})" in out


@pytest.mark.parametrize("dtype", [np.int8, np.int64, np.float16, ">f8"])
def test_search_takes_any_real_numbers(here, run, dtype):
    np.save("m.npy", np.random.default_rng(0).integers(-9, 9, (8, 8)).astype(dtype))
    assert run("search", "m.npy", "--effort", "fast")[0] == 0


def test_search_of_what_is_no_matrix(here, fails):
    np.save("vector.npy", np.ones(4))
    np.save("scalar.npy", np.float32(3))
    np.save("nan.npy", np.array([[np.nan, 1, 2, 3]]))
    np.save("words.npy", np.array([["a", "b"]]))
    np.save("empty.npy", np.ones((0, 4)))
    np.save("conv.npy", np.ones((3, 3, 16, 8)))
    np.save("objects.npy", np.array([[print]], dtype=object), allow_pickle=True)
    np.savez("two.npz", a=np.ones((4, 4)), b=np.ones((4, 4)))
    (here / "text.npy").write_text("1 2 3")
    (here / "nothing.npy").write_bytes(b"")
    whole = (here / "conv.npy").read_bytes()
    (here / "cut.npy").write_bytes(whole[:-100])
    header = np.lib.format.header_data_from_array_1_0(np.ones((2, 2)))
    with open("huge.npy", "wb") as file:
        np.lib.format.write_array_header_1_0(file, {**header, "shape": (10**9, 10**9)})
    for name, because in {
        "vector.npy": "a matrix of weights is needed",
        "scalar.npy": "a matrix of weights is needed",
        "nan.npy": "NaN",
        "words.npy": "real numbers",
        "empty.npy": "empty",
        "conv.npy": "say with --axis which of its 4 axes",
        "objects.npy": "it holds Python objects",
        "two.npz": "holds several arrays (a, b)",
        "text.npy": "no NumPy file",
        "nothing.npy": "cannot be read as NumPy arrays",
        "cut.npy": "cannot be read as NumPy arrays",
        "huge.npy": "cannot be read as NumPy arrays",
        "nowhere.npy": "there is no file 'nowhere.npy'",
        ".": "is a folder",
        "model.keras": "cannot be read as NumPy arrays: it is no NumPy file",
    }.items():
        fails("search", name, because=because)
    fails("search", "conv.npy", "--axis", 4, because="only 4 axes")
    fails("search", "conv.npy", "--axis", 2, "--device", "cuda", because="--device cuda cannot be used")
    fails("search", "conv.npy", "--axis", 2, "-o", "conv.npy", because="is the file that is read")
    fails("search", "conv.npy", "--axis", 2, "-o", "order.txt", because="this command writes .npy")


def test_a_pickle_does_not_run(here, fails):
    payload = b"cposix\nsystem\n(S'touch marker'\ntR."
    for name in ("evil.npy", "evil.npz", "evil.keras", "evil.h5"):
        (here / name).write_bytes(payload)
    fails("search", "evil.npy", because="no NumPy file")
    fails("export", "model.keras", "--to", "onnx", "-o", "m.onnx", "--calibration", "evil.npz", because="evil.npz")
    fails("inspect", "evil.keras", because="neither a .keras archive")
    fails("inspect", "evil.h5", because="neither a .keras archive")


# bad input and usage


def test_bad_models(here, fails):
    (here / "picture.keras").write_bytes(b"\x89PNG\r\n\x1a\n")
    (here / "cut.keras").write_bytes((here / "model.keras").read_bytes()[:2000])
    for command in (["inspect"], ["permute", "-o", "out.keras"], ["verify"], ["plot", "-o", "out.dot"]):
        fails(command[0], "nowhere.keras", *command[1:], because="there is no file or folder 'nowhere.keras'")
        fails(command[0], "picture.keras", *command[1:], because="neither a .keras archive")
        fails(command[0], "cut.keras", *command[1:], because="damaged")


def test_lambda_layers_need_to_be_allowed(here, run, fails):
    model = tf_keras.Sequential([layers.Input((16,)), layers.Lambda(lambda x: x + 1, name="plus"), layers.Dense(16)])
    model.save("code.keras")
    fails("inspect", "code.keras", because="'plus' is a Lambda layer, which is Python code")
    fails("verify", "code.keras", because="'plus' is a Lambda layer")
    assert run("inspect", "code.keras", "--allow-unsafe")[0] == 0
    assert run("prune", "code.keras", "-o", "out.keras", "--allow-unsafe", "--effort", "fast")[0] == 0
    assert run("verify", "out.keras", "--allow-unsafe")[0] == 0


def test_custom_layers_can_be_imported(here, run, fails, monkeypatch):
    source = """
        import tf_keras

        @tf_keras.saving.register_keras_serializable(package="cli_test")
        class Scaled(tf_keras.layers.Layer):
            def call(self, inputs):
                return 3 * inputs
        """
    (here / "scaled_layers.py").write_text(textwrap.dedent(source))
    code = (
        "import scaled_layers as s, tf_keras as k; L = k.layers; k.Sequential([L.Input((16,)), s.Scaled(name='mine'), "
    )
    code += "L.Dense(16)]).save('custom.keras')"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    fails("inspect", "custom.keras", because="'mine' is a custom Scaled of module 'scaled_layers'")
    fails("inspect", "custom.keras", "--import", "no_such_module", because="--import no_such_module: No module named")
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert run("inspect", "custom.keras", "--import", "scaled_layers")[0] == 0


def test_errors_as_json(here, run):
    code, out, err = run("inspect", "nowhere.keras", "--json")
    assert code == 2
    assert json.loads(out) == {"error": "there is no file or folder 'nowhere.keras'"}
    assert "nowhere.keras" in err


def test_layers_to_skip_must_exist(here, fails):
    fails("inspect", "model.keras", "--skip", "haed", because="no such layer; did you mean 'head'?")


@pytest.mark.parametrize(
    "arguments",
    [
        ["bogus"],
        ["inspect"],
        ["permute", "model.keras"],
        ["inspect", "model.keras", "--kinds", "Dens"],
        ["inspect", "model.keras", "--m-by-n", "4:2"],
        ["inspect", "model.keras", "--m-by-n", "x"],
        ["inspect", "model.keras", "--pattern", "4:2"],
        ["inspect", "model.keras", "--pattern", "2:4", "--m-by-n", "2,4"],
        ["inspect", "model.keras", "--input-shape", "1,x"],
        ["inspect", "model.keras", "--input-shape", "1,-3"],
        ["inspect", "model.keras", "--batch-size", "0"],
        ["inspect", "model.keras", "--min-gain", "0.9"],
        ["export", "model.keras", "--to", "word", "-o", "x"],
        ["search", "m.npy", "--time-limit", "nan"],
        ["search", "m.npy", "--eff", "fast"],
    ],
)
def test_wrong_usage(here, run, arguments):
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("tfmot-asp")
    assert err.count("\n") == 1
    assert "` has what there is)" in err


def test_unexpected_errors_are_one_line(here, run, monkeypatch, capsys):
    def broken(*_, **__):
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr("tfmot_asp.loading.load_model", broken)
    code, _, err = run("inspect", "model.keras")
    assert code == 2
    assert err == "tfmot-asp: error: unexpected ZeroDivisionError: a defect (--debug shows where)\n"
    assert main(["inspect", "model.keras", "--debug"]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("Traceback (most recent call last):")
    assert shown.endswith(err)


def test_our_warnings_are_shown_and_quiet_hides_them(here, run, monkeypatch):
    import logging

    real = load_model

    def noisy(*arguments, **options):
        sys.stdout.write("a library prints\n")
        logging.getLogger("tfmot_asp.somewhere").warning("look at this")
        logging.getLogger("tensorflow").warning("noise")
        return real(*arguments, **options)

    monkeypatch.setattr("tfmot_asp.loading.load_model", noisy)
    _, out, err = run("inspect", "model.keras", "--json")
    json.loads(out)
    assert err == "a library prints\ntfmot-asp: warning: look at this\n"
    _, _, err = run("inspect", "model.keras", "--json", "--quiet")
    assert "look at this" not in err


# as programs


def program(*arguments, **options):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(
        [sys.executable, "-m", "tfmot_asp", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        text=True,
        **options,
    )


def test_a_program_prints_its_result_and_nothing_else(here):
    process = program("inspect", "model.keras", "--json")
    out, err = process.communicate()
    assert (process.returncode, err) == (0, "")
    assert json.loads(out)["model"] == "model.keras"


def test_a_reader_that_goes_away(here):
    np.save("m.npy", np.random.default_rng(0).normal(size=(4, 4096)))
    process = program("search", "m.npy", "--effort", "fast")
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait() == 141
    process.stderr.close()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stops(here, number, code):
    np.save("m.npy", np.random.default_rng(0).normal(size=(2048, 2048)))
    process = program("search", "m.npy", "--effort", "thorough", "-o", "order.npy", "-v", "--device", "cpu")
    assert "Searching an order of 2048 columns" in process.stderr.readline()
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (code, "")
    assert "Traceback" not in err
    assert sorted(os.listdir()) == ["m.npy", "model.keras"]
