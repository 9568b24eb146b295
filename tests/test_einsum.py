"""Einsum equations are read as NumPy reads them."""

import math
import string

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfmot_asp import einsum


def spelled_out(equation, *ranks):
    """The equation without ellipsis, by fresh letters: what broadcasting to equal ranks makes of it."""
    spare = [a for a in string.ascii_uppercase if a not in equation]
    parsed = einsum.parse(equation)
    names = [parsed.axes(i, rank) for i, rank in enumerate(ranks)]
    widths = [sum(name.startswith("...") for name in axes) for axes in names]
    letters = {f"...{i + 1}": spare[i] for i in range(max(widths))}
    output = parsed.output_axes(len(parsed.output.replace("...", "")) + ("..." in parsed.output) * max(widths))
    text = ["".join(letters.get(name, name) for name in axes) for axes in (*names, output)]
    return f"{','.join(text[:-1])}->{text[-1]}"


@given(st.data())
def test_ellipses_and_implicit_outputs_are_numpys(data):
    terms, shapes = [], []
    sizes = dict(zip("abcd", (2, 3, 4, 5), strict=True))
    for _ in range(data.draw(st.integers(1, 2))):
        letters = data.draw(st.lists(st.sampled_from("abcd"), unique=True, max_size=3))
        dots = data.draw(st.sampled_from([None, [], [6], [7, 6]]))
        at = data.draw(st.integers(0, len(letters)))
        middle = [] if dots is None else ["..."]
        terms.append("".join([*letters[:at], *middle, *letters[at:]]))
        before, after = ([sizes[a] for a in part] for part in (letters[:at], letters[at:]))
        shapes.append([*before, *(dots or []), *after])
    equation = ",".join(terms)
    arrays = [np.random.default_rng(i).normal(size=shape) for i, shape in enumerate(shapes)]
    expected = np.einsum(equation, *arrays)
    written = spelled_out(equation, *map(len, shapes))
    np.testing.assert_allclose(np.einsum(written, *arrays), expected, rtol=1e-10, atol=1e-12)
    assert len(einsum.parse(equation).output_axes(expected.ndim)) == expected.ndim


@given(st.data())
def test_roles_are_what_a_change_of_the_operand_changes(data):
    """Along an output axis a change reaches one slice of the result; along a reduction axis all of it."""
    letters = list("abcde")
    left = data.draw(st.permutations(letters).map(lambda x: x[:3]))
    right = data.draw(st.permutations(letters).map(lambda x: x[:3]))
    together = [a for a in letters if a in (*left, *right)]
    output = data.draw(st.lists(st.sampled_from(together), unique=True))
    equation = f"{''.join(left)},{''.join(right)}->{''.join(output)}"
    reduction, outputs = einsum.parse(equation.encode()).roles(1, 3)
    assert [right[i] for i in reduction] == [a for a in right if a in left and a not in output]
    x, kernel = np.ones([2] * 3), np.ones([2] * 3)
    for axis in range(3):
        changed = kernel.copy()
        np.moveaxis(changed, axis, 0)[0] += 1
        share = np.mean(np.einsum(equation, x, changed) != np.einsum(equation, x, kernel))
        in_slices = right[axis] in output
        assert share == (0.5 if in_slices else 1)
        assert (axis in outputs) == (in_slices and right[axis] not in left)


@pytest.mark.parametrize("equation", ["a1,b->ab", "a->b->c", "..a..b->a", "a....->a", "é->é"])
def test_what_is_no_equation_raises(equation):
    with pytest.raises(ValueError, match="is no einsum equation"):
        einsum.parse(equation)


@pytest.mark.parametrize(("equation", "rank"), [("ab,bc->ac", 3), ("a...b,bc->ac", 1)])
def test_terms_fit_their_tensors(equation, rank):
    with pytest.raises(ValueError, match="does not fit a tensor"):
        einsum.parse(equation).axes(0, rank)


def test_spaces_scalars_and_bytes():
    assert einsum.parse(b" a b , -> a b ") == einsum.Equation(("ab", ""), "ab")
    assert einsum.parse("ba") == einsum.Equation(("ba",), "ab")
    assert einsum.parse("ii").output == ""
    assert math.prod(np.einsum("ba", np.ones((2, 3))).shape) == 6
