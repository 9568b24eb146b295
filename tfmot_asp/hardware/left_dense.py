"""What wrapping a model leaves dense, and why: said in one line, so that nobody finds out after training."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

from tfmot_asp.hardware.policy import why_dense
from tfmot_asp.keras_models.kernels import kernels_of, layers_with_kernels
from tfmot_asp.keras_models.wrappable import outer_layers
from tfmot_asp.keras_models.wrappers import is_called
from tfmot_asp.reason import Reason
from tfmot_asp.types import Policy

_MAX_REASONS, _MAX_NAMES = 12, 4


class LeftDense(NamedTuple):
    """Layers with kernels that get no wrapper.

    Attributes:
        by_policy: name of each that the policy keeps dense, and its reason.
        out_of_reach: names of those that the policy allows, but that a custom layer holds, where no wrapper reaches.
        wrapped: how many layers get one.
    """

    by_policy: tuple[tuple[str, Reason], ...]
    out_of_reach: tuple[str, ...]
    wrapped: int

    def __bool__(self) -> bool:
        return bool(self.by_policy or self.out_of_reach)

    @property
    def remedy(self) -> str:
        """What is the matter with the layers out of reach, and what takes them; empty if there are none."""
        if not self.out_of_reach:
            return ""
        names = ", ".join(map(repr, self.out_of_reach))
        return f"{names}: inside a custom layer, where no wrapper reaches; tfmot_asp.prune_trained_model prunes them"

    def line(self, model: Any) -> str:
        """All of it in one line, each reason once."""
        alike: dict[str, list[str]] = {}
        for name, reason in self.by_policy:
            alike.setdefault(reason.why, []).append(name)
        said = list(alike.items())[:_MAX_REASONS]
        shown = [self.remedy] if self.remedy else []
        shown += [f"{_listed(names)} {why}" for why, names in said]
        rest = len(self.by_policy) - sum(len(names) for _, names in said)
        if rest:
            shown.append(f"{rest} more")
        lists_all = (
            " (sparsity_report(model) lists all)" if rest or any(len(names) > _MAX_NAMES for _, names in said) else ""
        )
        total = self.wrapped + len(self.by_policy) + len(self.out_of_reach)
        return (
            f"{self.wrapped} of {total} layers with kernels in model {model.name!r} are pruned, the others stay dense: "
            f"{'; '.join(shown)}{lists_all}"
        )


def _listed(names: list[str]) -> str:
    """The subject of a reason that these layers share."""
    if len(names) == 1:
        return repr(names[0])
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return f"{', '.join(map(repr, names[:_MAX_NAMES]))}{more}: each"


def left_dense(model: Any, policy: Policy, wrapped: Collection[int], otherwise: str = "is not wrapped") -> LeftDense:
    """What stays dense of a functional or sequential model.

    Args:
        model: the model.
        policy: which layers to prune.
        wrapped: ids of the layers that get a wrapper.
        otherwise: why a layer that the policy prunes gets none.
    """
    by_policy, hidden, count = [], [], 0
    seen: set[int] = set()
    for name, layer in outer_layers(model):
        if id(layer) in wrapped or is_called(layer, "PruneLowMagnitude"):
            count += 1
        elif kernels_of(layer):
            reason = why_dense(policy, layer)
            by_policy.append((name, reason or Reason("", otherwise)))
        else:
            for inner_name, inner, _ in layers_with_kernels(layer):
                if id(inner) in seen:
                    continue
                seen.add(id(inner))
                reason = why_dense(policy, inner)
                if reason is None:
                    hidden.append(f"{name}/{inner_name}")
                else:
                    by_policy.append((f"{name}/{inner_name}", reason))
    return LeftDense(tuple(by_policy), tuple(hidden), count)
