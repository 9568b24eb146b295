"""A model's ops as plain data, as a report carries them: no model and no TensorFlow object among them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

ROLES = ("pins", "gemm", "applies", "passes", "still")
"""What an op can be to a permutation, the most telling first. See :class:`DrawnOp`."""


@dataclasses.dataclass(frozen=True)
class DrawnOp:
    """One op of the picture.

    Attributes:
        layer: path of the layer that holds it, below the model; empty for ops that stand in the model itself.
        name: of the op within that layer.
        type: TensorFlow op type; "Input" and "Output" for what enters and leaves the model.
        role: "gemm" (a kernel that is permuted or pruned), "applies" (has weights of permuted channels, and passes them
            on), "passes" (permuted channels go through), "pins" (keeps channels of a prunable kernel in their order) or
            "still" (no permuted channel comes here).
        inputs: positions, in the list of ops, of those whose result it reads.
        takes: groups of the channels that it reads, as ranges of positions in the plan's groups: "3", "0-4,7".
        gives: groups of the channels that it makes.
        axes: for a kernel the axes that are permuted: "K,C", "K", "C" or "".
        sparse: whether its kernel is pruned.
        note: why channels stay.
    """

    layer: str
    name: str
    type: str
    role: str
    inputs: tuple[int, ...] = ()
    takes: str = ""
    gives: str = ""
    axes: str = ""
    sparse: bool = False
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain data, without what is empty."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in vars(self).items() if v not in ("", (), False)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> DrawnOp:
        """From :meth:`to_dict`. Raises TypeError or ValueError for anything else."""
        fields = {"layer": "", "name": "", **data}
        inputs = tuple(int(i) for i in fields.pop("inputs", ()))
        return cls(inputs=inputs, **fields)


@dataclasses.dataclass(frozen=True)
class Outline:
    """A model's ops and what stands above the picture.

    Attributes:
        title: the name of the model and the counts.
        ops: in execution order: each op comes after those whose result it reads.
        planned: whether nothing of it was done.
    """

    title: str
    ops: tuple[DrawnOp, ...]
    planned: bool = False

    def to_dict(self) -> dict[str, Any]:
        planned = {"planned": True} if self.planned else {}
        return {"title": self.title, "ops": [op.to_dict() for op in self.ops], **planned}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Outline:
        ops = tuple(DrawnOp.from_dict(op) for op in data["ops"])
        for i, op in enumerate(ops):
            if op.role not in ROLES:
                raise ValueError(
                    f"op {i} of the outline, {op.name!r}, has role {op.role!r}, none of {', '.join(ROLES)}"
                )
            if any(not 0 <= j < i for j in op.inputs):
                raise ValueError(f"op {i} of the outline, {op.name!r}, reads an op that does not come before it")
        return cls(str(data["title"]), ops, bool(data.get("planned", False)))
