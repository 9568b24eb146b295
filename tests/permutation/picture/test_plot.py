"""The picture as Graphviz gets it, as a report keeps it, and what happens where it cannot be drawn."""

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
import tf_keras
from hypothesis import given, settings

import tfmot_asp
from tests.permutation.harness import EveryKernel
from tests.permutation.picture.drawn import (
    MODELS,
    attention,
    described,
    graphs,
    lrn,
)
from tests.small_models import convnet
from tfmot_asp.permutation import PermutationReport, plan_model
from tfmot_asp.permutation.picture.drawn import DrawnOp, Outline
from tfmot_asp.permutation.picture.fold import fold
from tfmot_asp.permutation.picture.legend import COLOURS, PERMUTED, legend
from tfmot_asp.permutation.picture.outline import outline
from tfmot_asp.permutation.picture.plot import check_plot_path, plot, to_dot
from tfmot_asp.permutation.report import finish

needs_graphviz = pytest.mark.skipif(shutil.which("dot") is None, reason="Graphviz is not installed")


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


def test_the_legend_of_a_plan_says_nothing_was_done():
    plan, done = described(lrn())
    planned = outline(plan, lrn(), planned=True)
    assert "its input channels are permuted" in legend(done)
    assert "input channels stay" in legend(done)
    assert "S: pruned" in legend(done)
    assert "would be permuted" not in legend(done)
    assert not re.search(r"(are|no) permuted|>pruned|input channels stay|S: pruned|>reorders", legend(planned))
    assert "its input channels would be permuted" in legend(planned)
    assert Outline.from_dict(planned.to_dict()) == planned
    assert "planned" not in done.to_dict()


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
