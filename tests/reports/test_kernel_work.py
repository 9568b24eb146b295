"""What `sparsity_report` says about sizes: of the right kernel, for the right inputs, of all the work."""

import json
import math
import pathlib
import re

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from hypothesis import given, settings
from hypothesis import strategies as st
from tf_keras import layers

import tfmot_asp
from tests.small_models import convnet, mlp
from tfmot_asp.graph.products import GemmSize
from tfmot_asp.hardware.rule import SUPPORTED_KINDS, SparseTensorCoreRule


def rows_of(model, **options):
    return {row.name: row for row in tfmot_asp.sparsity_report(model, **options).layers}


def work_of_layers(model):
    """Multiply-adds of one sample, from the shapes that Keras states for each Conv2D and Dense layer."""
    work = {}
    for layer in model._flatten_layers():
        if isinstance(layer, (layers.Conv2D, layers.Dense)) and not isinstance(layer, layers.DepthwiseConv2D):
            positions = math.prod(layer.output_shape[1:-1])
            work[layer.name] = positions * int(tf.size(layer.kernel))
    return work


@pytest.fixture(scope="module")
def resnet50():
    return tf_keras.applications.ResNet50(weights=None)


def test_resnet50_has_the_multiply_adds_that_its_layers_and_its_paper_say(resnet50):
    model = resnet50
    report = tfmot_asp.sparsity_report(model)
    assert {row.name: row.multiply_adds for row in report.layers} == work_of_layers(model)
    assert 3.8e9 <= report.multiply_adds < 3.9e9  # "3.8 billion": He et al., 2015, table 1
    assert report.others == ()
    assert report.notes == ()
    assert sum(row.share for row in report.layers) == pytest.approx(1)
    prunable = sum(row.share for row in report.layers if row.prunable)
    assert report.best_prunable.share == pytest.approx(prunable)
    assert max(map(len, report.to_text(120).splitlines())) <= 120


def test_the_document_shows_what_the_report_says(resnet50):
    document = (pathlib.Path(__file__).parents[2] / "docs" / "performance.md").read_text()
    blocks = re.findall(r"```text\n(.*?)```", document, re.DOTALL)
    report = tfmot_asp.sparsity_report(resnet50)
    timed = tfmot_asp.sparsity_report(resnet50, gpu="H100", batch_size=32)
    for shown, printed in zip(blocks, (report, timed), strict=True):
        lines = printed.to_text(None).splitlines()
        assert [line for line in shown.splitlines() if line not in lines] == []
    bound, gain = timed.best_prunable.speedup, timed.gain_prunable.speedup
    assert re.search(rf"^\| ResNet50 \| 32 \| . {bound:.2f} \| . {gain:.2f} \|", document, re.MULTILINE)
    rows = re.findall(r"^\| (None|\d+) \| (\d+)[^|]*\| ([\d.]+) % \| . ([\d.]+) \|$", document, re.MULTILINE)
    assert len(rows) == 4
    for least, kernels, share, speedup in rows:
        least = None if least == "None" else int(least)
        chosen = [row for row in report.layers if row.prunable and min(row.shape[-2:]) >= (least or 0)]
        total = sum(row.share for row in chosen)
        assert (len(chosen), f"{100 * total:.1f}", f"{1 / (1 - total / 2):.2f}") == (int(kernels), share, speedup)


@settings(max_examples=5)
@given(st.integers(1, 9))
def test_work_and_rows_grow_with_the_batch(batch):
    model = convnet()
    one, many = tfmot_asp.sparsity_report(model), tfmot_asp.sparsity_report(model, batch_size=batch)
    assert many.multiply_adds == batch * one.multiply_adds
    assert many.input_shapes == ((batch, 8, 8, 3),)
    for alone, together in zip(one.layers, many.layers, strict=True):
        assert together.gemms[0].m == batch * alone.gemms[0].m
        assert (together.gemms[0].n, together.gemms[0].k) == (alone.gemms[0].n, alone.gemms[0].k)
        assert together.share == pytest.approx(alone.share)


