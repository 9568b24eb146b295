"""The table of rules: TensorFlow op type → rule."""

from __future__ import annotations

from collections.abc import Callable

from tfmot_asp.permutation.axes import Rule

_RULES: dict[str, Rule] = {}


def register_rule(*op_types: str) -> Callable[[Rule], Rule]:
    """Registers a rule for TensorFlow op types; a later registration replaces an earlier one.

    The rule is called with the op and the :class:`~tfmot_asp.permutation.axes.Axes`. It returns, for each output of the
    op, a sequence with one axis per dimension: an int64 array of element ids, or None if all slices along the axis are
    equal. What it promises: if the inputs are reordered in any way that respects its ties and pins, so are the outputs.

    Args:
        *op_types: names as in `tf.Operation.type`.

    Raises:
        TypeError: if an op type is not a string.

    Example: an op that works on each element alone hands the axes of its input on; one that looks at neighbours along
    its last axis pins that axis.

        from tfmot_asp.permutation import register_rule

        @register_rule("MyGelu")
        def my_gelu(op, axes):
            return [axes[op.inputs[0]]]

        @register_rule("MyShift")
        def my_shift(op, axes):
            *others, last = axes[op.inputs[0]]
            axes.pin(last, "shifted along this axis", op)
            return [[*others, last]]
    """
    for op_type in op_types:
        if not isinstance(op_type, str):
            raise TypeError(f'register_rule takes op types such as "Relu", got {op_type!r}')

    def register(rule: Rule) -> Rule:
        for op_type in op_types:
            _RULES[op_type] = rule
        return rule

    return register


def rule_for(op_type: str) -> Rule | None:
    """The rule of `op_type`, or None."""
    return _RULES.get(op_type)


def op_types() -> frozenset[str]:
    """All op types that have a rule."""
    return frozenset(_RULES)
