"""From a TensorFlow function to a TFLite file, by TensorFlow's converter."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tensorflow as tf

from tfmot_asp.export.lowering.inference import holder_of
from tfmot_asp.export.tflite_files.file_checks import Samples, quiet
from tfmot_asp.export.tflite_files.tflite_file import TfliteFile
from tfmot_asp.graph.flatten import trace_function
from tfmot_asp.keras_models.modules import modules_in
from tfmot_asp.keras_models.which_keras import is_keras3

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Conversion:
    """What is to be converted, and how: the arguments of ``export.tflite``.

    Attributes:
        model: the Keras model, for its name and its lookup tables.
        precision: ``"fp32"``, ``"fp16"`` or ``"int8"``.
        samples: typical inputs, for int8.
        trained: whether the model was trained quantization-aware, and brings its ranges.
        io_dtype: of inputs and outputs of an int8 file.
        select_tf_ops: whether TensorFlow's own kernels may run what TFLite lacks.
    """

    model: Any
    precision: str
    samples: Samples
    trained: bool
    io_dtype: tf.DType
    select_tf_ops: bool

    @property
    def better(self) -> str:
        """What there is where int8 after training does not do."""
        if is_keras3(self.model):
            return "use precision='fp16'; quantization-aware training is for tf_keras"
        return "train it quantization-aware with tfmot_asp.quantize_model"

    def run(self, function: Any, written: Path) -> None:
        """Writes the file."""
        ops = tf.lite.OpsSet
        if self.precision != "int8" or self.trained:
            written.write_bytes(self._explained(function, [ops.TFLITE_BUILTINS]))
            return
        self._check_loops(function, written)
        try:
            content = self._convert(function, [ops.TFLITE_BUILTINS_INT8], self.precision)
        except Exception as error:  # whatever the converter raises, the second attempt tells
            logger.warning("Not all of %s can be int8, the rest stays float: %s", self.model.name, _first_line(error))
            content = self._explained(function, [ops.TFLITE_BUILTINS, ops.TFLITE_BUILTINS_INT8])
        written.write_bytes(content)

    def _check_loops(self, function: Any, written: Path) -> None:
        """Refuses what would crash the process: TensorFlow 2.21's calibrator, in a loop that collects a sequence."""
        if not any(op.type.startswith("TensorList") for op in trace_function(function).ops):
            return
        written.write_bytes(self._explained(function, [tf.lite.OpsSet.TFLITE_BUILTINS], "fp32"))
        if any(op.type == "WHILE" for graph in TfliteFile(written).subgraphs for op in graph.ops):
            recurrent = [str(part.name) for part in modules_in(self.model) if hasattr(part, "return_sequences")]
            what = f"a recurrent layer, {recurrent[0]!r}," if recurrent else "code"
            instead = "Give the layer unroll=True, use tf_keras' LSTM (which becomes one op), or " if recurrent else ""
            raise ValueError(
                f"{self.model.name!r} has {what} that becomes a loop, on which TFLite's calibrator crashes. "
                f"{instead or 'Write the loop out, or '}{self.better}"
            )

    def _explained(self, function: Any, supported: Sequence[Any], precision: str | None = None) -> bytes:
        try:
            return self._convert(function, supported, precision or self.precision)
        except Exception as error:  # ConverterError is no public name, and others pass through it
            raise ValueError(_explanation(error, self.model.name)) from error

    def _convert(self, function: Any, supported: Sequence[Any], precision: str) -> bytes:
        converter = tf.lite.TFLiteConverter.from_concrete_functions([function], holder_of(function, self.model))
        more = [tf.lite.OpsSet.SELECT_TF_OPS] if self.select_tf_ops else []
        converter.target_spec.supported_ops = [*supported, *more]
        if precision != "fp32":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if precision == "fp16":
            converter.target_spec.supported_types = [tf.float16]
        if precision == "int8":
            if not self.trained:
                converter.representative_dataset = lambda: iter(self.samples)
            if all(spec.dtype.is_floating for spec in function.structured_input_signature[0]):
                converter.inference_input_type = self.io_dtype
            converter.inference_output_type = self.io_dtype
        with quiet():
            return converter.convert()


def _explanation(error: BaseException, name: str) -> str:
    lacking = re.findall(r"^\s*(?:TF Select|Custom) ops: (.+)$", str(error), re.MULTILINE)
    if not lacking:
        return f"TFLite's converter cannot convert {name!r}: {_first_line(error)}"
    ops = ", ".join(sorted({op.strip() for line in lacking for op in line.split(",")}))
    return (
        f"TFLite has no ops for {ops}, which {name!r} uses. Replace the layer, or give select_tf_ops=True: they then "
        "run in TensorFlow's own kernels (SELECT_TF_OPS), which the app must ship"
    )


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if "error:" in line), lines[0] if lines else type(error).__name__)
