import numpy as np
import pytest

from tfmot_asp.hardware.precision import PRECISIONS, check_precision


@pytest.mark.parametrize(
    ("given", "name"),
    [
        *((precision, precision) for precision in PRECISIONS),
        ("float32", "fp32"),
        ("FP16", "fp16"),
        ("float16", "fp16"),
        ("half", "fp16"),
        ("INT8", "int8"),
        (np.float32, "fp32"),
        (np.dtype("float16"), "fp16"),
        (np.int8, "int8"),
    ],
)
def test_a_precision_has_one_name(given, name):
    assert check_precision(given) == name


@pytest.mark.parametrize("given", ["fp8", "bfloat16", "", None, 16, ["fp16"]])
def test_what_is_none_is_refused(given):
    with pytest.raises(ValueError, match=r"precision must be one of 'fp32', 'fp16', 'int8', got "):
        check_precision(given)


def test_what_the_caller_cannot_do_is_refused():
    assert check_precision("bfloat16", ("fp32", "bf16")) == "bf16"
    with pytest.raises(ValueError, match="dtype must be one of 'fp32', 'bf16', got 'float16'"):
        check_precision("float16", ("fp32", "bf16"), "dtype")
