"""The arguments of every command, and their help. Imports nothing heavy: ``--help`` is instant."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tfmot_asp.cli import options
from tfmot_asp.hardware.rule import DEFAULT_KINDS, SUPPORTED_KINDS
from tfmot_asp.pattern import TWO_FOUR, Pattern

_DESCRIPTION = """\
2:4 structured sparsity for TensorFlow and Keras models, on files.

MODEL is a .keras or .h5 file, or a SavedModel folder made by tf_keras' model.save. It is never changed.
"""

_EPILOG = """\
examples:
  tfmot-asp inspect model.keras
  tfmot-asp prune model.keras -o sparse.keras
  tfmot-asp verify sparse.keras

exit codes: 0 done; 1 the pattern does not hold (verify); 2 wrong usage or bad input; 130 interrupted.
`tfmot-asp COMMAND --help` has the options and examples of a command.
"""

_INSPECT = """\
examples:
  tfmot-asp inspect model.keras
  tfmot-asp inspect model.keras --batch-size 32 --min-channels 256
  tfmot-asp inspect model.keras --batch-size 32 --gpu H100 --precision int8
  tfmot-asp inspect model.keras --batch-size 32 --min-gain 1.05
  tfmot-asp inspect any_size.keras --input-shape 1,64,64,3
  tfmot-asp inspect model.keras --json
"""

_PERMUTE = """\
examples:
  tfmot-asp permute model.keras -o permuted.keras
  tfmot-asp permute model.h5 -o permuted.h5 --effort fast --report permuted.json
"""

_PRUNE = """\
examples:
  tfmot-asp prune model.keras -o sparse.keras --calibration images.npy
  tfmot-asp prune model.keras -o sparse.h5 --skip head --skip "stem*" --min-channels 16
  tfmot-asp prune model.keras -o sparse_model --no-permute

With --calibration the kept weights are refitted on the data; without, the smallest weights go, and the result must be
fine-tuned (docs/training.md). Optimizer state is not kept.
"""

_VERIFY = """\
examples:
  tfmot-asp verify exported
  tfmot-asp verify sparse.keras --json
  tfmot-asp verify model.onnx --tensorrt
  tfmot-asp verify model.onnx --tensorrt-log build.log

The exit code is 0 if some weight has the pattern, none has it in part, and all could be read; 1 if not. With --on-gpu
(needs what `measure` needs) also if a product, run 2:4 by cuSPARSELt, differs from the dense one, with --tensorrt
(needs pip install "tfmot-asp[tensorrt]") also if TensorRT refuses the file.
"""

_PLOT = """\
examples:
  tfmot-asp plot model.keras -o graph.dot
  tfmot-asp plot model.keras -o graph.svg

.svg, .png and .pdf need Graphviz; .dot does not.
"""

_EXPORT = """\
examples:
  tfmot-asp export sparse.keras --to saved_model -o exported --batch-size 8
  tfmot-asp export sparse.keras --to onnx -o model.onnx --precision fp16
  tfmot-asp export sparse.keras --to onnx -o model.onnx --precision int8 --calibration images.npy
  tfmot-asp export sparse.keras --to tflite -o model.tflite --precision int8 --calibration images.npy

The file is read back and checked before it takes its place. ONNX needs: pip install "tfmot-asp[onnx]"
"""

_SEARCH = """\
examples:
  tfmot-asp search matrix.npy -o order.npy
  tfmot-asp search conv_kernel.npy --axis 2 --effort thorough
  tfmot-asp search matrix.npy --pattern 1:4 --json

Of a matrix the columns are the channels, and the order is of the columns: new = old[:, order]. Of a Keras kernel, name
the axis that is summed over: 0 of a Dense kernel (inputs, outputs), 2 of a Conv2D kernel (height, width, inputs,
outputs). Needs no TensorFlow.
"""


_MEASURE = """\
examples:
  tfmot-asp measure -o mine.json
  tfmot-asp measure -o mine.json --precision fp16 --force

