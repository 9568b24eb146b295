"""How to build a TensorRT engine with sparse kernels from an ONNX file: by trtexec, in a container, by other tools."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfmot_asp.export.onnx_files.onnx_graph import BATCH, Scope, import_onnx, load_onnx
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
    tool: str = "trtexec",
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

    The line for 10 fits 11 as well, unless the file is in fp32: trtexec 11 accepts ``--stronglyTyped``, all that it can
    do. Sources: NVIDIA's developer guide ("Structured Sparsity": sparse kernels need FP16 or INT8), and its pages on
    migrating trtexec from 8 to 10 and from 10 to 11, which has no precision flags.

    Args:
        path: an ONNX file.
        tensorrt: version of TensorRT, such as ``10`` or ``"8.6"``.
        batch_sizes: smallest, most frequent and largest batch, for inputs whose first axis is open.
        shapes: for other open axes: smallest, most frequent and largest size by the axis' name in the file, such as
            ``{"sequence": (16, 128, 512)}``; or by input name one shape, or three.
        tool: ``"trtexec"``; ``"docker"`` for the same in a container whose image, one of NVIDIA's with that version of
            TensorRT, the shell variable TENSORRT_IMAGE names; ``"polygraphy"`` for a line of that; or ``"python"`` for
            a script that builds the engine by the module ``tensorrt``.

    Raises:
        ValueError: if the file is no ONNX model, an open axis has no size, or an argument makes no sense.

    Example:
        >>> print(tfmot_asp.export.trtexec_command("model.onnx"))
        trtexec --onnx=model.onnx --saveEngine=model.plan --sparsity=enable --verbose ...
    """
    if tool not in _TOOLS:
        raise ValueError(f"tool must be one of {', '.join(map(repr, _TOOLS))}, got {tool!r}")
    path, major = Path(path), check_tensorrt(tensorrt)
    model = load_onnx(path)
    types = _precision_types(precision_of(model), major)
    profiles = shape_profiles(model, check_batch_sizes(batch_sizes), dict(shapes or {}))
    return _TOOLS[tool](path, major, types, profiles)


Profiles = dict[str, list[tuple[int, ...]]]

_STRONGLY_TYPED = "strongly typed"


def _precision_types(precision: str, major: int) -> list[str]:
    """What is to be enabled: types that kernels may compute in, or that the file's types are taken at their word."""
    if major >= 11:
        return []  # always strongly typed
    if precision == "fp32":
        return ["fp16"]
    if major == 10:
        return [_STRONGLY_TYPED]
    return ["int8", "fp16"] if precision == "int8" else ["fp16"]


def _trtexec(path: Path, major: int, types: list[str], profiles: Profiles) -> str:
    command = [
        *("trtexec", f"--onnx={path}", f"--saveEngine={path.with_suffix('.plan')}", "--sparsity=enable", "--verbose"),
        *("--stronglyTyped" if name == _STRONGLY_TYPED else f"--{name}" for name in types),
    ]
    if profiles:
        for flag, position in (("--minShapes", 0), ("--optShapes", 1), ("--maxShapes", 2)):
            sizes = ",".join(
                f"{_input(name)}:{'x'.join(map(str, three[position])) or 'scalar'}" for name, three in profiles.items()
            )
            command.append(f"{flag}={sizes}")
    return shlex.join(command)


def _docker(path: Path, major: int, types: list[str], profiles: Profiles) -> str:
    """trtexec next to the file, which the container sees in a folder of its own; the engine appears there."""
    folder = path.resolve().parent
    line = ["docker", "run", "--rm", "--gpus=all", f"--volume={folder}:/models", "--workdir=/models"]
    return f'{shlex.join(line)} "$TENSORRT_IMAGE" {_trtexec(Path(path.name), major, types, profiles)}'


def _polygraphy(path: Path, major: int, types: list[str], profiles: Profiles) -> str:
    """With ``-vv``: at one ``-v`` it leaves TensorRT's verbose messages out, among them the names of sparse layers."""
    command = [
        *("polygraphy", "convert", str(path), "--convert-to", "trt", "-o", str(path.with_suffix(".plan"))),
        *("--sparse-weights", "-vv", *(f"--{name.replace(' ', '-')}" for name in types)),
    ]
    if profiles:
        for flag, position in (("--trt-min-shapes", 0), ("--trt-opt-shapes", 1), ("--trt-max-shapes", 2)):
            command.append(flag)
            command += [f"{name}:[{','.join(map(str, three[position]))}]" for name, three in profiles.items()]
    return shlex.join(command)


