"""The rules: how each TensorFlow op carries channels from its inputs to its outputs.

The only place that knows TensorFlow ops. A rule is a function of an op and of the
:class:`~tfmot_asp.permutation.axes.Axes`; see there what it may do. **An op type without a rule pins all it touches**,
so a missing rule costs freedom, never correctness.
"""

from tfmot_asp.permutation.rules import (  # each module registers its rules when it is imported
    contraction,
    control_flow,
    elementwise,
    lists,
    nesting,
    opaque,
    reshaping,
    selection,
    spatial,
    splitting,
)
from tfmot_asp.permutation.rules.registry import op_types, register_rule, rule_for

__all__ = [
    "contraction",
    "control_flow",
    "elementwise",
    "lists",
    "nesting",
    "op_types",
    "opaque",
    "register_rule",
    "reshaping",
    "rule_for",
    "selection",
    "spatial",
    "splitting",
]
