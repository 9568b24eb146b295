"""TensorRT's own parser and builder on an ONNX file, without a GPU: what it refuses, by node.

The wheel ``tensorrt-rtx-cu13`` compiles engines ahead of time for a GPU that need not be there. It does so in a process
of its own, since some graphs end it. That says whether a file is taken; which layers get sparse kernels is only said by
the log of a build on the GPU (``parse_tensorrt_log``).
"""

from __future__ import annotations

import importlib.util
import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tfmot_asp.export.onnx_files.onnx_graph import load_onnx
from tfmot_asp.export.tensorrt import build_ahead
from tfmot_asp.export.tensorrt.trtexec import DEFAULT_BATCH_SIZES, Shapes, check_batch_sizes, shape_profiles
from tfmot_asp.files import temporary_folder
from tfmot_asp.reports.document import Document
from tfmot_asp.reports.readable import Readable
from tfmot_asp.reports.table import Marked
from tfmot_asp.types import StrPath

MODULE = "tensorrt_rtx"
GPUS = ("SM80", "SM86", "SM89", "SM120")
_SECONDS = 1800


@dataclass(frozen=True)
class TensorRTCheck(Readable):
    """What TensorRT made of a file. ``str()`` is a few lines; ``to_dict()`` is plain data for JSON.

    Attributes:
        path: of the file.
        version: of TensorRT for RTX.
        gpu: compute capability that an engine was built for.
        parsed: whether the parser took the file.
        built: whether the builder made an engine of it.
        refused: what was refused and why, a line for each node, or for the whole.
    """

    path: str
    version: str
    gpu: str
    parsed: bool
    built: bool
    refused: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether an engine was built."""
        return self.built

    def document(self) -> Document:
        done = "parses and builds" if self.built else "parses, but does not build" if self.parsed else "does not parse"
        summary = f"TensorRT for RTX {self.version}, {self.gpu}: {done}"
        return Document([Marked(summary, "good" if self.ok else "bad"), *(f"  {line}" for line in self.refused)])

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def check_installed() -> None:
    """Raises ImportError without the wheel."""
    if importlib.util.find_spec(MODULE) is None:
        raise ImportError(
            'checking with TensorRT needs its parser and builder: pip install "tfmot-asp[tensorrt]" '
            "(Linux and Windows, x86-64; no GPU is needed)"
        )


def check_with_tensorrt(
    path: StrPath,
    *,
    batch_sizes: Sequence[int] = DEFAULT_BATCH_SIZES,
    shapes: Shapes | None = None,
    gpu: str = "SM80",
) -> TensorRTCheck:
    """Parses an ONNX file with TensorRT's parser and builds an engine with sparse weights allowed; needs no GPU.

    Args:
        path: an ONNX file.
        batch_sizes: sizes for an open batch, as in ``trtexec_command``.
        shapes: sizes for other open axes, as in ``trtexec_command``.
        gpu: compute capability to build for: ``"SM80"``, ``"SM86"``, ``"SM89"`` or ``"SM120"``.

    Returns:
        A ``TensorRTCheck``; its ``refused`` names nodes and reasons.

    Raises:
        ImportError: without the wheel tensorrt-rtx-cu13 (the extra ``tensorrt``).
        ValueError: if the file is no ONNX model, an open axis has no size, or an argument makes no sense.

    Example:
        >>> tfmot_asp.export.check_with_tensorrt("model.onnx").ok
        True
    """
    if gpu not in GPUS:
        raise ValueError(f"gpu must be one of {', '.join(map(repr, GPUS))}, got {gpu!r}")
    sizes = shape_profiles(load_onnx(Path(path)), check_batch_sizes(batch_sizes), dict(shapes or {}))
    check_installed()
    with temporary_folder() as folder:
        answer = folder / "answer.json"
        task = {"onnx": str(path), "profiles": sizes, "gpu": gpu, "answer": str(answer)}
        command = [sys.executable, build_ahead.__file__, json.dumps(task)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS)
            status: int | None = done.returncode
        except subprocess.TimeoutExpired:
            status = None
        found = json.loads(answer.read_text()) if answer.exists() else {}
    refused = list(found.get("refused", ()))
    if status is None:
        refused.append(f"the builder took longer than {_SECONDS} seconds")
    elif status < 0:
        refused.append(f"the {'builder' if found.get('parsed') else 'parser'} crashed ({signal.Signals(-status).name})")
    elif status:
        refused.append(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"exit code {status}")
    built = bool(found.get("built")) and status == 0
    return TensorRTCheck(str(path), found.get("version", "?"), gpu, bool(found.get("parsed")), built, tuple(refused))