def _python(path: Path, major: int, types: list[str], profiles: Profiles) -> str:
    flags = "0"
    if major < 10 or types == [_STRONGLY_TYPED]:
        name = "EXPLICIT_BATCH" if major < 10 else "STRONGLY_TYPED"
        flags = f"1 << int(trt.NetworkDefinitionCreationFlag.{name})"
    lines = [
        "import tensorrt as trt",
        "",
        "logger = trt.Logger(trt.Logger.VERBOSE)",
        "builder = trt.Builder(logger)",
        f"network = builder.create_network({flags})",
        "parser = trt.OnnxParser(network, logger)",
        f"if not parser.parse_from_file({str(path)!r}):",
        "    raise SystemExit(str(parser.get_error(0)))",
        "config = builder.create_builder_config()",
        "config.set_flag(trt.BuilderFlag.SPARSE_WEIGHTS)",
        *(f"config.set_flag(trt.BuilderFlag.{name.upper()})" for name in types if name != _STRONGLY_TYPED),
    ]
    if profiles:
        lines.append("profile = builder.create_optimization_profile()")
        lines += [
            f"profile.set_shape({name!r}, {', '.join(map(repr, three))})  # smallest, most frequent, largest"
            for name, three in profiles.items()
        ]
        lines.append("config.add_optimization_profile(profile)")
    lines += [
        "engine = builder.build_serialized_network(network, config)",
        "if engine is None:",
        '    raise SystemExit("TensorRT cannot build the engine: see its log")',
        f"with open({str(path.with_suffix('.plan'))!r}, 'wb') as file:",
        "    file.write(engine)",
    ]
    return "\n".join(lines)


_TOOLS = {"trtexec": _trtexec, "docker": _docker, "polygraphy": _polygraphy, "python": _python}


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


def check_tensorrt(tensorrt: int | str) -> int:
    """The major version of TensorRT.

    Raises:
        ValueError: unless it is one with sparse kernels.
    """
    try:
        major = int(str(tensorrt).split(".")[0])
    except ValueError:
        major = 0
    if major < 8 or isinstance(tensorrt, bool):
        raise ValueError(
            f"tensorrt must be a version from 8 on, which is the first with sparse kernels; got {tensorrt!r}"
        )
    return major


def check_batch_sizes(sizes: Sequence[int]) -> tuple[int, int, int]:
    """Smallest, most frequent and largest batch; see ``check_sizes``."""
    return check_sizes(sizes, "batch_sizes")


def check_sizes(sizes: Any, what: str) -> tuple[int, int, int]:
    """Smallest, most frequent and largest size of an axis.

    Raises:
        ValueError: unless they are positive and do not decrease.
    """
    try:
        least, usual, most = (int(size) for size in sizes)
    except (TypeError, ValueError):
        raise ValueError(f"{what} must be three integers: smallest, most frequent, largest; got {sizes!r}") from None
    if not 1 <= least <= usual <= most:
        raise ValueError(f"{what} must be positive and not decrease, got {tuple(sizes)}")
    return least, usual, most


def shape_profiles(model: onnx.ModelProto, batches: tuple[int, int, int], shapes: dict[str, Any]) -> Profiles:
    """Three shapes for every input, if one of them has an open axis."""
    stored = {tensor.name for tensor in model.graph.initializer}
    inputs = {value.name: value for value in model.graph.input if value.name not in stored}
    axes = {dim.dim_param for value in inputs.values() for dim in value.type.tensor_type.shape.dim} - {
        "",
        BATCH,
        *inputs,
    }
    unknown = sorted(set(shapes) - set(inputs) - axes)
    if unknown:
        raise ValueError(f"shapes names {unknown}, which is no input; the file has {sorted(inputs)}")
    sizes = {axis: check_sizes(shapes.pop(axis), f"shapes[{axis!r}]") for axis in axes & set(shapes)}
    found, is_open = {}, False
    for name, value in inputs.items():
        named = [dim.dim_param for dim in value.type.tensor_type.shape.dim]
        dims = [dim.dim_value or None for dim in value.type.tensor_type.shape.dim]
        is_open = is_open or None in dims or name in shapes
        if name in shapes:
            found[name] = _given(name, shapes[name], dims)
            continue
        left = [axis for axis, dim in enumerate(dims) if axis and dim is None and named[axis] not in sizes]
        if left or not value.type.tensor_type.HasField("shape"):
            size = "x".join("?" if dim is None else str(dim) for dim in dims) or "an unknown shape"
            which = list(dict.fromkeys(named[axis] for axis in left if named[axis] in axes)) or [name]
            asked = ", ".join(f"{axis!r}: (smallest, most frequent, largest)" for axis in which)
            raise ValueError(f"input {name!r} is {size}: open beyond the batch, so give shapes={{{asked}}}")
        found[name] = [
            tuple(dim or sizes.get(named[axis], batches)[place] for axis, dim in enumerate(dims)) for place in range(3)
        ]
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
