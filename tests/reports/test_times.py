"""Times in a sparsity report: those of `hardware.estimate`, product by product, and their sum for the model."""

import json

import pytest
import tf_keras
from tf_keras import layers

import tfmot_asp
from tests.small_models import convnet
from tfmot_asp.hardware import estimate
from tfmot_asp.hardware.timing_table import SHIPPED


@pytest.fixture(scope="module")
def model():
    """Large and small products, a shared layer at two sizes, grouped and depthwise ones, two activations, odd sizes."""
    x = layers.Input((16, 16, 16), name="image")
    shared = layers.Conv2D(16, 3, padding="same", name="shared")
    y = layers.MaxPooling2D()(shared(shared(x)))
    y = layers.Conv2D(32, 1, name="late")(shared(y))
    y = layers.Conv2D(32, 3, groups=2, name="grouped")(y)
    y = layers.DepthwiseConv2D(3, name="depthwise")(y)
    y = layers.Reshape((16, 32))(y)
    y = layers.MultiHeadAttention(2, 16, name="attention")(y, y)
    y = layers.Dense(24, name="odd")(layers.Flatten()(y))
    return tf_keras.Model(x, y, name="mixed")


def test_each_product_is_estimated_and_the_model_takes_the_faster_of_both(model):
    report = tfmot_asp.sparsity_report(model, gpu="H100", batch_size=32)
    rows = {row.name: row for row in report.layers}
    assert [(size.m, size.calls) for size in rows["shared"].gemms] == [(8192, 2), (2048, 1)]
    dense = saved = 0.0
    for row in report.layers:
        can = row.name in ("shared", "late") or row.kind == "EinsumDense"
        for size, time in zip(row.gemms, row.times, strict=True):
            product = estimate(size.m * size.groups, size.n, size.k)
            assert time.dense_us == pytest.approx(size.calls * product.dense_us)
            assert time.sparse_us == (pytest.approx(size.calls * product.sparse_us) if can else None)
            assert time.error == (pytest.approx(product.error) if can else None)
            dense += size.calls * product.dense_us
            saved += size.calls * max(0.0, product.dense_us - product.sparse_us) if can else 0.0
        assert row.dense_us == pytest.approx(sum(time.dense_us for time in row.times))
    assert "2 groups" in rows["grouped"].no_sparse_kernel
    assert "depthwise" in rows["depthwise.depthwise_kernel"].no_sparse_kernel
    assert rows["odd"].no_sparse_kernel == "24 outputs, no multiple of 16"
    assert rows["odd"].speedup is None
    assert rows["odd"].prunable
    sizes = [size for other in report.others for size in other.gemms]
    assert len(report.others_us) == len(report.others) > 0
    dense += sum(size.calls * estimate(size.m * size.groups, size.n, size.k).dense_us for size in sizes)
    assert report.gain_prunable.dense_us == pytest.approx(dense)
    assert report.gain_prunable.sparse_us == pytest.approx(dense - saved)
    assert report.gain_now.speedup == 1


def test_what_is_sparse_now_gains_now():
    model = convnet()
    before = tfmot_asp.sparsity_report(model, gpu="h100", batch_size=512)
    tfmot_asp.prune_trained_model(model, permute=False).remove()
    after = tfmot_asp.sparsity_report(model, gpu="h100", batch_size=512)
    assert before.gain_now.speedup == 1 < before.gain_prunable.speedup
    assert after.gain_now == after.gain_prunable == before.gain_prunable


def test_precision_decides_which_sizes_and_which_times(model):
    half, small = (tfmot_asp.sparsity_report(model, gpu="H100", precision=name) for name in ("float16", "int8"))
    assert (half.precision, small.precision) == ("fp16", "int8")
    rows = {row.name: row for row in small.layers}
    assert rows["shared"].no_sparse_kernel == "16 inputs, no multiple of 32"
    size = rows["odd"].gemms[0]
    assert rows["odd"].dense_us == pytest.approx(estimate(size.m, size.n, size.k, precision="int8").dense_us)


