"""Write pruned models for deployment, and verify what was written: ``saved_model(model, path)``, ``verify(path)``.

Every name is resolved on first use: reading ONNX files needs no TensorFlow.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

_HOME = {
    "ProductRun": "tfmot_asp.export.run_sparse",
    "SparseRun": "tfmot_asp.export.run_sparse",
    "TensorRTCheck": "tfmot_asp.export.tensorrt.builder_check",
    "TensorRTSparsity": "tfmot_asp.export.tensorrt.build_log",
    "VerificationReport": "tfmot_asp.reports.verification",
    "VerifiedLayer": "tfmot_asp.reports.verification",
    "check_with_tensorrt": "tfmot_asp.export.tensorrt.builder_check",
    "onnx": "tfmot_asp.export.onnx",
    "parse_tensorrt_log": "tfmot_asp.export.tensorrt.build_log",
    "run_sparse": "tfmot_asp.export.run_sparse",
    "saved_model": "tfmot_asp.export.saved_model",
    "tflite": "tfmot_asp.export.tflite",
    "tftrt": "tfmot_asp.export.tftrt",
    "trtexec_command": "tfmot_asp.export.tensorrt.trtexec",
    "verify": "tfmot_asp.export.verify",
}

__all__ = sorted(_HOME)


if TYPE_CHECKING:
    from tfmot_asp.export.onnx import onnx as onnx
    from tfmot_asp.export.run_sparse import ProductRun as ProductRun
    from tfmot_asp.export.run_sparse import SparseRun as SparseRun
    from tfmot_asp.export.run_sparse import run_sparse as run_sparse
    from tfmot_asp.export.saved_model import saved_model as saved_model
    from tfmot_asp.export.tensorrt.build_log import TensorRTSparsity as TensorRTSparsity
    from tfmot_asp.export.tensorrt.build_log import parse_tensorrt_log as parse_tensorrt_log
    from tfmot_asp.export.tensorrt.builder_check import TensorRTCheck as TensorRTCheck
    from tfmot_asp.export.tensorrt.builder_check import check_with_tensorrt as check_with_tensorrt
    from tfmot_asp.export.tensorrt.trtexec import trtexec_command as trtexec_command
    from tfmot_asp.export.tflite import tflite as tflite
    from tfmot_asp.export.tftrt import tftrt as tftrt
    from tfmot_asp.export.verify import verify as verify
    from tfmot_asp.reports.verification import VerificationReport as VerificationReport
    from tfmot_asp.reports.verification import VerifiedLayer as VerifiedLayer
else:

    def __getattr__(name: str) -> Any:
        if name not in _HOME:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
        return getattr(importlib.import_module(_HOME[name]), name)


class _Package(ModuleType):
    """Some functions have the names of their modules, and importing a module puts it on its package.

    Where that would hide the function, the function is put there.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, ModuleType) and value.__name__ == _HOME.get(name):
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
