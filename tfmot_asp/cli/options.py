"""From the text of options to what the library takes: shapes, patterns, kinds, layers to skip, arrays."""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import importlib
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from tfmot_asp.cli.usage import did_you_mean
from tfmot_asp.hardware.cost_model import cost_model
from tfmot_asp.hardware.precision import PRECISIONS, check_precision
from tfmot_asp.hardware.rule import SUPPORTED_KINDS, PruneForSparseTensorCores
from tfmot_asp.pattern import Pattern


def pattern(text: str) -> Pattern:
    """``"3:4"``, three kept of every four, as a pattern."""
    try:
        return Pattern.of(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no pattern such as 2:4, two kept of every four") from None


def m_by_n(text: str) -> Pattern:
    """``"1:4"`` or ``"1,4"`` in tfmot's order, one zero in every four, as a pattern."""
    try:
        zeros, block = (int(part) for part in text.replace(",", ":").split(":"))
        return Pattern(zeros, block)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no pattern such as 2,4, two zeros in every four") from None


def kinds(text: str) -> tuple[str, ...]:
    """``"Dense,Conv2D"`` as ("Dense", "Conv2D")."""
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    unknown = [name for name in names if name not in SUPPORTED_KINDS]
    if unknown or not names:
        guess = "".join(did_you_mean(name, SUPPORTED_KINDS) for name in unknown[:1])
        raise argparse.ArgumentTypeError(f"{text!r}: kinds are {', '.join(SUPPORTED_KINDS)}{guess}")
    return names


def precision(text: str) -> str:
    """``"fp32"``, ``"fp16"`` or ``"int8"``, also as ``"float32"`` and ``"float16"``."""
    try:
        return check_precision(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(PRECISIONS)}") from None


def count(text: str) -> int:
    """A positive integer."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no positive integer")
    return value


def batch(text: str) -> int | str:
    """A positive integer, or ``"open"``."""
    return text if text == "open" else count(text)


def batches(text: str) -> tuple[int, ...]:
    """Three positive integers that do not decrease: ``"1,32,64"``."""
    sizes = tuple(count(size.strip()) for size in text.split(","))
    if len(sizes) != 3 or list(sizes) != sorted(sizes):
        raise argparse.ArgumentTypeError(f"{text!r} is not smallest, most frequent and largest batch, such as 1,32,64")
    return sizes


def axis_sizes(text: str) -> tuple[str, tuple[int, ...]]:
    """The three sizes of an open axis: ``"sequence=16,128,512"`` is ("sequence", (16, 128, 512))."""
    name, equals, sizes = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is no axis with three sizes, such as sequence=16,128,512")
    return name, batches(sizes)


def seconds(text: str) -> float:
    """A positive number."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no positive number of seconds")
    return value


