"""Options that several commands share, and those of `export`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from tfmot_asp.cli import options
from tfmot_asp.hardware.rule import DEFAULT_KINDS, SUPPORTED_KINDS
from tfmot_asp.pattern import TWO_FOUR, Pattern


def add_model(command: argparse.ArgumentParser, *, shapes: bool = True) -> None:
    command.add_argument("model", type=Path, metavar="MODEL", help="a .keras or .h5 file, or a SavedModel of tf_keras")
    if shapes:
        add_input_shapes(command)
    add_trust(command)


def add_input_shapes(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--input-shape",
        type=options.named_shape,
        action="append",
        metavar="[NAME=][TYPE:]SIZES",
        help="for models that leave sizes open, such as 1,224,224,3; once per input, by name if there are several; "
        "with a type where it is not float32, such as ids=int32:1,128",
    )


def add_trust(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("custom code")
    group.add_argument(
        "--import", dest="imports", action="append", default=[], metavar="MODULE", help="import, to register its layers"
    )
    group.add_argument(
        "--allow-unsafe",
        action="store_true",
        help="load Lambda layers and ops of any kind: they run. Only if you trust it",
    )


def add_output(command: argparse.ArgumentParser, metavar: str, text: str, *, required: bool = True) -> None:
    command.add_argument("-o", "--output", type=Path, required=required, metavar=metavar, help=text)
    command.add_argument("--force", action="store_true", help="replace what is there")


def add_printing(parser: argparse.ArgumentParser, default: Any) -> None:
    """What is printed: options that stand before the command or after it."""
    group = parser.add_argument_group("what is printed")
    form = group.add_mutually_exclusive_group()
    for flag, text in (
        ("--json", "print one JSON document instead of tables"),
        ("--summary", "print what stands above the tables only"),
        ("--wide", "never wrap: a row is a line, however long"),
    ):
        form.add_argument(flag, action="store_true", default=default, help=text)
    for flags, text in (
        (("-q", "--quiet"), "no progress bars, no warnings"),
        (("-v", "--verbose"), "say more on standard error"),
        (("--debug",), "show where an error comes from"),
    ):
        group.add_argument(*flags, action="store_true", default=default, help=text)


def add_pattern(command: Any, default: Pattern | None = TWO_FOUR, which: str = "") -> None:
    choice = command.add_mutually_exclusive_group()
    choice.add_argument(
        "--pattern",
        type=options.pattern,
        default=default,
        metavar="N:M",
        help=f"N weights kept of every M{which} (default: 2:4)",
    )
    choice.add_argument(
        "--m-by-n",
        dest="pattern",
        type=options.m_by_n,
        default=default,
        metavar="M,N",
        help="the same as tfmot writes it: M zeros in every N",
    )


def add_policy(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("which layers to prune")
    group.add_argument(
        "--kinds",
        type=options.kinds,
        default=DEFAULT_KINDS,
        metavar="K,K",
        help=f"out of {', '.join(SUPPORTED_KINDS)} (default: {','.join(DEFAULT_KINDS)})",
    )
    group.add_argument("--skip", action="append", default=[], metavar="NAME", help="keep a layer dense; * and ? match")
    group.add_argument("--min-channels", type=options.count, metavar="N", help="keep layers with fewer channels dense")
    group.add_argument(
        "--min-gain",
        type=options.factor,
        metavar="X",
        help="keep layers dense that get less than X times as fast, 1.05",
    )
    group.add_argument("--padding", action="store_true", help="prune Dense layers of any input size")
    add_pattern(group)
    group = command.add_argument_group("how fast it would be")
    group.add_argument(
        "--gpu",
        metavar="GPU",
        help="to estimate times for: H100, H100-tuned or a .json file of times measured on yours",
    )
    group.add_argument("--precision", type=options.precision, metavar="P", help="of these times: fp16 or int8 (fp16)")
    group.add_argument("--batch-size", type=options.count, metavar="N", help="that sizes are for (1)")


def add_search(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("the search for channel orders")
    group.add_argument("--effort", choices=("fast", "balanced", "thorough"), default="balanced", help="(balanced)")
    group.add_argument("--seed", type=int, default=0, metavar="S", help="of the search (0)")
    group.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="the result is the same (auto)"
    )


def add_export(command: argparse.ArgumentParser) -> None:
    """Each is None unless it is given: what it is then, the library knows."""
    group = command.add_argument_group("what is written")
    _renamed(
        group,
        "--precision",
        "--quantize",
        type=options.precision,
        metavar="P",
        help="fp32, fp16 or int8 (fp32; of ONNX fp16)",
    )
    _renamed(
        group,
        "--calibration",
        "--calibration-data",
        dest="calibration_data",
        type=Path,
        metavar="FILE",
        help="typical inputs, for int8: .npy or .npz",
    )
    group.add_argument(
        "--batch-size", type=options.batch, metavar="N", help="fixed batch size, or open (open; of TFLite 1)"
    )
    _switch(group, "--no-fold-batch-norm", "keep batch norm as it is", name="fold_batch_norm", value=False)
    group.add_argument(
        "--uncompared", action="append", metavar="NAME", help="an output that may differ: ONNX, TFLite (ties in TopK)"
    )
    add_pattern(group, None, ", of a model without pruning wrappers")
    group = command.add_argument_group("for ONNX")
    group.add_argument("--opset", type=options.count, metavar="N", help="13 to 18 (17)")
    group.add_argument("--inputs-as-nchw", action="append", metavar="NAME", help="take this input channels first")
    group.add_argument("--outputs-as-nchw", action="append", metavar="NAME", help="give this output channels first")
    _switch(group, "--float16-io", "with fp16: inputs and outputs in float16 too")
    group.add_argument(
        "--tensorrt-version",
        dest="tensorrt",
        metavar="V",
        help="that the printed command is for, such as 8.6 or 11 (10)",
    )
    group.add_argument(
        "--batch-sizes",
        type=options.batches,
        metavar="A,B,C",
        help="in that command: smallest, most frequent, largest (1,32,64)",
    )
    group.add_argument(
        "--shapes",
        type=options.axis_sizes,
        action="append",
        metavar="AXIS=A,B,C",
        help="the same of another open axis, by its name in the file, such as sequence=16,128,512",
    )
    group.add_argument(
        "--check", choices=("tensorrt",), help="TensorRT's parser and builder must take it (no GPU needed)"
    )
    group.add_argument(
        "--calibration-method",
        choices=("percentile", "mse", "entropy", "minmax"),
        help="with int8: which magnitude becomes 127 (percentile)",
    )
    group.add_argument("--percentile", type=float, metavar="P", help="with int8: of the magnitudes that fit (99.99)")
    group.add_argument(
        "--keep-float", action="append", metavar="NAME", help="with int8: a weight or op of the table to leave in float"
    )
    _switch(group, "--int8-weights", "with int8: store weights in int8, for TensorRT 10 and later")
    group = command.add_argument_group("for TFLite")
    group.add_argument(
        "--io-dtype", choices=("float32", "int8", "uint8"), help="with int8: of inputs and outputs (float32)"
    )
    _switch(group, "--select-tf-ops", "allow ops that TFLite lacks, which the app must then ship")
    group = command.add_argument_group("for TF-TRT (TensorFlow up to 2.17, with a GPU)")
    for flag, text in (
        ("--max-workspace-size-bytes", "GPU memory that TensorRT may use (8 GiB)"),
        ("--minimum-segment-size", "fewest ops that are worth an engine (3)"),
        ("--maximum-cached-engines", "engines kept for different shapes (1)"),
    ):
        group.add_argument(flag, type=options.count, metavar="N", help=text)
    _switch(
        group, "--no-build-at-runtime", "never build engines while serving", name="allow_build_at_runtime", value=False
    )


def _switch(group: Any, flag: str, text: str, *, name: str | None = None, value: bool = True) -> None:
    name = name or flag.removeprefix("--").replace("-", "_")
    group.add_argument(flag, dest=name, action="store_const", const=value, help=text)


def _renamed(group: Any, flag: str, old: str, **given: Any) -> None:
    """An option that is still taken under the name that it had."""
    given.setdefault("dest", flag.removeprefix("--"))
    group = group.add_mutually_exclusive_group()
    group.add_argument(flag, **given)
    group.add_argument(old, **{**given, "help": argparse.SUPPRESS})
