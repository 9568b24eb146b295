"""Folds a model's ops into what a person can take in: cells, lines, blocks.

A *cell* is an op, or a whole layer of ops that do one thing (a layer normalization, a GELU). A *line* is a kernel with
what follows it: convolution, bias, normalization, activation. A *block* is a run of lines without branches, drawn as
one table.

Pure functions on plain data: no model, no Graphviz.
"""

from __future__ import annotations

import dataclasses
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence

from tfmot_asp.graph.ops import PRODUCTS
from tfmot_asp.permutation.picture.drawn import ROLES, DrawnOp

_PLUMBING = ("Reshape", "Transpose", "Squeeze", "ExpandDims", "Pack", "Unpack", "Fill", "BroadcastTo")
_CELLS_PER_LINE = 5
_LINES_PER_BLOCK = 12
_SHORT_NAMES = {
    "FusedBatchNorm": "BatchNorm",
    "BiasAdd": "Bias",
    "DepthwiseConv2dNative": "DepthwiseConv",
    "ResourceGather": "Lookup",
    "GatherV2": "Gather",
    "SelectV2": "Select",
    "Conv2DBackpropInput": "Conv2DTranspose",
    "Conv3DBackpropInput": "Conv3DTranspose",
}


@dataclasses.dataclass
class Cell:
    """A coloured field.

    Attributes:
        text: short name of the op or layer.
        layer: path of the layer.
        scope: path of the composite layer around it, "" for the model itself.
        op: what it shows; for several ops, the one that matters most.
        ops: positions of its ops in the outline.
    """

    text: str
    layer: str
    scope: str
    op: DrawnOp
    ops: list[int]


@dataclasses.dataclass
class Block:
    """A run of lines without branches: one node of the picture.

    Attributes:
        lines: cells, line by line.
        scope: path of the composite layer that holds it.
        inputs: the blocks that it reads, each with whether the edge carries permuted channels.
        level: longest way from an input, in blocks.
        column: where it stands.
    """

    lines: list[list[Cell]]
    scope: str
    inputs: dict[int, bool]
    level: int = 0
    column: int = 0

    @property
    def is_end(self) -> bool:
        """Whether it is an input or output of the model."""
        return self.lines[0][0].op.type in ("Input", "Output")


def fold(ops: Sequence[DrawnOp]) -> list[Block]:
    """Folds ops into blocks, in an order in which each comes after those it reads."""
    composite = _composite_layers(ops)
    owner = _owners(ops, composite)
    members: dict[int, list[int]] = defaultdict(list)
    for i, o in enumerate(owner):
        members[o].append(i)
    order = _topological(members, owner, ops)
    if order is None:  # two layers that feed each other in turns: leave all ops apart
        owner = list(range(len(ops)))
        members = {i: [i] for i in owner}
        order = owner
    with_kernel = {op.layer for op in ops if _stands_alone(op)}
    cells = {
        o: _cell([ops[i] for i in members[o]], members[o], composite, ops[o].layer not in with_kernel) for o in order
    }
    reads = {o: _reads(o, members[o], owner, ops) for o in order}
    return _blocks(order, cells, reads)


def _composite_layers(ops: Sequence[DrawnOp]) -> set[str]:
    """The layers that hold other layers; the model itself is one."""
    composite = {""}
    for layer in {op.layer for op in ops}:
        parts = layer.split("/")
        composite.update("/".join(parts[:depth]) for depth in range(1, len(parts)))
    return composite


# Cells


def _owners(ops: Sequence[DrawnOp], composite: set[str]) -> list[int]:
    """For each op the number of the cell that it is drawn in."""
    owner = list(range(len(ops)))
    by_layer: dict[str, list[int]] = defaultdict(list)
    for i, op in enumerate(ops):
        if op.layer not in composite:
            by_layer[op.layer].append(i)
    consumers: dict[int, list[int]] = defaultdict(list)
    for i, op in enumerate(ops):
        for j in op.inputs:
            consumers[j].append(i)
    for indices in by_layer.values():
        fixed = [i for i in indices if _stands_alone(ops[i])]
        for i in fixed:
            _absorb(i, owner, ops, consumers)
        for candidates in _alike(indices, ops, owner) if fixed else [indices]:
            for part in _connected(candidates, ops):
                if len(part) > 1 and _convex(part, ops):
                    for i in part:
                        owner[i] = part[0]
    return owner


def _alike(indices: Sequence[int], ops: Sequence[DrawnOp], owner: Sequence[int]) -> list[list[int]]:
    """What may be drawn together in a layer with a kernel: the ops of an activation, but not a bias."""
    by_scope: dict[str, list[int]] = defaultdict(list)
    for i in indices:
        if (
            owner[i] == i
            and not _stands_alone(ops[i])
            and ops[i].role in ("passes", "still")
            and ops[i].type != "BiasAdd"
        ):
            by_scope[ops[i].name.rpartition("/")[0]].append(i)
    return list(by_scope.values())


def _stands_alone(op: DrawnOp) -> bool:
    return op.role in ("gemm", "pins") or _is_kernel_op(op)


def _is_kernel_op(op: DrawnOp) -> bool:
    return op.type in PRODUCTS


def _connected(indices: Sequence[int], ops: Sequence[DrawnOp]) -> list[list[int]]:
    """Parts of `indices` that hang together, each in order."""
    label = {i: i for i in indices}
    for i in indices:
        near = {label[j] for j in ops[i].inputs if j in label} | {label[i]}
        lowest = min(near)
        for k, old in label.items():
            if old in near:
                label[k] = lowest
    parts: dict[int, list[int]] = defaultdict(list)
    for i in indices:
        parts[label[i]].append(i)
    return list(parts.values())


