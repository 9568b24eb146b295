"""The trtexec command that builds a TensorRT engine with sparse kernels from an ONNX file."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfmot_asp.export.onnx_files.onnx_graph import Scope, import_onnx, load_onnx
from tfmot_asp.types import StrPath

if TYPE_CHECKING:
    import onnx

DEFAULT_TENSORRT = 10

# The smallest, the most frequent and the largest batch. TensorRT times its kernels at the second: the larger it is, the
# more work there is to save.
DEFAULT_BATCH_SIZES = (1, 32, 64)

Shapes = Mapping[str, Any]


def trtexec_command(
    path: StrPath,
    *,
    tensorrt: int | str = DEFAULT_TENSORRT,
    batch_sizes: Sequence[int] = DEFAULT_BATCH_SIZES,
    shapes: Shapes | None = None,
) -> str:
    """The command that builds an engine from an ONNX file, as a line for a shell.

    It asks for sparse kernels (``--sparsity=enable``; ``force`` would overwrite weights) and for the verbose log that
    ``parse_tensorrt_log`` reads, gives shapes where the file leaves them open, and enables what the file's precision
    needs:

    | file | TensorRT 8 and 9 | 10 | 11 |
    | --- | --- | --- | --- |
    | fp32 | ``--fp16`` | ``--fp16`` | nothing: it would run in fp32; export with ``precision="fp16"`` |
    | fp16 | ``--fp16`` | ``--stronglyTyped`` | nothing |
    | int8 | ``--int8 --fp16`` | ``--stronglyTyped`` | nothing |

    Sources: NVIDIA's developer guide ("Structured Sparsity": sparse kernels need FP16 or INT8), and its pages on
    migrating trtexec from 8 to 10 and from 10 to 11, which has no precision flags.

    Args:
        path: an ONNX file.
        tensorrt: version of TensorRT, such as ``10`` or ``"8.6"``.
        batch_sizes: smallest, most frequent and largest batch, for inputs whose first axis is open.
        shapes: by input name, one shape, or three for smallest, most frequent and largest; needed where other axes are
            open.

    Raises:
        ValueError: if the file is no ONNX model, an open axis has no size, or an argument makes no sense.

    Example:
        >>> print(tfmot_asp.export.trtexec_command("model.onnx"))
        trtexec --onnx=model.onnx --saveEngine=model.plan --sparsity=enable --verbose ...
    """
    path = Path(path)
    model = load_onnx(path)
    command = [
        "trtexec",
        f"--onnx={path}",
        f"--saveEngine={path.with_suffix('.plan')}",
        "--sparsity=enable",
        "--verbose",
    ]
    command += _precision_flags(precision_of(model), _major(tensorrt))
    profiles = _profiles(model, _check_batch_sizes(batch_sizes), dict(shapes or {}))
    if profiles:
        for flag, position in (("--minShapes", 0), ("--optShapes", 1), ("--maxShapes", 2)):
            sizes = ",".join(
                f"{_input(name)}:{'x'.join(map(str, three[position]))}" for name, three in profiles.items()
            )
            command.append(f"{flag}={sizes}")
    return shlex.join(command)


def precision_of(model: onnx.ModelProto) -> str:
    """``"int8"`` for a model with quantizers, ``"fp16"`` for one with float16 weights, else ``"fp32"``."""
    onnx = import_onnx()
    ops = {node.op_type for _, node in Scope(model, model.graph).walk()}
    if ops & {"QuantizeLinear", "DequantizeLinear"}:
        return "int8"
    halves = [tensor for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT16]
    floats = [tensor for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT]
    return "fp16" if sum(map(_size, halves)) > sum(map(_size, floats)) else "fp32"


def _size(tensor: onnx.TensorProto) -> int:
    size = 1
    for dim in tensor.dims:
        size *= dim
    return size


def _precision_flags(precision: str, major: int) -> list[str]:
    if major >= 11:
        return []
    if precision == "fp32":
        return ["--fp16"]
    if major == 10:
        return ["--stronglyTyped"]
    return ["--int8", "--fp16"] if precision == "int8" else ["--fp16"]


def _major(tensorrt: int | str) -> int:
    try:
        major = int(str(tensorrt).split(".")[0])
    except ValueError:
        major = 0
    if major < 8 or isinstance(tensorrt, bool):
        raise ValueError(
            f"tensorrt must be a version from 8 on, which is the first with sparse kernels; got {tensorrt!r}"
        )
    return major


def _check_batch_sizes(sizes: Sequence[int]) -> tuple[int, int, int]:
    try:
        least, usual, most = (int(size) for size in sizes)
    except (TypeError, ValueError):
        raise ValueError(
            f"batch_sizes must be three integers: smallest, most frequent, largest; got {sizes!r}"
        ) from None
    if not 1 <= least <= usual <= most:
        raise ValueError(f"batch_sizes must be positive and not decrease, got {tuple(sizes)}")
    return least, usual, most


def _profiles(
    model: onnx.ModelProto, batches: tuple[int, int, int], shapes: dict[str, Any]
) -> dict[str, list[tuple[int, ...]]]:
    """Three shapes for every input, if one of them has an open axis."""
    stored = {tensor.name for tensor in model.graph.initializer}
    inputs = {value.name: value for value in model.graph.input if value.name not in stored}
    unknown = sorted(set(shapes) - set(inputs))
    if unknown:
        raise ValueError(f"shapes names {unknown}, which is no input; the file has {sorted(inputs)}")
    found, is_open = {}, False
    for name, value in inputs.items():
        dims = [dim.dim_value or None for dim in value.type.tensor_type.shape.dim]
        is_open = is_open or None in dims or name in shapes
        if name in shapes:
            found[name] = _given(name, shapes[name], dims)
        elif None in dims[1:] or not value.type.tensor_type.HasField("shape"):
            size = "x".join("?" if dim is None else str(dim) for dim in dims) or "an unknown shape"
            raise ValueError(
                f"input {name!r} is {size}: open beyond the batch, so give "
                f"shapes={{{name!r}: (smallest, most frequent, largest)}}"
            )
        else:
            found[name] = [tuple(batch if dim is None else dim for dim in dims) for batch in batches]
    return found if is_open else {}


def _given(name: str, shapes: Any, dims: list[int | None]) -> list[tuple[int, ...]]:
    try:
        three = [shapes] * 3 if isinstance(shapes[0], int) else list(shapes)
        result = [tuple(int(size) for size in shape) for shape in three]
        fits = all(
            len(shape) == len(dims)
            and all(dim in (None, size) and size > 0 for size, dim in zip(shape, dims, strict=True))
            for shape in result
        )
        if len(result) != 3 or not fits:
            raise ValueError
    except (TypeError, ValueError, IndexError, KeyError):
        size = "x".join("?" if dim is None else str(dim) for dim in dims)
        raise ValueError(f"shapes[{name!r}] must be one shape or three that fit {size}, got {shapes!r}") from None
    return result


def _input(name: str) -> str:
    return f"'{name}'" if set(name) & set(":,") else name  # trtexec splits its lists there
