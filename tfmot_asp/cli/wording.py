"""What the library says in Python's words, in those of the command line: keywords as options, calls as commands."""

from __future__ import annotations

import ast
import re

_VALUE = r"""('[^']*'|"[^"]*"|\{.*\}|\[.*?\]|\((?:[^()]|\([^()]*\))*\)|\.\.\.|[-+\w.]*\w)"""
_FLAGS = {
    "allow_unsafe": "--allow-unsafe",
    "batch_size": "--batch-size",
    "batch_sizes": "--batch-sizes",
    "calibration_data": "--calibration",
    "calibration_method": "--calibration-method",
    "check": "--check",
    "device": "--device",
    "effort": "--effort",
    "float16_io": "--float16-io",
    "gpu": "--gpu",
    "input_shapes": "--input-shape",
    "int8_weights": "--int8-weights",
    "io_dtype": "--io-dtype",
    "keep_float": "--keep-float",
    "kinds": "--kinds",
    "min_channels": "--min-channels",
    "min_gain": "--min-gain",
    "overwrite": "--force",
    "padding": "--padding",
    "precision": "--precision",
    "select_tf_ops": "--select-tf-ops",
    "sparsity_m_by_n": "--pattern",
    "time_limit": "--time-limit",
    "uncompared": "--uncompared",
}
# Names that are no words of English, so that they mean the keyword wherever they stand.
_ALONE = "|".join(name for name in _FLAGS if "_" in name)
_CALLS = (
    (r"load it with allow_unsafe=True \(--allow-unsafe on the command line\)", "give --allow-unsafe"),
    (r" \(on the command line: (--import MODULE)\), and load the file then", r", in a module that \1 names"),
    (r"shapes=\{'([^']+)': \(smallest, most frequent, largest\)\}", r"--shapes \1=SMALLEST,MOST-FREQUENT,LARGEST"),
    (r"(model = )?tfmot_asp\.strip_pruning\(model\)", "`tfmot-asp strip`"),
    (r"tfmot_asp\.quantize_model\(model\)", "`tfmot-asp quantize`"),
    (r"tfmot_asp\.export\.onnx\(model, path\)", "`tfmot-asp export --to onnx`"),
    (r"tfmot_asp\.export\.trtexec_command gives", "`tfmot-asp export --to onnx` prints"),
    (r"^(percentile) must", r"--\1 must"),
    (r"^tensorrt must", "--tensorrt-version must"),
)


def spoken(text: str) -> str:
    """A message of the library as the command line says it.

    Example:
        >>> spoken("give input_shapes=(1, 64, 64, 3), or padding=True")
        'give --input-shape 1,64,64,3, or --padding'
    """
    for pattern, said in _CALLS:
        text = re.sub(pattern, said, text)
    text = re.sub(rf"(?<![-\w.])({'|'.join(_FLAGS)})={_VALUE}", _option, text)
    return re.sub(rf"(?<![-\w.])({_ALONE})\b(?![(\w])", lambda match: _FLAGS[match[1]], text)


def _option(match: re.Match[str]) -> str:
    flag, text = _FLAGS[match[1]], match[2]
    if text == "...":
        return f"{flag} SIZES" if match[1] == "input_shapes" else flag
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = text
    if value is True:
        return flag
    if match[1] == "input_shapes":
        return _shapes(value)
    return f"{flag} {','.join(map(str, value)) if isinstance(value, (tuple, list)) else value}"


def _shapes(value: object) -> str:
    """``--input-shape`` for a shape, a list of shapes or a dict of them, with types or without."""
    if isinstance(value, dict):
        return " ".join(f"--input-shape {name}={_sizes(shape)}" for name, shape in value.items())
    if isinstance(value, list) and all(isinstance(shape, (tuple, list)) for shape in value):
        return " ".join(f"--input-shape {_sizes(shape)}" for shape in value)
    return f"--input-shape {_sizes(value)}"


def _sizes(shape: object) -> str:
    if not isinstance(shape, (tuple, list)):
        return str(shape)
    if len(shape) == 2 and isinstance(shape[0], (tuple, list)):
        return f"{shape[1]}:{_sizes(shape[0])}"
    return ",".join("?" if size is None else str(size) for size in shape)
