"""The weights of written files, run 2:4: on a model of the libraries, which refuses what is not 2:4 as they do."""

import json

import numpy as np
import pytest
import tf_keras
from tf_keras import layers

import tfmot_asp
from tests.hardware.fake_gpu import CuSparseLt, install
from tfmot_asp.cli import main
from tfmot_asp.export.run_sparse import run_sparse, weight_matrix
from tfmot_asp.graph.gemm import Gemm


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    install(monkeypatch, tmp_path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A pruned model as a SavedModel, and as ONNX where that can be written."""
    tf_keras.utils.set_random_seed(0)
    x = layers.Input((8, 8, 16), name="image")
    y = layers.Conv2D(32, 3, name="conv")(x)
    y = layers.Conv2D(32, 3, groups=2, name="grouped")(y)
    y = layers.Dense(8, name="odd")(layers.Dense(16, name="fc")(layers.Flatten()(y)))
    model = tf_keras.Model(x, y)
    tfmot_asp.prune_trained_model(model, permute=False).remove()
    folder = tmp_path_factory.mktemp("files")
    tfmot_asp.export.saved_model(model, folder / "saved")
    model.save(folder / "model.keras")
    return folder


def check(report):
    rows = {row.name.split("/")[0]: row for row in report.products}
    assert report.ok
    assert (rows["conv"].n, rows["conv"].k) == (32, 144)
    assert rows["conv"].equal
    assert rows["fc"].equal
    assert (rows["grouped"].error, rows["grouped"].reason) == (None, "grouped")
    assert rows["odd"].reason == "N no multiple of 16"


def test_what_is_two_four_is_run_and_equals_the_dense_product(gpu, folder, capsys):
    check(run_sparse(folder / "saved"))
    assert main(["verify", str(folder / "saved"), "--on-gpu"]) == 0
    assert "of 2 products run 2:4 on Fake GPU, 2 equal the dense ones" in capsys.readouterr().out


def test_an_onnx_file(gpu, folder, tmp_path):
    pytest.importorskip("tf2onnx")
    model = tf_keras.models.load_model(folder / "model.keras")
    for precision in ("fp32", "fp16"):
        path = tmp_path / f"{precision}.onnx"
        tfmot_asp.export.onnx(model, path, precision=precision)
        check(tfmot_asp.export.run_sparse(path))


def test_a_difference_is_no_success(gpu, folder, monkeypatch, capsys):
    monkeypatch.setattr(CuSparseLt, "wrong", 1000.0)
    report = run_sparse(folder / "saved")
    assert not report.ok
    assert "DIFFERENT" in str(report)
    assert main(["verify", str(folder / "saved"), "--on-gpu", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["on_gpu"]["ok"] is False


def test_without_a_gpu_it_says_what_is_missing(folder):
    with pytest.raises(RuntimeError, match="products cannot be run on a GPU here"):
        run_sparse(folder / "saved")


@pytest.mark.parametrize(
    ("shape", "reduction", "outputs"),
    [((3, 3, 8, 4), (2,), (3,)), ((8, 4), (0,), (1,)), ((4, 8, 3, 3), (1,), (0,)), ((2, 4, 3, 5), (0, 1), (2, 3))],
)
def test_the_matrix_has_the_stripes_of_the_weight(shape, reduction, outputs):
    weight = np.arange(np.prod(shape)).reshape(shape)
    matrix = weight_matrix(Gemm("op", "MatMul", "w", weight, reduction, outputs))
    assert matrix.shape[0] == np.prod([shape[axis] for axis in outputs])
    stripes = np.moveaxis(weight, reduction, range(-len(reduction), 0)).reshape(-1, 4)
    assert set(map(tuple, stripes)) == set(map(tuple, matrix.reshape(-1, 4)))