def factor(text: str) -> float:
    """A number, 1 or more."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 1 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no factor of 1 or more, such as 1.05")
    return value


def named_shape(text: str) -> tuple[str | None, Any]:
    """A shape, with its input's name and its type where they are given.

    ``"1,224,224,3"`` is (None, (1, 224, 224, 3)), ``"ids=?,128"`` is ("ids", (None, 128)), ``"ids=int32:1,128"`` is
    ("ids", ((1, 128), "int32")), and ``"index=int32:"``, of a single number, ("index", ((), "int32")).
    """
    name, equals, described = text.rpartition("=")
    dtype, colon, sizes = described.rpartition(":")
    try:
        listed = sizes.split(",") if sizes or not colon else []
        shape = tuple(None if size.strip() in ("?", "None") else int(size) for size in listed)
        known = not colon or np.dtype(dtype).kind in "biufc"
    except (ValueError, TypeError):
        shape, known = (), False
    if not known or not (shape or colon) or any(n is not None and n < 1 for n in shape) or (equals and not name):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no shape such as 1,224,224,3 (? for an open batch), name=1,128 or name=int32:1,128, with the "
            "batch first"
        )
    return name or None, (shape, dtype) if colon else shape


def input_shapes(given: list[tuple[str | None, Any]] | None) -> Any:
    """What the library calls ``input_shapes``: one shape, a list, a dict by input name, or None."""
    if not given:
        return None
    names = [name for name, _ in given]
    if all(name is not None for name in names):
        if len(set(names)) != len(names):
            raise ValueError(f"--input-shape names an input twice: {', '.join(map(str, names))}")
        return dict(given)
    if any(name is not None for name in names):
        raise ValueError("--input-shape: name all inputs (ids=1,128) or none of them")
    shapes = [shape for _, shape in given]
    return shapes[0] if len(shapes) == 1 else shapes


def policy(arguments: argparse.Namespace, model: Any) -> PruneForSparseTensorCores:
    """The rule that the options ask for.

    Raises:
        ValueError: if a layer to skip is not in the model.
    """
    from tfmot_asp.keras_models.layers import all_layers

    layers = all_layers(model)
    names = sorted({name for name, _ in layers} | {str(layer.name) for _, layer in layers})
    for wanted in arguments.skip:
        if not fnmatch.filter(names, wanted):
            hint = did_you_mean(wanted, names, several=3)
            raise ValueError(f"--skip {wanted!r}: the model has no such layer{hint} (`inspect` lists them)")
    skipped = [
        layer
        for name, layer in layers
        if any(fnmatch.fnmatchcase(n, wanted) for n in (name, str(layer.name)) for wanted in arguments.skip)
    ]
    gains = {} if arguments.min_gain is None else {"min_gain": arguments.min_gain, **times(arguments)}
    return PruneForSparseTensorCores(
        padding=arguments.padding,
        skip=skipped,
        kinds=arguments.kinds,
        min_channels=arguments.min_channels,
        batch_size=arguments.batch_size or 1,
        input_shapes=input_shapes(arguments.input_shape),
        **gains,
    )


def times(arguments: argparse.Namespace) -> dict[str, Any]:
    """What ``sparsity_report`` is told about times; checked before any work.

    Raises:
        ValueError: if there are no times for the GPU or the precision, or a precision without a GPU.
        FileNotFoundError: if there is no such file of times.
    """
    if arguments.gpu is None and arguments.min_gain is None:
        if arguments.precision is not None:
            raise ValueError("--precision is of the times on a --gpu, which was not given")
        return {}
    gpu, precision = arguments.gpu or "H100", arguments.precision or "fp16"
    cost_model(gpu, precision)
    return {"gpu": gpu, "precision": precision}


def times_of_policy(arguments: argparse.Namespace) -> None:
    """The same for commands without a report, in which times are for ``--min-gain`` alone."""
    times(arguments)
    for name in ("gpu", "batch_size"):
        if getattr(arguments, name) is not None and arguments.min_gain is None:
            raise ValueError(f"--{name.replace('_', '-')} goes with --min-gain here, which was not given")


def import_modules(names: list[str]) -> None:
    """Imports modules that register custom layers, from the current folder too.

    Raises:
        ImportError: naming the option.
    """
    if names and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    for name in names:
        try:
            importlib.import_module(name.removesuffix(".py").replace("/", "."))
        except ImportError as error:
            raise ImportError(f"--import {name}: {error}") from error


def read_array(path: Path) -> Any:
    """The array of an ``.npy`` file, or the dict of arrays of an ``.npz`` file. Pickled objects are refused.

    Raises:
        FileNotFoundError, ValueError: if it cannot be read.
    """
    import zipfile

    if not path.exists():
        raise FileNotFoundError(f"there is no file {str(path)!r}")
    if path.is_dir():
        raise ValueError(f"{str(path)!r} is a folder, not an .npy or .npz file")
    try:
        # Mapped, not read: a file is as large as it says, or it cannot be mapped.
        loaded = np.load(path, mmap_mode="r", allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        with contextlib.closing(loaded):
            arrays = {name: loaded[name] for name in loaded.files}
        if not all(isinstance(array, np.ndarray) for array in arrays.values()):  # a zip archive of something else
            raise ValueError("it is no NumPy file")
        return arrays
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile, MemoryError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        if "pickle" in reason or "Python objects" in reason:
            reason = "it holds Python objects, or is no NumPy file"
        raise ValueError(f"{str(path)!r} cannot be read as NumPy arrays: {reason}") from None