Needs Linux and an NVIDIA GPU of compute capability 8.0 or newer, which nothing else uses meanwhile; a few minutes:
pip install "tfmot-asp[cuda12]" nvidia-cusparselt-cu12 (or the two for CUDA 13)
"""


def make_parser() -> argparse.ArgumentParser:
    """The parser of ``tfmot-asp``; the namespace it gives has ``run``, the function of the command."""
    parser = argparse.ArgumentParser(
        prog="tfmot-asp",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=_Version)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    command = _add(
        commands, "inspect", "commands", _INSPECT, "show what would be pruned and permuted, what not, and why"
    )
    _model(command)
    _policy(command)

    command = _add(
        commands, "permute", "commands", _PERMUTE, "reorder channels, so that a 2:4 mask keeps more magnitude"
    )
    _model(command)
    _output(command, "OUT", "where to write: .keras, .h5, or a folder for a SavedModel")
    _policy(command)
    _search_options(command)
    command.add_argument("--report", type=Path, metavar="FILE", help="write the report, with all orders, as JSON")
    command.add_argument("--plot", type=Path, metavar="FILE", help="draw the model: .svg, .png, .pdf or .dot")

    command = _add(
        commands, "prune", "commands", _PRUNE, "permute, then set the smallest weights to zero: 2:4 in one shot"
    )
    _model(command)
    _output(command, "OUT", "where to write: .keras, .h5, or a folder for a SavedModel")
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
    _policy(command)
    _search_options(command)

    command = _add(
        commands, "verify", "commands", _VERIFY, "check the pattern in a file: SavedModel, Keras, ONNX, TFLite"
    )
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
    _trust(command)
    _pattern(command)

    command = _add(
        commands, "plot", "commands", _PLOT, "draw the ops: what is permuted, what carries it, what blocks it"
    )
    _model(command)
    _output(command, "FILE", "the picture: .svg, .png, .pdf, or .dot")
    _policy(command)

    command = _add(
        commands, "export", "exporting", _EXPORT, "write a model for TF-TRT, TensorRT or TFLite, and verify it"
    )
    _model(command)
    command.add_argument("--to", required=True, choices=("onnx", "tflite", "saved_model"), help="the format")
    _output(command, "OUT", "where to write: .onnx, .tflite, or a folder")
    _export_options(command)

    command = _add(commands, "search", "matrices", _SEARCH, "find the channel order of one matrix or kernel")
    command.add_argument("weights", type=Path, metavar="WEIGHTS.npy", help="a matrix (rows, channels), or a kernel")
    command.add_argument("-o", "--output", type=Path, metavar="ORDER.npy", help="where to write the order (int64)")
    command.add_argument("--force", action="store_true", help="replace what is there")
    command.add_argument("--axis", type=int, metavar="A", help="the axis that is summed over (default: 1 of a matrix)")
    _pattern(command)
    _search_options(command)
    command.add_argument(
        "--time-limit",
        type=options.seconds,
        metavar="S",
        help="stop after S seconds; results then vary from run to run",
    )

    command = _add(
        commands, "measure", "measuring", _MEASURE, "time products dense and 2:4 on this machine's GPU, for --gpu FILE"
    )
    _output(command, "FILE.json", "where to write the times")
    command.add_argument("--precision", type=options.precision, metavar="P", help="fp16 or int8 (both)")
    return parser


def _add(commands: Any, name: str, module: str, epilog: str, summary: str) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    command.set_defaults(run=_later(module, name))
    output = command.add_argument_group("what is printed")
    form = output.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print one JSON document instead of tables")
    form.add_argument("--summary", action="store_true", help="print what stands above the tables only")
    form.add_argument("--wide", action="store_true", help="never wrap: a row is a line, however long")
    output.add_argument("-q", "--quiet", action="store_true", help="no progress bars, no warnings")
    output.add_argument("-v", "--verbose", action="store_true", help="say more on standard error")
    output.add_argument("--debug", action="store_true", help="show where an error comes from")
    return command


def _later(module: str, name: str) -> Callable[..., int]:
    """The command's function, imported when it is called."""

    def run(*arguments: Any) -> int:
        code: int = getattr(importlib.import_module(f"tfmot_asp.cli.{module}"), name)(*arguments)
        return code

    return run


