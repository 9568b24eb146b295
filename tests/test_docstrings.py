"""The examples in the docstrings of the public names run, and print what they say.

What an example uses without making it (``model``, ``images``, a file by its name) is made here.
"""

import ast
import doctest
import functools
import inspect
import pathlib

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import tests.small_models as small_models
import tfmot_asp

EXPORTS = ("onnx", "parse_tensorrt_log", "saved_model", "tflite", "tftrt", "trtexec_command", "verify")
LOADING = ("load_model", "check_saved_model")
NAMES = [*tfmot_asp.__all__, *(f"export.{name}" for name in EXPORTS), *(f"loading.{name}" for name in LOADING)]
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
RNG = np.random.default_rng(0)


def model():
    tf_keras.utils.set_random_seed(0)
    made = small_models.convnet()
    made.compile("adam", "sparse_categorical_crossentropy")
    return made


def sparse():
    made = model()
    tfmot_asp.prune_trained_model(made, permute=False).remove()
    return made


def pruned():
    made = small_models.compiled(tfmot_asp.prune_low_magnitude(model(), permute=False))
    made.fit(*small_models.data(made), verbose=0, callbacks=[tfmot_asp.UpdatePruningStep()])
    return made


def quantized():
    return small_models.compiled(tfmot_asp.quantize_model(sparse()))


LOG = """[I] [TRT] (Sparsity) Layers eligible for sparse math: conv, fc
[I] [TRT] (Sparsity) TRT inference plan picked sparse implementation for layers: fc
"""


class MyLayer(tf_keras.layers.Layer):
    """A layer of the user's."""


THINGS = {
    "model": model,
    "another_copy_of_the_model": model,
    "sparse": sparse,
    "quantized": quantized,
    "pruned": pruned,
    "images": lambda: small_models.data(model())[0],
    "labels": lambda: small_models.data(model())[1],
    "matrix": lambda: np.abs(RNG.normal(size=(32, 16))),
    "report": lambda: tfmot_asp.export.verify(made_file("exported")),
    "MyLayer": lambda: MyLayer,
    "build": lambda: small_models.convnet,
}
MODULES = {"np": np, "tf": tf, "tf_keras": tf_keras, "layers": tf_keras.layers, "pathlib": pathlib}


def made_file(path):
    FILES[path](path)
    return path


FILES = {
    "weights": lambda path: small_models.convnet().save_weights(path),
    "model.keras": lambda path: model().save(path),
    "quantized.keras": lambda path: quantized().save(path),
    "exported": lambda path: tfmot_asp.export.saved_model(sparse(), path, overwrite=True),
    "model.onnx": lambda path: tfmot_asp.export.onnx(sparse(), path, overwrite=True),
    "build.log": lambda path: pathlib.Path(path).write_text(LOG),
}

WRITTEN = {("export.saved_model", "exported"), ("export.onnx", "model.onnx")}  # by the example itself


def examples_of(name):
    thing = functools.reduce(getattr, name.split("."), tfmot_asp)
    is_error = inspect.isclass(thing) and issubclass(thing, Exception)
    if inspect.ismodule(thing) or not callable(thing) or is_error or not thing.__module__.startswith("tfmot_asp"):
        pytest.skip("a number, a module, an error, or tfmot's")
    return thing, doctest.DocTestParser().get_examples(inspect.getdoc(thing))


@pytest.mark.parametrize("name", NAMES)
def test_examples_run_and_give_what_they_say(name, tmp_path, monkeypatch, capsys):
    thing, examples = examples_of(name)
    assert examples, "a public name has an example"
    if name == "export.tftrt":
        pytest.skip("needs a TensorFlow that was built with TensorRT")
    if name.startswith("export.") and name.removeprefix("export.") in ("onnx", "trtexec_command"):
        pytest.importorskip("tf2onnx")
    if name == "export.check_with_tensorrt":
        pytest.importorskip("tensorrt_rtx")
    monkeypatch.chdir(tmp_path)
    for node in (node for example in examples for node in ast.walk(ast.parse(example.source))):
        if isinstance(node, ast.Constant) and node.value in FILES and (name, node.value) not in WRITTEN:
            made_file(node.value)
    scope = {**MODULES, "tfmot_asp": tfmot_asp, thing.__name__: thing}
    scope.update({key: make() for key, make in THINGS.items() if is_read_first(key, examples)})
    for example in examples:
        capsys.readouterr()
        value = run(example.source, scope)
        printed = capsys.readouterr().out
        got = printed if value is None else f"{value!r}\n"
        if example.want:
            assert doctest.OutputChecker().check_output(example.want, got, OPTIONS), got


def is_read_first(name, examples):
    """Whether an example reads a name before it assigns it."""
    for example in examples:
        tree = ast.parse(example.source)
        names = [node for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id == name]
        if any(isinstance(node.ctx, ast.Load) for node in names):
            return True
        if names:
            return False
    return False


def run(source, scope):
    """Runs an example; the value of one that is an expression."""
    tree = ast.parse(source)
    if len(tree.body) == 1 and isinstance(tree.body[0], ast.Expr):
        return eval(compile(ast.Expression(tree.body[0].value), "<example>", "eval"), scope)
    exec(compile(tree, "<example>", "exec"), scope)
    return None
