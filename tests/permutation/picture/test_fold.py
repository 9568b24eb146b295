"""That folding and setting in columns lose nothing, and draw together what belongs together."""

from __future__ import annotations

from hypothesis import given, settings

from tests.permutation.harness import EveryKernel
from tests.permutation.picture.drawn import (
    attention,
    described,
    graphs,
    lrn,
)
from tfmot_asp.permutation.picture.columns import set_columns
from tfmot_asp.permutation.picture.drawn import DrawnOp
from tfmot_asp.permutation.picture.fold import fold, short_name


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
