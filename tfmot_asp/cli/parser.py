"""The arguments of every command, and their help. Imports nothing heavy: ``--help`` is instant."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tfmot_asp.cli import help_texts, options
from tfmot_asp.cli.option_groups import (
    add_export,
    add_input_shapes,
    add_model,
    add_output,
    add_pattern,
    add_policy,
    add_printing,
    add_search,
    add_trust,
)
from tfmot_asp.cli.usage import Parser, Version

_DESCRIPTION = """\
2:4 structured sparsity for TensorFlow and Keras models, on files.

MODEL is a .keras or .h5 file, or a SavedModel folder made by tf_keras' model.save.
"""
_OUT = "where to write: .keras, .h5, or a folder for a SavedModel"


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments of a command line, with ``run``, the function of the command.

    Raises:
        UsageError: if they make no sense.
        SystemExit: after help or the version was printed.
    """
    parser = make_parser()
    arguments = parser.parse_args(argv)
    if hasattr(arguments, "topic"):
        parser.parse_args([arguments.topic, "--help"] if arguments.topic else ["--help"])
    return arguments


def make_parser() -> argparse.ArgumentParser:
    """The parser of ``tfmot-asp``; the namespace it gives has ``run``, the function of the command."""
    parser = Parser(prog="tfmot-asp", description=_DESCRIPTION, epilog=help_texts.EPILOG)
    parser.add_argument("--version", action=Version)
    add_printing(parser, False)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    command = _add(commands, "inspect", "commands", "show what would be pruned and permuted, what not, and why")
    add_model(command)
    add_policy(command)

    command = _add(commands, "permute", "commands", "reorder channels, so that a 2:4 mask keeps more magnitude")
    add_model(command)
    add_output(command, "OUT", _OUT)
    add_policy(command)
    add_search(command)
    command.add_argument("--report", type=Path, metavar="FILE", help="write the report, with all orders, as JSON")
    command.add_argument(
        "--apply",
        type=Path,
        metavar="REPORT",
        help="take the orders of such a report, of the same architecture, instead of searching",
    )
    command.add_argument("--plot", type=Path, metavar="FILE", help="draw the model: .svg, .png, .pdf or .dot")

    command = _add(commands, "prune", "commands", "permute, then set the smallest weights to zero: 2:4 in one shot")
    add_model(command)
    add_output(command, "OUT", _OUT)
    command.add_argument("--no-permute", dest="permute", action="store_false", help="leave the channels in their order")
    group = command.add_argument_group("pruning with data")
    group.add_argument(
        "--calibration",
        "--calibration-data",
        dest="calibration_data",
        type=Path,
        metavar="FILE",
        help="a few hundred typical inputs without labels: .npy, or .npz by input name; keeps most of the accuracy",
    )
    group.add_argument("--samples", type=options.count, metavar="N", help="use N of them, evenly spread (all)")
    add_policy(command)
    add_search(command)

    command = _add(commands, "verify", "commands", "check the pattern in a file: SavedModel, Keras, ONNX, TFLite")
    command.add_argument("file", type=Path, metavar="FILE", help="a folder, or a .keras, .h5, .onnx or .tflite file")
    command.add_argument("--on-gpu", action="store_true", help="run each 2:4 weight on this machine's GPU too")
    command.add_argument(
        "--tensorrt",
        action="store_true",
        help="have TensorRT's parser and builder take an .onnx file; needs no GPU",
    )
    command.add_argument(
        "--tensorrt-log",
        type=Path,
        metavar="LOG",
        help="of the engine's build (--verbose): which layers could use sparse kernels, and which do",
    )
    add_trust(command)
    add_pattern(command)

    command = _add(commands, "plot", "commands", "draw the ops: what is permuted, what carries it, what blocks it")
    add_model(command)
    add_output(command, "FILE", "the picture: .svg, .png, .pdf, or .dot")
    add_policy(command)

    command = _add(commands, "export", "exporting", "write a model for TF-TRT, TensorRT or TFLite, and verify it")
    add_model(command)
    command.add_argument("--to", required=True, choices=("onnx", "tflite", "saved_model", "tftrt"), help="the format")
    add_output(command, "OUT", "where to write: .onnx, .tflite, or a folder")
    add_export(command)

    command = _add(commands, "strip", "training_files", "take pruning wrappers off a model that was saved with them")
    add_model(command, shapes=False)
    add_output(command, "OUT", _OUT)

    command = _add(commands, "quantize", "training_files", "prepare a 2:4 model for quantization-aware training")
    add_model(command, shapes=False)
    add_output(command, "OUT", _OUT)
    add_pattern(command)

    command = _add(
        commands, "permute-shards", "sharding", "permute, and prune, weights in files that need not fit in memory"
    )
    command.add_argument(
        "model", type=Path, metavar="MODEL", help="the architecture: model.to_json(), or a .keras file"
    )
    command.add_argument(
        "weights",
        type=Path,
        metavar="WEIGHTS",
        help="safetensors (a file, index or folder), .weights.h5, .weights.json, or a checkpoint's prefix",
    )
    command.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER", help="where to write the files")
    command.add_argument("--prune", action="store_true", help="set the smallest weights to zero, too")
    command.add_argument("--apply", type=Path, metavar="REPORT", help="take the orders of a report, without a search")
    add_input_shapes(command)
    add_trust(command)
    add_policy(command)
    add_search(command)

    command = _add(commands, "search", "matrices", "find the channel order of one matrix or kernel")
    command.add_argument("weights", type=Path, metavar="WEIGHTS.npy", help="a matrix (rows, channels), or a kernel")
    command.add_argument("-o", "--output", type=Path, metavar="ORDER.npy", help="where to write the order (int64)")
    command.add_argument("--force", action="store_true", help="replace what is there")
    command.add_argument("--axis", type=int, metavar="A", help="the axis that is summed over (default: 1 of a matrix)")
    add_pattern(command)
    add_search(command)
    command.add_argument(
        "--time-limit",
        type=options.seconds,
        metavar="S",
        help="stop after S seconds; results then vary from run to run",
    )

    command = _add(
        commands, "measure", "measuring", "time products dense and 2:4 on this machine's GPU, for --gpu FILE"
    )
    add_output(command, "FILE.json", "where to write the times")
    command.add_argument("--precision", type=options.precision, metavar="P", help="fp16 or int8 (both)")

    command = _add(commands, "estimate", "measuring", "estimate the time of one matrix product, dense and 2:4")
    for name, text in (("m", "rows"), ("n", "output channels"), ("k", "what is summed over")):
        command.add_argument(name, type=options.count, metavar=name.upper(), help=text)
    command.add_argument(
        "--gpu", default="H100", metavar="GPU", help="H100, H100-tuned or a .json file of `measure` (H100)"
    )
    command.add_argument("--precision", type=options.precision, default="fp16", metavar="P", help="fp16 or int8 (fp16)")

    command = _add(commands, "completion", "completing", "print what makes a shell complete these commands")
    command.add_argument("shell", choices=("bash", "zsh", "fish", "tcsh", "powershell"), help="which shell")

    command = _add(commands, "help", "completing", "show this, or the options and examples of a command")
    command.add_argument("topic", nargs="?", choices=tuple(commands.choices), metavar="COMMAND", help="one of them")
    return parser


def _add(commands: Any, name: str, module: str, summary: str) -> argparse.ArgumentParser:
    function = name.replace("-", "_")
    command: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog=getattr(help_texts, function.upper()),
    )
    command.set_defaults(run=_later(module, function))
    add_printing(command, argparse.SUPPRESS)
    return command


def _later(module: str, name: str) -> Callable[..., int]:
    """The command's function, imported when it is called."""

    def run(*arguments: Any) -> int:
        code: int = getattr(importlib.import_module(f"tfmot_asp.cli.{module}"), name)(*arguments)
        return code

    return run