def test_image_size_and_models_that_leave_it_open():
    x = layers.Input((None, None, 16))
    model = tf_keras.Model(x, layers.Conv2D(32, 3, padding="same", name="conv")(x))
    report = tfmot_asp.sparsity_report(model, batch_size=2)
    assert report.layers[0].gemms == (GemmSize(2 * 224 * 224, 32, 9 * 16),)
    assert "leaves sizes open: these are for inputs of shape (2, 224, 224, 16), chosen here" in report.notes[0]
    assert report.notes[0] in report.to_text(None)
    known = tfmot_asp.sparsity_report(model, input_shapes=(None, 10, 12, 16), batch_size=3)
    assert known.layers[0].gemms == (GemmSize(3 * 120, 32, 9 * 16),)
    assert tfmot_asp.sparsity_report(model, input_shapes=(5, 10, 12, 16)).layers[0].gemms[0].m == 5 * 120


def test_a_size_that_the_model_takes_is_chosen():
    """Of 64 positions it has a table; at 20 no size of ours runs, and the report asks for one."""

    def encoder(positions):
        tokens = layers.Input((None,), dtype="int32", name="tokens")
        table = tf.ones((positions, 16))
        return tf_keras.Model(tokens, layers.Dense(32, name="fc")(layers.Embedding(50, 16)(tokens) + table))

    report = tfmot_asp.sparsity_report(encoder(64))
    assert report.layers[0].gemms == (GemmSize(64, 32, 16),)
    report = tfmot_asp.sparsity_report(encoder(20))
    assert report.layers[0].gemms is None
    assert report.layers[0].misaligned_int8 == ("K",)  # of the weight, whatever the length
    assert (report.multiply_adds, report.best_now, report.best_prunable) == (None, None, None)
    assert "pass input_shapes with a typical size" in report.notes[0]
    assert "input_shapes=(None, 128)" in report.notes[0]


def test_shapes_that_are_given_wrong_are_an_error():
    with pytest.raises(ValueError, match="could not be traced"):
        tfmot_asp.sparsity_report(convnet(), input_shapes=(None, 8, 8, 5))
    with pytest.raises(ValueError, match="must be known except for the batch"):
        tfmot_asp.sparsity_report(convnet(), input_shapes=(None, None, 8, 3))


@pytest.mark.parametrize(("batch", "error"), [(0, ValueError), (True, ValueError), ("1", TypeError), (1.0, TypeError)])
def test_a_batch_size_is_a_number_of_samples(batch, error):
    with pytest.raises(error, match="batch_size must be a number of samples"):
        tfmot_asp.sparsity_report(mlp(), batch_size=batch)


def test_sizes_can_be_left_out_and_then_nothing_is_traced():
    calls = []

    class Counting(layers.Dense):
        def call(self, inputs):
            calls.append(1)
            return super().call(inputs)

    model = tf_keras.Sequential([layers.Input((16,)), Counting(8, name="d")])
    calls.clear()
    report = tfmot_asp.sparsity_report(model, batch_size=None)
    assert (calls, report.layers[0].gemms) == ([], None)
    assert "left out" in str(report)
    tfmot_asp.check_pruned_layers(model)
    assert not calls
    tfmot_asp.sparsity_report(model)
    assert calls


def test_single_layers_work_as_before_and_with_a_shape():
    layer = layers.Dense(8, name="d")
    layer.build((None, 16))
    report = tfmot_asp.sparsity_report(layer)
    assert (report.layers[0].shape, report.layers[0].gemms) == ((16, 8), None)
    assert "does not know the shapes of its inputs" in report.notes[0]
    assert tfmot_asp.sparsity_report(layer, input_shapes=(4, 16)).layers[0].gemms == (GemmSize(4, 8, 16),)


def test_a_model_that_cannot_be_traced_still_has_a_report():
    class Broken(layers.Layer):
        def call(self, inputs):
            if not isinstance(inputs, tf.Tensor) or tf.inside_function():
                raise RuntimeError("only runs eagerly")
            return inputs

    class Net(tf_keras.Model):
        def __init__(self):
            super().__init__(name="net")
            self.fc, self.broken = layers.Dense(8, name="fc"), Broken()

        def call(self, x):
            return self.broken(self.fc(x))

    net = Net()
    net(tf.zeros((2, 16)))
    report = tfmot_asp.sparsity_report(net)
    assert report.layers[0].violations > 0
    assert "GEMM sizes are not known" in report.notes[0]
    assert "only runs eagerly" in report.notes[0]