def _convex(part: Sequence[int], ops: Sequence[DrawnOp]) -> bool:
    """Whether no way leads out of `part` and back into it."""
    inside, reached = set(part), set()
    for i in range(part[0] + 1, part[-1] + 1):
        sources = ops[i].inputs
        if i in inside:
            if any(j in reached for j in sources):
                return False
        elif any(j in inside or j in reached for j in sources):
            reached.add(i)
    return True


def _absorb(kernel: int, owner: list[int], ops: Sequence[DrawnOp], consumers: dict[int, list[int]]) -> None:
    """Draws the reshapes and transposes around a kernel, which its layer made for it, with the kernel."""

    def mere(i: int) -> bool:
        op = ops[i]
        return op.type in _PLUMBING and op.layer == ops[kernel].layer and op.role in ("passes", "still")

    i = kernel
    while len(ops[i].inputs) == 1 and mere(ops[i].inputs[0]) and len(consumers[ops[i].inputs[0]]) == 1:
        i = ops[i].inputs[0]
        owner[i] = kernel
    i = kernel
    while len(consumers[i]) == 1 and mere(consumers[i][0]) and len(ops[consumers[i][0]].inputs) == 1:
        i = consumers[i][0]
        owner[i] = kernel


def _topological(members: dict[int, list[int]], owner: Sequence[int], ops: Sequence[DrawnOp]) -> list[int] | None:
    """The cells in an order in which each comes after those it reads; None if there is none."""
    sources = {o: {owner[j] for i in indices for j in ops[i].inputs} - {o} for o, indices in members.items()}
    order: list[int] = []
    done: set[int] = set()
    waiting = sorted(members, key=lambda o: members[o][-1])
    while waiting:
        ready = [o for o in waiting if sources[o] <= done]
        late = []
        for o in waiting:
            if sources[o] <= done:
                order.append(o)
                done.add(o)
            else:
                late.append(o)
        if not ready and len(late) == len(waiting):
            return None
        waiting = late
    return order


def _reads(cell: int, indices: Sequence[int], owner: Sequence[int], ops: Sequence[DrawnOp]) -> dict[int, bool]:
    """The cells that a cell reads, each with whether permuted channels come from there."""
    reads: dict[int, bool] = {}
    for i in indices:
        for j in ops[i].inputs:
            if owner[j] != cell:
                reads[owner[j]] = reads.get(owner[j], False) or bool(ops[j].gives)
    return reads


def _cell(ops: Sequence[DrawnOp], indices: list[int], composite: set[str], whole: bool) -> Cell:
    chief = min(ops, key=lambda op: ROLES.index(op.role))  # the first of the most telling role
    kernel = next((op for op in ops if _stands_alone(op)), None)
    layer = ops[0].layer
    if kernel is not None or len(ops) == 1:
        chief = kernel or chief
        text = short_name(chief.type)
    else:
        chief = dataclasses.replace(chief, takes=ops[0].takes, gives=ops[-1].gives)
        inner = {op.name.rpartition("/")[0] for op in ops}
        if inner != {""} and len(inner) == 1:
            text = min(inner).rpartition("/")[2]  # a function within the layer: Gelu
        elif whole:
            text = layer.rpartition("/")[2]
        else:
            text = " · ".join(dict.fromkeys(short_name(op.type) for op in ops[:3]))
    scope = layer if layer in composite else layer.rpartition("/")[0]
    return Cell(text, layer, scope, chief, indices)


def short_name(op_type: str) -> str:
    """The name of an op type without its version: FusedBatchNormV3 -> BatchNorm."""
    bare = re.sub(r"V\d+$", "", op_type)
    return _SHORT_NAMES.get(op_type) or _SHORT_NAMES.get(bare) or bare


# Lines and blocks


def _blocks(order: Sequence[int], cells: dict[int, Cell], reads: dict[int, dict[int, bool]]) -> list[Block]:
    consumers: dict[int, int] = defaultdict(int)
    for sources in reads.values():
        for source in sources:
            consumers[source] += 1
    blocks: list[Block] = []
    block_of: dict[int, int] = {}
    for o in order:
        cell = cells[o]
        inputs = {block_of[s]: carries for s, carries in reads[o].items()}
        if len(reads[o]) == 1:
            (source,) = reads[o]
            b = block_of[source]
            block = blocks[b]
            if consumers[source] == 1 and block.scope == cell.scope and not block.is_end and cell.op.type != "Output":
                starts_line = _is_kernel_op(cell.op) or cell.op.role in ("gemm", "pins")
                if not starts_line and len(block.lines[-1]) < _CELLS_PER_LINE:
                    block.lines[-1].append(cell)
                    block_of[o] = b
                    continue
                if len(block.lines) < _LINES_PER_BLOCK:
                    block.lines.append([cell])
                    block_of[o] = b
                    continue
        block_of[o] = len(blocks)
        level = 1 + max((blocks[b].level for b in inputs), default=-1)
        blocks.append(Block([[cell]], cell.scope, inputs, level))
    return blocks


def scopes_of(path: str) -> Iterable[str]:
    """A path and all above it, outermost first: "a/b" gives "a", "a/b"."""
    parts = path.split("/") if path else []
    return ["/".join(parts[:depth]) for depth in range(1, len(parts) + 1)]
