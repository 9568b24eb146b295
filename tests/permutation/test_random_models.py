"""The property that all rests on: whatever a permutation does to a model, its outputs stay."""

from __future__ import annotations

from collections import Counter

import pytest
import tf_keras
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.permutation.harness import check
from tests.permutation.random_models import KINDS, random_model

QUIET = {"suppress_health_check": list(HealthCheck), "deadline": None, "print_blob": True}
# In double precision rounding leaves 1e-16, which a normalization by a small spread magnifies, and 1e-7 where an op
# knows single precision only. A channel in the wrong place changes outputs by a hundredth of their size and more.
TOLERANCE = 1e-5


def _outputs_stay(made, seen: Counter[str], moved: Counter[bool]) -> None:
    model, kinds = made
    seen.update(kinds)
    # Stripes of two, so that narrow layers have something to exchange.
    moved[check(model, m_by_n=(1, 2), tolerance=TOLERANCE).groups > 0] += 1
    tf_keras.backend.clear_session()


def test_outputs_stay():
    seen: Counter[str] = Counter()
    moved: Counter[bool] = Counter()

    @given(st.data())
    @settings(max_examples=60, derandomize=True, **QUIET)
    def property_(data):
        _outputs_stay(random_model(data.draw), seen, moved)

    property_()
    # The property would hold as well if nothing ever moved.
    assert moved[True] >= 2 * moved[False]
    assert len(seen) >= 25


@pytest.mark.slow
@given(st.data())
@settings(max_examples=1000, **QUIET)
def test_outputs_stay_in_a_thousand_models(data):
    _outputs_stay(random_model(data.draw, steps=14), Counter(), Counter())


def test_the_models_use_many_kinds():
    assert len(KINDS) >= 25