def test_shared_nested_and_repeated_layers():
    shared = layers.Dense(16, name="shared")
    inner = tf_keras.Sequential([layers.Input((5, 16)), layers.Dense(16, name="inside"), shared], name="inner")
    x = layers.Input((5, 16))
    y = layers.TimeDistributed(layers.Dense(8, name="each"))(shared(inner(inner(x))))
    y = layers.Lambda(lambda t: t[:, :2])(y)
    model = tf_keras.Model(x, layers.Dense(4, name="idle")(y))
    rows = rows_of(model, batch_size=3)
    assert rows["shared"].gemms == (GemmSize(15, 16, 16, calls=3),)
    assert rows["inside"].gemms == (GemmSize(15, 16, 16, calls=2),)
    assert rows["shared"].multiply_adds == 3 * 15 * 16 * 16
    (each,) = [row for name, row in rows.items() if "time_distributed" in name or name == "each"]
    assert each.gemms == (GemmSize(15, 8, 16),)
    different = layers.Dense(16, name="d")
    x = layers.Input((6, 16))
    model = tf_keras.Model(x, [different(x), different(layers.Lambda(lambda t: t[:, :2])(x))])
    row = rows_of(model)["d"]
    assert set(row.gemms) == {GemmSize(6, 16, 16), GemmSize(2, 16, 16)}
    assert row.multiply_adds == (6 + 2) * 256
    table = str(tfmot_asp.sparsity_report(model)).splitlines()
    assert sum("  16  16  1       1" in line for line in table) == 2


def test_tied_kernels_are_counted_once_and_the_report_says_where():
    class Net(tf_keras.Model):
        def __init__(self):
            super().__init__(name="net")
            self.one, self.other = layers.Dense(16, name="one"), layers.Dense(16, name="other")
            self.one.build((None, 16))
            self.other.build((None, 16))
            self.other.kernel = self.one.kernel

        def call(self, x):
            return self.other(tf.nn.relu(self.one(x)))

    net = Net()
    net(tf.zeros((2, 16)))
    report = tfmot_asp.sparsity_report(net)
    assert report.notes == ("other has the kernel of one, and its products are counted there",)
    assert report.layers[0].multiply_adds == 2 * 16 * 16


def test_a_kernel_that_the_model_does_not_use_is_named():
    class Net(tf_keras.Model):
        def __init__(self):
            super().__init__(name="net")
            self.used, self.spare = layers.Dense(16, name="used"), layers.Dense(16, name="spare")
            self.spare.build((None, 16))

        def call(self, x):
            return self.used(x)

    net = Net()
    net(tf.zeros((2, 16)))
    report = tfmot_asp.sparsity_report(net)
    assert [(row.name, row.gemms, row.multiply_adds) for row in report.layers if row.name == "spare"] == [
        ("spare", (), 0)
    ]
    assert report.notes == ("no product was found with the kernel of spare when the model is called",)
    assert "spare" in str(report)


def transformer(keras):
    L = keras.layers  # noqa: N806
    x = keras.Input((12,), dtype="int32")
    y = L.Embedding(50, 32, name="tokens")(x)
    y = L.LayerNormalization()(y + L.MultiHeadAttention(2, 16, name="attention")(y, y))
    y = L.Dense(64, activation="gelu", name="up")(y)
    y = L.LSTM(8, name="lstm")(L.Dense(32, name="down")(y))
    return keras.Model(x, L.Dense(10, name="head")(y))


