"""Write pruned models for deployment, and verify what was written: ``saved_model(model, path)``, ``verify(path)``."""

# Imported here and not on first use: importing a submodule later would put the module over the function of its name.
from tfmot_asp.export.onnx import onnx
from tfmot_asp.export.run_sparse import ProductRun, SparseRun, run_sparse
from tfmot_asp.export.saved_model import saved_model
from tfmot_asp.export.tensorrt.build_log import TensorRTSparsity, parse_tensorrt_log
from tfmot_asp.export.tensorrt.builder_check import TensorRTCheck, check_with_tensorrt
from tfmot_asp.export.tensorrt.trtexec import trtexec_command
from tfmot_asp.export.tflite import tflite
from tfmot_asp.export.tftrt import tftrt
from tfmot_asp.export.verify import verify
from tfmot_asp.reports.verification import VerificationReport, VerifiedLayer

__all__ = [
    "ProductRun",
    "SparseRun",
    "TensorRTCheck",
    "TensorRTSparsity",
    "VerificationReport",
    "VerifiedLayer",
    "check_with_tensorrt",
    "onnx",
    "parse_tensorrt_log",
    "run_sparse",
    "saved_model",
    "tflite",
    "tftrt",
    "trtexec_command",
    "verify",
]