def test_the_table_and_the_dict(model):
    plain, timed = (tfmot_asp.sparsity_report(model, batch_size=32, gpu=gpu) for gpu in (None, "H100"))
    text = str(timed)
    lines = text.splitlines()
    assert set(str(plain).splitlines()) <= set(lines)
    lines = lines[lines.index("", len(str(plain).splitlines())) + 1 :]
    assert lines[0] == "Estimated microseconds on NVIDIA H100 80GB HBM3 in fp16, dense and 2:4, of all calls"
    words = [line.split() for line in lines]
    (first,) = [row for row in words if row[:1] == ["shared"]]
    time = timed.layers[0].times[0]
    size = timed.layers[0].gemms[0]
    cells = (size.m, "x", size.n, "x", size.k, size.calls, f"{time.dense_us:.1f}", f"{time.sparse_us:.1f}")
    assert first[1:9] == list(map(str, cells))
    assert "dense, 24 outputs, no multiple of 16" in " ".join(text.split())
    assert f"x{timed.gain_prunable.speedup:.2f}" in text
    assert max(map(len, lines)) <= 120
    data = json.loads(json.dumps(timed.to_dict()))
    assert data == timed.to_dict()
    assert data["gpu"] == "NVIDIA H100 80GB HBM3"
    assert data["estimated"]["prunable"]["speedup"] == timed.gain_prunable.speedup
    assert [row["speedup"] for row in data["layers"]] == [row.speedup for row in timed.layers]
    assert [time["dense_us"] for time in data["layers"][0]["times"]] == [t.dense_us for t in timed.layers[0].times]
    assert [other["dense_us"] for other in data["others"]] == list(timed.others_us)
    assert plain.to_dict()["estimated"] == {"now": None, "prunable": None}


def test_times_of_a_table_of_ones_own(model, tmp_path):
    table = json.loads(SHIPPED["H100"].read_text())
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({**table, "gpu": "Mine"}))
    mine, theirs = (tfmot_asp.sparsity_report(model, gpu=gpu) for gpu in (path, "H100"))
    assert mine.gpu == "Mine"
    assert mine.gain_prunable == theirs.gain_prunable


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"gpu": "A100"}, ValueError, r"gpu='A100'; it must be 'H100', 'H100-tuned' or a \.json file"),
        ({"gpu": 100}, TypeError, r"gpu must be 'H100', 'H100-tuned' or the path of a \.json file of times, got 100"),
        ({"gpu": "none.json"}, FileNotFoundError, r"none\.json"),
        ({"gpu": "H100", "precision": "fp32"}, ValueError, "precision must be one of 'fp16', 'int8', got 'fp32'"),
        ({"gpu": "H100", "batch_size": None}, ValueError, "give batch_size, which is None"),
    ],
)
def test_bad_options_are_refused_before_any_work(options, error, match):
    with pytest.raises(error, match=match):
        tfmot_asp.sparsity_report("not even a model", **options)


def test_without_sizes_or_work_there_are_no_times():
    x = layers.Input((None, 16))
    open_sizes = tf_keras.Model(x, layers.Dense(16)(x))
    chosen = tfmot_asp.sparsity_report(open_sizes, gpu="H100")
    assert chosen.layers[0].dense_us == pytest.approx(estimate(128, 16, 16).dense_us)
    assert "chosen here" in str(chosen)
    layer = layers.Dense(16)
    layer.build((None, 16))
    report = tfmot_asp.sparsity_report(layer, gpu="H100")
    assert (report.gpu, report.gain_now, report.layers[0].dense_us) == (None, None, None)
    assert "pass input_shapes" in str(report)
    given = tfmot_asp.sparsity_report(open_sizes, gpu="H100", input_shapes=(None, 4096, 16), batch_size=8)
    assert given.layers[0].dense_us == pytest.approx(estimate(8 * 4096, 16, 16).dense_us)
    x = layers.Input((4,))
    nothing = tfmot_asp.sparsity_report(tf_keras.Model(x, layers.ReLU()(x)), gpu="H100")
    assert nothing.gain_prunable.speedup == 1
    assert "x1.00" in str(nothing)