@pytest.mark.parametrize("name", ["tf_keras", "keras"])
def test_attention_recurrence_and_all_that_is_no_kernel_is_in_the_total(name):
    keras = pytest.importorskip(name, minversion=None if name == "tf_keras" else "3")
    model = transformer(keras)
    policy = SparseTensorCoreRule(kinds=SUPPORTED_KINDS)
    report = tfmot_asp.sparsity_report(model, policy=policy, batch_size=2)
    by_shape = [(row.kind, row.gemms) for row in report.layers]
    assert by_shape == [
        *[("EinsumDense", (GemmSize(24, 32, 32),))] * 4,
        ("Dense", (GemmSize(24, 64, 32),)),
        ("Dense", (GemmSize(24, 32, 64),)),
        ("Dense", (GemmSize(2, 10, 8),)),
    ]
    activations = 2 * (2 * 2 * 12 * 12 * 16)  # two products, for each of 2 heads of 2 samples
    recurrent = 2 * 12 * 4 * 8 * (32 + 8)
    found = {}
    for other in report.others:
        found[other.reason] = found.get(other.reason, 0) + other.multiply_adds
    assert found == {
        "products of two activations": activations,
        "products with weights of other layer kinds": recurrent,
    }
    kernels = 4 * 24 * 32 * 32 + 2 * 24 * 32 * 64 + 2 * 8 * 10
    assert report.multiply_adds == kernels + activations + recurrent
    assert sum(row.share for row in report.layers) == pytest.approx(kernels / report.multiply_adds)
    assert report.notes == ()
    assert max(map(len, report.to_text(120).splitlines())) <= 120


def test_keras3_subclassed_and_mixed_precision_models():
    keras = pytest.importorskip("keras", minversion="3")

    class Net(keras.Model):
        def __init__(self):
            super().__init__(name="net")
            self.conv = keras.layers.Conv2D(32, 3, name="conv", dtype="mixed_float16")
            self.fc = keras.layers.Dense(16, name="fc")

        def call(self, x):
            return self.fc(keras.ops.reshape(self.conv(x), (-1, 36 * 32)))

    net = Net()
    net(np.zeros((2, 8, 8, 16), np.float32))
    rows = rows_of(net, batch_size=4)
    assert rows["conv"].gemms == (GemmSize(4 * 36, 32, 144),)
    assert rows["fc"].gemms == (GemmSize(4, 16, 36 * 32),)


def test_tied_and_composed_weights_are_no_layers():
    class Tied(tf_keras.Model):
        def __init__(self):
            super().__init__(name="tied")
            self.tokens = layers.Embedding(40, 16)
            self.first, self.second = layers.Dense(16, name="first"), layers.Dense(16, name="second")

        def call(self, x):
            y = self.second(self.first(self.tokens(x)))
            both = tf.concat([self.first.kernel, self.second.kernel], 1)
            return tf.matmul(y, self.tokens.embeddings, transpose_b=True), tf.matmul(y, both), tf.matmul(y, tf.eye(16))

    model = Tied()
    model(tf.zeros((1, 3), tf.int32))
    report = tfmot_asp.sparsity_report(model)
    assert {other.reason: other.multiply_adds for other in report.others} == {
        "products with weights of other layer kinds": 3 * 40 * 16,
        "products with a weight that is put together from several kernels": 3 * 32 * 16,
        "products with a constant that is no variable": 3 * 16 * 16,
    }
    assert [row.multiply_adds for row in report.layers] == [3 * 256] * 2


def test_wrapped_and_pruned_models():
    model = convnet()
    plain = rows_of(model)
    wrapped = tfmot_asp.prune_low_magnitude(convnet(), permute=False)
    assert [row.gemms for row in rows_of(wrapped).values()] == [row.gemms for row in plain.values()]
    report = tfmot_asp.sparsity_report(tfmot_asp.strip_pruning(wrapped))
    assert report.best_now.share == report.best_prunable.share == pytest.approx(1 - report.layers[0].share)
    assert report.best_now.speedup == pytest.approx(1 / (1 - report.best_now.share / 2))
    assert report.best_likely.share == 0.0
    pruned = tfmot_asp.prune_trained_model(model, permute=False)
    assert pruned.report.best_now.share == report.best_now.share


