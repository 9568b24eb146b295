"""The picture: what it says of real models, that folding loses nothing, and what happens where it cannot be drawn."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from hypothesis import given, settings
from hypothesis import strategies as st
from tf_keras import layers

import tfmot_asp
from tests.permutation.harness import EveryKernel
from tests.small_models import convnet
from tfmot_asp.permutation import PermutationReport, plan_model
from tfmot_asp.permutation.picture.columns import set_columns
from tfmot_asp.permutation.picture.data import DrawnOp, Outline
from tfmot_asp.permutation.picture.fold import fold, short_name
from tfmot_asp.permutation.picture.legend import COLOURS, PERMUTED
from tfmot_asp.permutation.picture.outline import outline, ranges
from tfmot_asp.permutation.picture.plot import check_plot_path, plot, to_dot
from tfmot_asp.permutation.report import finish

needs_graphviz = pytest.mark.skipif(shutil.which("dot") is None, reason="Graphviz is not installed")


# Models


def lrn():
    x = layers.Input((8, 8, 3), name="image")
    y = layers.Conv2D(16, 3, name="conv1")(x)
    y = layers.Lambda(tf.nn.local_response_normalization, name="lrn")(y)
    y = layers.Conv2D(32, 3, activation="relu", name="conv2")(y)
    y = layers.Flatten(name="flatten")(y)
    return tf_keras.Model(x, layers.Dense(8, name="head")(y), name="with_lrn")


def mobile():
    x = layers.Input((8, 8, 3))
    y = layers.Conv2D(32, 1, name="expand")(x)
    y = layers.BatchNormalization(name="bn", fused=False)(y)
    y = layers.DepthwiseConv2D(3, name="depthwise")(y)
    y = layers.Conv2D(32, 3, groups=32, name="grouped")(y)
    y = layers.Conv2D(16, 1, name="project")(y)
    return tf_keras.Model(x, y, name="mobile")


def attention():
    x = layers.Input((6,), dtype="int32", name="tokens")
    y = layers.Embedding(20, 32, name="embedding")(x)
    z = layers.MultiHeadAttention(2, 16, name="attention")(y, y)
    y = layers.LayerNormalization(name="norm")(layers.Add(name="residual")([y, z]))
    z = layers.Dense(64, activation="gelu", name="up")(y)
    y = layers.Add()([y, layers.Dense(32, name="down")(z)])
    return tf_keras.Model(x, layers.Dense(8, name="head")(y[:, 0]), name="encoder")


def concat():
    x = layers.Input((8, 8, 32), name="given")
    y = layers.Conv2D(32, 3, padding="same", name="inner")(x)
    y = layers.Concatenate(name="join")([x, y])
    return tf_keras.Model(x, layers.Conv2D(16, 1, name="outer")(y), name="half")


def features():
    x = layers.Input((8, 8, 3))
    y = layers.Conv2D(16, 3, name="returned")(x)
    z = layers.Conv2D(16, 3, name="inner")(y)
    return tf_keras.Model(x, [y, layers.Conv2D(16, 3, name="last")(z)])


MODELS = {f.__name__: f for f in (convnet, lrn, mobile, attention, concat, features)}


def described(model, policy=None):
    plan = plan_model(model, policy=policy)
    return plan, outline(plan, model)


def of(drawn, layer, op_type=None):
    """The one op of a layer, by type if it has several."""
    found = [op for op in drawn.ops if op.layer.rpartition("/")[2] == layer and op_type in (None, op.type)]
    assert len(found) == 1, found
    return found[0]


def numbers(groups):
    """The set that `ranges` wrote."""
    spans = [span.partition("-") for span in groups.split(",")] if groups else []
    return {n for first, _, last in spans for n in range(int(first), int(last or first) + 1)}


# What the outline says


@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)
def test_kernels_show_the_groups_that_the_plan_gives_them(build):
    plan, drawn = described(build(), EveryKernel())
    for index, kernel in enumerate(plan.plan.kernels):
        sums, makes = set(), set()
        for number, group in enumerate(plan.plan.groups):
            for place in group.places:
                if place.variable == kernel.variable:
                    (sums if place.axis in kernel.reduction_axes else makes).add(number)
        op = next(op for op in drawn.ops if op.sparse and op.layer.rpartition("/")[2] == kernel.name)
        assert numbers(op.takes) == sums
        assert op.axes == ",".join(["K"] * bool(makes) + ["C"] * bool(sums))
        assert makes <= numbers(op.gives)
        assert bool(op.note) == (plan.plan.reasons[index] is not None)
    assert sum(op.sparse for op in drawn.ops) == len(plan.plan.kernels)


@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)
def test_channels_that_pass_through_come_from_somewhere(build):
    _, drawn = described(build(), EveryKernel())
    assert any(op.gives for op in drawn.ops)
    for op in drawn.ops:
        arriving = set().union(*(numbers(drawn.ops[i].gives) for i in op.inputs))
        if op.type != "Input":
            assert numbers(op.takes) <= arriving
        if op.role == "passes":
            assert numbers(op.gives) <= arriving
        if op.role == "still":
            assert (op.takes, op.gives, op.note) == ("", "", "")


@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)
def test_constants_reads_and_copies_are_folded_away(build):
    _, drawn = described(build(), EveryKernel())
    types = {op.type for op in drawn.ops}
    assert not types & {"Const", "ReadVariableOp", "Identity", "NoOp", "AssignVariableOp", "Placeholder"}
    assert types >= {"Input", "Output"}


def test_what_pins_is_red_and_says_why():
    _, drawn = described(lrn())
    pin = next(op for op in drawn.ops if op.type == "LRN")
    assert pin.role == "pins"
    assert "neighbouring channels" in pin.note
    assert [op.type for op in drawn.ops if op.role == "pins"] == ["LRN"]
    blocked = of(drawn, "conv2", "Conv2D")
    assert (blocked.role, blocked.axes, blocked.sparse) == ("gemm", "K", True)
    assert "LRN" in blocked.note
    assert of(drawn, "head", "MatMul").axes == "C"
    assert of(drawn, "flatten").role == "passes"
    assert of(drawn, "conv1", "Conv2D").axes == ""


class Odd(tf_keras.Model):
    """What pins is no op that is drawn: a running sum of a kernel, and a constant that is added."""

    def __init__(self):
        super().__init__(name="odd")
        self.first = layers.Dense(16, name="first")
        self.turned = layers.Dense(16, name="turned")
        self.last = layers.Dense(16, name="last")

    def call(self, x):
        x = self.turned(self.first(x)) * 0.0 + tf.matmul(self.first(x), tf.cumsum(self.turned.kernel))
        return self.last(tf.nn.relu(x) + tf.range(16.0))


def test_what_pins_unseen_is_shown_by_the_op_that_uses_it():
    model = Odd()
    model(np.zeros((2, 16), np.float32))
    _, drawn = described(model)
    assert {op.type for op in drawn.ops if op.role == "pins"} == {"Input", "MatMul", "AddV2"}
    assert all(op.note for op in drawn.ops if op.role == "pins")


def test_inputs_and_outputs_pin():
    _, drawn = described(concat(), EveryKernel())
    given_ = next(op for op in drawn.ops if op.type == "Input")
    assert (given_.role, given_.name) == ("pins", "given")
    assert "input" in given_.note
    outer = of(drawn, "outer", "Conv2D")
    assert outer.axes == "C"
    assert outer.note.startswith("32 of 64 (")
    _, drawn = described(features())
    assert [op.role for op in drawn.ops if op.type == "Output"] == ["pins", "still"]
    assert "output" in of(drawn, "inner", "Conv2D").note


def test_an_op_without_a_rule_pins():
    x = layers.Input((16,))
    y = layers.Dense(16, name="first")(x)
    y = layers.Lambda(lambda t: tf.linalg.expm(tf.reshape(t, (-1, 4, 4))), name="odd")(y)
    y = layers.Dense(16, name="second")(layers.Flatten()(y))
    _, drawn = described(tf_keras.Model(x, y))
    assert any(op.role == "pins" and op.layer.startswith("odd") for op in drawn.ops)


def test_depthwise_convolutions_apply_and_unfused_batch_norm_too():
    _, drawn = described(mobile())
    assert of(drawn, "depthwise", "DepthwiseConv2dNative").role == "applies"
    grouped = next(op for op in drawn.ops if op.layer == "grouped" and "Conv2D" in op.type)
    assert (grouped.role, grouped.axes) == ("applies", "")
    # The variance and its root belong to the weights: only what the channels go through is drawn.
    assert {op.type for op in drawn.ops if op.layer == "bn"} <= {"Mul", "AddV2"}
    assert {op.role for op in drawn.ops if op.layer == "bn"} == {"applies"}


def test_attention_projections_stand_in_their_layer():
    _, drawn = described(attention(), EveryKernel())
    assert not [op for op in drawn.ops if op.role == "pins"]
    assert of(drawn, "attention_output", "Einsum").layer == "attention/attention_output"
    assert of(drawn, "attention_output", "Einsum").axes == "K,C"
    assert of(drawn, "query", "Einsum").axes == "C"


def test_training_ops_are_not_drawn():
    x = layers.Input((16,), name="given")
    y = layers.Dense(32, name="first")(x)
    y = layers.BatchNormalization(renorm=True, name="bn")(y)
    plan, drawn = described(tf_keras.Model(x, layers.Dense(8, name="second")(y)))
    assert any(op.training for op in plan.graph.ops)
    assert [op.type for op in drawn.ops].count("Input") == 1
    assert [op.type for op in drawn.ops].count("Output") == 1
    assert len([op for op in drawn.ops if op.type == "MatMul"]) == 2


def test_keras_3_scopes_are_not_mistaken_for_other_layers():
    import keras

    # Keras 3 numbers scopes: that of `dense` is called `dense_1`, which is another layer's name.
    inputs = keras.Input((16,))
    x = keras.layers.Dense(32, name="dense")(inputs)
    x = keras.layers.ReLU(name="act_1")(x)
    x = keras.layers.Dense(64, name="dense_1")(x)
    x = keras.layers.ReLU(name="act")(x)
    _, drawn = described(keras.Model(inputs, keras.layers.Dense(8, name="head")(x), name="m"))
    assert [op.layer for op in drawn.ops if op.type == "MatMul"] == ["dense", "dense_1", "head"]
    assert [op.layer for op in drawn.ops if op.type == "Relu"] == ["act_1", "act"]


def test_heads_that_stay_block_nothing():
    import keras

    # Keras 3 multiplies after a reshape, which keeps the heads in place; the channels within each head move.
    x = keras.Input((6, 32), name="given")
    y = keras.layers.Dense(32, name="inner")(x)
    y = keras.layers.MultiHeadAttention(2, 16, name="attention")(y, y)
    plan, drawn = described(keras.Model(x, keras.layers.Dense(8)(y)), EveryKernel())
    (merged,) = [i for i, k in enumerate(plan.plan.kernels) if k.name == "attention_output"]
    assert plan.plan.reasons[merged] is None
    classes = plan.axes.classes()
    heads = classes.of[plan.axes.variable_axes[plan.plan.kernels[merged].variable, 0]]
    assert classes.pinned[heads].all()  # or the test would show nothing
    assert [op.type for op in drawn.ops if op.role == "pins"] == ["Input"]


def test_nested_models_and_repeated_calls_are_placed_by_path():
    block = tf_keras.Sequential([layers.Input((16,)), layers.Dense(16, name="inner")], name="block")
    x = layers.Input((16,))
    _, drawn = described(tf_keras.Model(x, layers.Dense(8, name="head")(block(block(x)))))
    assert [op.layer for op in drawn.ops if op.type == "MatMul"] == ["block/inner", "block/inner", "head"]


def test_title_counts():
    _, drawn = described(lrn())
    assert drawn.title == "with_lrn: 1 of 2 prunable kernels permuted, in 1 group"


@given(st.sets(st.integers(0, 40)))
def test_ranges_hold_the_set(found):
    written = ranges(found)
    assert numbers(written) == found
    assert not re.search(r"\b(\d+)-\1\b", written)


# Folding loses nothing


@st.composite
def graphs(draw):
    """Random ops in layers of layers, with branches, joins and every role."""
    count = draw(st.integers(1, 40))
    ops = []
    for i in range(count):
        sources = draw(st.sets(st.integers(max(0, i - 6), i - 1), max_size=3)) if i else set()
        kind = draw(st.sampled_from(["Conv2D", "BiasAdd", "Relu", "Reshape", "AddV2", "MatMul", "Mul"]))
        role = draw(st.sampled_from(["gemm", "applies", "passes", "pins", "still"]))
        layer = draw(st.sampled_from(["", "a", "b", "c", "d/e", "d/f", "d"]))
        name = draw(st.sampled_from(["", "inner/"])) + f"op{i}"
        groups = draw(st.sampled_from(["", "1", "0-4,7"])) if role != "still" else ""
        ops.append(
            DrawnOp(layer, name, kind, role, tuple(sorted(sources)), groups, groups, note="n" * (role == "pins"))
        )
    return ops


@given(graphs())
@settings(max_examples=300)
def test_folding_keeps_every_op_and_every_edge(ops):
    blocks = fold(ops)
    where = {}
    for b, block in enumerate(blocks):
        for position, cell in enumerate(c for line in block.lines for c in line):
            for i in cell.ops:
                assert i not in where, "drawn twice"
                where[i] = b, position, cell
    assert set(where) == set(range(len(ops)))
    for v, op in enumerate(ops):
        b, position, cell = where[v]
        for u in op.inputs:
            source, last, from_cell = where[u]
            if source == b:
                assert from_cell is cell or last == position - 1, "an edge within a block goes to the next cell"
            else:
                assert source in blocks[b].inputs
                assert position == 0, "edges enter a block at its first cell"
                assert last == len([c for line in blocks[source].lines for c in line]) - 1, "and leave at its last"
    for b, block in enumerate(blocks):
        assert all(source < b for source in block.inputs)
        assert all(blocks[source].level < block.level for source in block.inputs)
        edges = {where[u][0] for v in range(len(ops)) if where[v][0] == b for u in ops[v].inputs} - {b}
        assert edges == set(block.inputs), "no edge that the model has not"


@given(graphs())
@settings(max_examples=100)
def test_red_and_green_ops_are_cells_of_their_own_colour(ops):
    cells = {i: c for b in fold(ops) for line in b.lines for c in line for i in c.ops}
    for i, op in enumerate(ops):
        if op.role in ("pins", "gemm"):
            assert cells[i].op == op


@given(graphs())
@settings(max_examples=100)
def test_columns_go_down_the_model(ops):
    blocks = fold(ops)
    count = set_columns(blocks, [1.0] * len(blocks), [1.0] * len(blocks))
    assert {b.column for b in blocks} <= set(range(count))
    for block in blocks:
        assert all(blocks[source].column <= block.column for source in block.inputs)


def test_columns_break_at_the_trunk():
    ops = [DrawnOp("", "x", "Input", "still")]
    for stage in range(12):
        trunk = len(ops) - 1
        ops.append(DrawnOp(f"c{stage}", "a", "Conv2D", "gemm", (trunk,), "0", "0"))
        ops.append(DrawnOp(f"d{stage}", "b", "Conv2D", "gemm", (trunk,), "0", "0"))
        ops.append(DrawnOp(f"e{stage}", "c", "AddV2", "passes", (trunk + 1, trunk + 2), "0", "0"))
    blocks = fold(ops)
    assert set_columns(blocks, [1.0] * len(blocks), [1.0] * len(blocks)) > 1
    crossing = {s for b in blocks for s in b.inputs if blocks[s].column != b.column}
    assert crossing
    assert all(blocks[s].lines[-1][-1].op.type == "AddV2" for s in crossing)


def test_a_shallow_model_is_one_column():
    blocks = fold(described(lrn())[1].ops)
    assert set_columns(blocks, [1.0] * len(blocks), [4.0] * len(blocks)) == 1


def test_a_layer_is_one_cell_and_a_kernel_takes_its_reshapes_along():
    _, drawn = described(attention(), EveryKernel())
    blocks = fold(drawn.ops)
    texts = [c.text for b in blocks for line in b.lines for c in line]
    assert texts.count("norm") == 1
    assert "Gelu" in texts
    assert "Reshape" not in texts
    (mlp,) = [b for b in blocks if any(line[0].layer == "up" for line in b.lines)]
    assert [[c.text for c in line] for line in mlp.lines[-2:]] == [["MatMul", "Bias", "Gelu"], ["MatMul", "Bias"]]


def chain(*layers_and_inputs):
    return [DrawnOp(layer, f"op{i}", "Mul", "passes", inputs) for i, (layer, inputs) in enumerate(layers_and_inputs)]


def members(ops):
    return {tuple(sorted(c.ops)) for b in fold(ops) for line in b.lines for c in line}


def test_a_layer_that_is_left_and_entered_again_is_not_one_cell():
    ops = chain(("a", ()), ("b", (0,)), ("a", (0, 1)), ("c", (2,)), ("c", (3,)))
    assert members(ops) == {(0,), (1,), (2,), (3, 4)}


def test_layers_that_feed_each_other_in_turns_are_not_cells():
    ops = chain(("a", ()), ("b", ()), ("a", (0, 1)), ("b", (0, 1)))
    assert members(ops) == {(0,), (1,), (2,), (3,)}


def test_short_names():
    assert short_name("FusedBatchNormV3") == "BatchNorm"
    assert short_name("ConcatV2") == "Concat"
    assert short_name("DepthwiseConv2dNative") == "DepthwiseConv"
    assert short_name("Relu6") == "Relu6"


# Graphviz


@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)
def test_dot_has_a_node_for_each_block_and_every_layer_with_a_kernel(build, tmp_path):
    _, drawn = described(build(), EveryKernel())
    plot(drawn, tmp_path / "model.dot")
    text = (tmp_path / "model.dot").read_text(encoding="utf-8")
    blocks = fold(drawn.ops)
    assert set(re.findall(r"^\s*(b\d+) \[", text, re.M)) == {f"b{i}" for i in range(len(blocks))}
    edges = set(re.findall(r"^\s*(\w+) -> (\w+)", text, re.M))
    found = {(a, b) for a, b in edges if a[0] == b[0] == "b"}
    for into, target in edges:  # from column to column: b3 -> out3, marked as in3_1 -> b4
        if into.startswith("in"):
            source = into[2:].partition("_")[0]
            assert (f"b{source}", f"out{source}") in edges
            found.add((f"b{source}", target))
    assert found == {(f"b{s}", f"b{i}") for i, b in enumerate(blocks) for s in b.inputs}
    for op in drawn.ops:
        if op.sparse:
            assert op.layer.rpartition("/")[2] in text
    assert COLOURS["pins"][0] in text
    assert "prunable kernel" in text


def test_only_marks_lead_from_column_to_column():
    ops = [DrawnOp("", "x", "Input", "still")]
    for i in range(40):
        ops.append(DrawnOp(f"c{i}", "a", "Conv2D", "gemm", (len(ops) - 1,), "0", "0"))
        ops.append(DrawnOp(f"e{i}", "c", "AddV2", "passes", tuple({len(ops) - 1, len(ops) - 2}), "0", "0"))
    graph = to_dot(Outline("deep", tuple(ops)))
    column = {n.get_name(): s.get_name() for s in graph.get_subgraphs() for n in s.get_nodes()}
    assert len(set(column.values())) > 1
    for edge in graph.get_edges():
        assert column[edge.get_source()] == column[edge.get_destination()]
    labels = {n.get_name(): n.get("label") for s in graph.get_subgraphs() for n in s.get_nodes()}
    into = {name: label for name, label in labels.items() if name.startswith("in")}
    assert into
    for name, label in into.items():
        assert labels["out" + name[2:].partition("_")[0]] == label


def field(drawn, text):
    """The colour and content of the field that holds `text`."""
    (found,) = {
        (colour, content)
        for colour, content in re.findall(
            r'<TD BGCOLOR="(#\w+)" ALIGN="LEFT"[^>]*><FONT[^>]*>([^<]*)<', to_dot(drawn).to_string()
        )
        if text in content
    }
    return found


def test_fields_show_groups_axes_and_pruning():
    _, drawn = described(lrn())
    assert field(drawn, "LRN") == (COLOURS["pins"][0], "LRN")
    assert field(drawn, "[K] S") == (COLOURS["gemm"][0], "Conv2D → 0 [K] S")
    assert field(drawn, "[C] S") == (PERMUTED[0], "MatMul 0 → [C] S")
    _, drawn = described(attention(), EveryKernel())
    assert field(drawn, "Gelu")[0] == COLOURS["passes"][0]
    assert field(drawn, "norm")[0] == COLOURS["applies"][0]


NASTY = '<b>&"quoted"\\n \\ {x|y} é 名'


def nasty():
    ops = (
        DrawnOp("", NASTY, "Input", "pins", note=NASTY),
        DrawnOp(f"{NASTY}/{NASTY}", NASTY, NASTY, "gemm", (0,), "0", "1", "K,C", True, NASTY),
        DrawnOp(f"{NASTY}/other", "x", "Relu", "passes", (1,), "1", "1"),
        DrawnOp(f"{NASTY}/third", "x", "Relu", "pins", (1,), "1", "1", note=NASTY),
        DrawnOp("", "", "Output", "still", (2,)),
    )
    return Outline(NASTY, ops)


@needs_graphviz
@pytest.mark.parametrize("drawn", [nasty(), Outline("nothing", ())], ids=["nasty names", "empty"])
def test_any_name_can_be_drawn(drawn, tmp_path):
    plot(drawn, tmp_path / "x.svg")
    text = "".join(ElementTree.parse(tmp_path / "x.svg").getroot().itertext())
    assert re.sub(r"\s+", " ", drawn.title) in re.sub(r"\s+", " ", text)


@needs_graphviz
@given(graphs())
@settings(max_examples=15)
def test_any_graph_can_be_drawn(tmp_path_factory, ops):
    path = tmp_path_factory.mktemp("any") / "x.svg"
    plot(Outline("any", tuple(ops)), path)
    drawn = {e.text for e in ElementTree.parse(path).getroot().iter("{http://www.w3.org/2000/svg}title")}
    assert {f"b{i}" for i in range(len(fold(ops)))} <= drawn


@needs_graphviz
@pytest.mark.parametrize(
    ("suffix", "magic"), [(".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF"), (".PNG", b"\x89PNG")]
)
def test_formats(suffix, magic, tmp_path):
    _, drawn = described(lrn())
    plot(drawn, tmp_path / f"model{suffix}")
    assert (tmp_path / f"model{suffix}").read_bytes().startswith(magic)
    assert os.listdir(tmp_path) == [f"model{suffix}"]


@needs_graphviz
@pytest.mark.slow
@pytest.mark.parametrize("name", ["DenseNet201", "NASNetMobile", "EfficientNetB0"])
def test_large_models_are_drawn_whole(name, tmp_path):
    model = getattr(tf_keras.applications, name)(weights=None)
    plan = plan_model(model)
    drawn = outline(plan, model)
    plot(drawn, tmp_path / "model.svg")
    nodes = {
        e.text for e in ElementTree.parse(tmp_path / "model.svg").getroot().iter("{http://www.w3.org/2000/svg}title")
    }
    assert {f"b{i}" for i in range(len(fold(drawn.ops)))} <= nodes


# The report


def report_of(model):
    plan = plan_model(model, policy=EveryKernel())
    return finish(plan, model, [np.arange(g.size)[::-1] for g in plan.plan.groups])


def test_a_stored_report_draws_the_same_picture(tmp_path):
    report = report_of(attention())
    report.save(tmp_path / "report.json")
    report.plot(tmp_path / "a.dot")
    loaded = PermutationReport.load(tmp_path / "report.json")
    assert loaded.outline == report.outline
    loaded.plot(tmp_path / "b.dot")
    assert (tmp_path / "a.dot").read_bytes() == (tmp_path / "b.dot").read_bytes()


def test_drawing_a_stored_report_needs_no_tensorflow(tmp_path):
    report_of(lrn()).save(tmp_path / "report.json")
    code = (
        "import sys; from tfmot_asp.permutation.report import PermutationReport\n"
        f"PermutationReport.load({str(tmp_path / 'report.json')!r}).plot({str(tmp_path / 'x.dot')!r})\n"
        "assert 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert (tmp_path / "x.dot").exists()


def test_the_outline_is_a_small_part_of_a_report():
    report = report_of(attention())
    ops = report.outline.ops
    assert len(json.dumps(report.outline.to_dict())) < 250 * len(ops)
    assert Outline.from_dict(report.outline.to_dict()) == report.outline


def test_a_report_without_outline_says_so(tmp_path):
    report = report_of(lrn())
    data = report.to_dict()
    del data["outline"]
    (tmp_path / "old.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match="carries no outline"):
        PermutationReport.load(tmp_path / "old.json").plot(tmp_path / "x.dot")


@pytest.mark.parametrize(
    "ops", [[{"type": "Relu", "role": "passes", "inputs": [0]}], [{"type": "Relu", "role": "blue"}], [{"colour": 1}]]
)
def test_a_damaged_outline_is_refused(ops, tmp_path):
    data = report_of(lrn()).to_dict()
    data["outline"]["ops"] = ops
    (tmp_path / "bad.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match="is not a report"):
        PermutationReport.load(tmp_path / "bad.json")


def test_permute_draws(tmp_path):
    model = convnet()
    report = tfmot_asp.permute(model, effort="fast", plot_to_file=tmp_path / "a.dot")
    report.plot(tmp_path / "b.dot")
    assert (tmp_path / "a.dot").read_bytes() == (tmp_path / "b.dot").read_bytes()


# Where it cannot be drawn


def test_permute_looks_at_the_path_before_anything_else(tmp_path):
    no_model = object()  # would be refused next
    with pytest.raises(ValueError, match=r"suffix '.jpg' is none of .png, .svg, .pdf .* or .dot, .gv"):
        tfmot_asp.permute(no_model, plot_to_file=tmp_path / "x.jpg")
    with pytest.raises(ValueError, match="suffix '' is none of"):
        tfmot_asp.permute(no_model, plot_to_file="picture")
    with pytest.raises(FileNotFoundError, match="missing' does not exist, create it first"):
        tfmot_asp.permute(no_model, plot_to_file=tmp_path / "missing" / "x.dot")
    (tmp_path / "folder.dot").mkdir()
    with pytest.raises(IsADirectoryError, match="give the name of a file in it"):
        tfmot_asp.permute(no_model, plot_to_file=tmp_path / "folder.dot")


def test_without_graphviz_only_dot_is_written(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    for suffix in ("png", "svg", "pdf"):
        with pytest.raises(RuntimeError, match=r"needs Graphviz.*apt-get install graphviz.*or write a .dot file"):
            check_plot_path(tmp_path / f"x.{suffix}")
    plot(described(lrn())[1], tmp_path / "x.dot")
    assert (tmp_path / "x.dot").read_text(encoding="utf-8").startswith("digraph")


def test_without_pydot_the_error_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "pydot", None)
    with pytest.raises(ImportError, match="pip install pydot"):
        tfmot_asp.permute(object(), plot_to_file=tmp_path / "x.dot")


@pytest.mark.skipif(os.name != "posix", reason="a shell script stands in for dot")
def test_if_dot_fails_the_model_is_as_it_was(monkeypatch, tmp_path):
    fake = tmp_path / "bin" / "dot"
    fake.parent.mkdir()
    fake.write_text("#!/bin/sh\necho 'Error: out of ink' >&2\nexit 3\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(fake.parent), prepend=os.pathsep)
    model = convnet()
    before = [w.copy() for w in model.get_weights()]
    with pytest.raises(RuntimeError, match="dot ended with 3: Error: out of ink"):
        tfmot_asp.permute(model, effort="fast", plot_to_file=tmp_path / "x.png")
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    assert not (tmp_path / "x.png").exists()