def _model(command: argparse.ArgumentParser) -> None:
    command.add_argument("model", type=Path, metavar="MODEL", help="a .keras or .h5 file, or a SavedModel of tf_keras")
    command.add_argument(
        "--input-shape",
        type=options.named_shape,
        action="append",
        metavar="[NAME=][TYPE:]SIZES",
        help="for models that leave sizes open, such as 1,224,224,3; once per input, by name if there are several; "
        "with a type where it is not float32, such as ids=int32:1,128",
    )
    _trust(command)


def _trust(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("custom code")
    group.add_argument(
        "--import", dest="imports", action="append", default=[], metavar="MODULE", help="import, to register its layers"
    )
    group.add_argument(
        "--allow-unsafe",
        action="store_true",
        help="load Lambda layers and ops of any kind: they run. Only if you trust it",
    )


def _output(command: argparse.ArgumentParser, metavar: str, text: str) -> None:
    command.add_argument("-o", "--output", type=Path, required=True, metavar=metavar, help=text)
    command.add_argument("--force", action="store_true", help="replace what is there")


def _pattern(command: Any, default: Pattern | None = TWO_FOUR, which: str = "") -> None:
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


def _policy(command: argparse.ArgumentParser) -> None:
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
    _pattern(group)
    group = command.add_argument_group("how fast it would be")
    group.add_argument(
        "--gpu", metavar="GPU", help="to estimate times for: H100, or a .json file of times measured on yours"
    )
    group.add_argument("--precision", type=options.precision, metavar="P", help="of these times: fp16 or int8 (fp16)")
    group.add_argument("--batch-size", type=options.count, metavar="N", help="that sizes are for (1)")


def _search_options(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("the search for channel orders")
    group.add_argument("--effort", choices=("fast", "balanced", "thorough"), default="balanced", help="(balanced)")
    group.add_argument("--seed", type=int, default=0, metavar="S", help="of the search (0)")
    group.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="the result is the same (auto)"
    )


def _export_options(command: argparse.ArgumentParser) -> None:
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
    _pattern(group, None, ", of a model without pruning wrappers")
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


def _switch(group: Any, flag: str, text: str, *, name: str | None = None, value: bool = True) -> None:
    name = name or flag.removeprefix("--").replace("-", "_")
    group.add_argument(flag, dest=name, action="store_const", const=value, help=text)


def _renamed(group: Any, flag: str, old: str, **given: Any) -> None:
    """An option that is still taken under the name that it had."""
    given.setdefault("dest", flag.removeprefix("--"))
    group = group.add_mutually_exclusive_group()
    group.add_argument(flag, **given)
    group.add_argument(old, **{**given, "help": argparse.SUPPRESS})


class _Version(argparse.Action):
    """``--version``: versions from package metadata, without an import of TensorFlow."""

    def __init__(self, option_strings: Any, dest: str, **_: Any) -> None:
        super().__init__(option_strings, dest=argparse.SUPPRESS, nargs=0, help="show versions and exit")

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        import platform
        from importlib import metadata

        from tfmot_asp import __version__

        found = [f"Python {platform.python_version()}"]
        for package in ("tensorflow", "tf-keras", "keras", "tensorflow-model-optimization"):
            try:
                found.append(f"{package} {metadata.version(package)}")
            except metadata.PackageNotFoundError:
                continue
        sys.stdout.write(f"tfmot-asp {__version__} ({', '.join(found)})\n")
        parser.exit()