def test_the_bound_is_about_2_4_and_what_tensorrt_can_use():
    x = layers.Input((8, 8, 64))
    y = layers.Conv2D(64, 3, groups=2, name="grouped")(x)
    y = layers.Conv2D(32, 1, name="plain")(y)
    model = tf_keras.Model(x, layers.Conv2D(32, 1, name="other")(y))
    for layer in model.layers[1:3]:
        kernel = layer.kernel.numpy()
        kernel[:, :, 2::4], kernel[:, :, 3::4] = 0, 0
        layer.kernel.assign(kernel)
    report = tfmot_asp.sparsity_report(model, sparsity_m_by_n=(1, 2))  # one of every two: not what hardware runs
    rows = {row.name: row for row in report.layers}
    assert [rows[name].holds for name in ("grouped", "plain", "other")] == [False] * 3
    assert [rows[name].two_four for name in ("grouped", "plain", "other")] == [True, True, False]
    assert report.best_now.share == pytest.approx(rows["plain"].share)
    assert report.best_prunable.share == pytest.approx(rows["plain"].share + rows["other"].share)
    assert "2 groups" in rows["grouped"].tensorrt.reason
    assert "no, 2 groups" in str(report)


def test_the_dict_has_everything_and_is_json():
    model = transformer(tf_keras)
    report = tfmot_asp.sparsity_report(model, batch_size=2)
    again = json.loads(json.dumps(report.to_dict()))
    assert again == report.to_dict()
    assert again["input_shapes"] == [[2, 12]]
    assert again["multiply_adds"] == report.multiply_adds
    row = again["layers"][4]
    assert row["gemms"] == [{"m": 24, "n": 64, "k": 32, "groups": 1, "calls": 1}]
    assert row["misaligned_fp16"] == []
    assert row["tensorrt"]["usable"] is True
    assert row["tensorrt"]["source"].startswith("NVIDIA on channels")
    assert {other["reason"] for other in again["others"]} == {other.reason for other in report.others}
    assert again["best_case"]["prunable"]["speedup"] == report.best_prunable.speedup
    layer = layers.Dense(8)
    layer.build((None, 16))  # that knows no inputs
    assert json.loads(json.dumps(tfmot_asp.sparsity_report(layer).to_dict()))["best_case"]["now"] is None


def test_models_without_any_kernel_or_work():
    x = layers.Input((4,))
    report = tfmot_asp.sparsity_report(tf_keras.Model(x, layers.ReLU()(x), name="nothing"))
    assert (report.layers, report.multiply_adds, report.best_now) == ((), 0, None)
    assert "0 multiply-adds" in str(report)
    loop = layers.Lambda(lambda t: tf.while_loop(lambda y: tf.reduce_sum(y) < 9, lambda y: (tf.matmul(y, y),), (t,))[0])
    looped = tfmot_asp.sparsity_report(tf_keras.Model(x, loop(layers.Reshape((2, 2))(x))))
    assert "totals and shares are not exact" in looped.notes[0]
    assert "the number of its steps is not known" in looped.to_text(None)


def test_reasons_are_short_in_the_table_and_whole_in_the_rows():
    x = layers.Input((8, 8, 32))
    model = tf_keras.Model(x, layers.Conv2D(32, 1, groups=2, name="grouped")(x))
    report = tfmot_asp.sparsity_report(model)
    (line,) = [line for line in str(report).splitlines() if line.startswith("grouped  Conv2D")]
    assert "has 2 groups; grouped" in line
    assert "'grouped'" not in line
    assert report.layers[0].reason.startswith("Conv2D 'grouped' has 2 groups")


def test_long_names_and_many_notes_keep_the_table_in_its_width():
    x = y = layers.Input((4, 16))
    for i in range(10):
        y = layers.Dense(16, name=f"{'a_name_as_long_as_automatic_search_makes_them_' * 3}{i}")(y)
        y = layers.Lambda(lambda t: tf.ensure_shape(tf.py_function(lambda u: u, [t], tf.float32), t.shape))(y)
    report = tfmot_asp.sparsity_report(tf_keras.Model(x, y))
    lines = report.to_text(120).splitlines()
    assert max(map(len, lines)) <= max(120, *(len(row.name) for row in report.layers))
    assert len(report.notes) == 10
    assert lines[lines.index("") - 1] == "Note: and 2 more, see .notes"
    assert len({line.split()[0] for line in lines if line.startswith("a_name")}) == 10  # still told apart
