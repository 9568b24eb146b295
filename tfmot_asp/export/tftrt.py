"""Converts a SavedModel with TF-TRT, TensorFlow's own bridge to TensorRT, with sparse kernels allowed.

TF-TRT is part of TensorFlow up to 2.17 (Linux, built against TensorRT 8.6). It asks TensorRT for sparse kernels
(``BuilderFlag::kSPARSE_WEIGHTS``) where the GPU has them, in TensorFlow 2.12 to 2.17, unless the environment variable
``TF_TRT_SPARSE_MODE`` is 0; its log then says ``[TF-TRT] Sparse compute capability is enabled.``
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfmot_asp.export.calibration_data import calibration_batches
from tfmot_asp.export.keywords import takes_aliases
from tfmot_asp.export.read_tensorflow import load_signature
from tfmot_asp.export.tensorrt.tf_trt import conversion_parameters, new_converter
from tfmot_asp.export.verify import verify
from tfmot_asp.files import replacing
from tfmot_asp.graph.flat_graph import Op
from tfmot_asp.graph.flatten import trace_function
from tfmot_asp.graph.ops import product_of
from tfmot_asp.pattern import TWO_FOUR, PatternLike
from tfmot_asp.reports.progress_bar import Stages
from tfmot_asp.types import CalibrationData, InputShapes

logger = logging.getLogger(__name__)

SPARSE_MODE = "TF_TRT_SPARSE_MODE"


@takes_aliases
def tftrt(
    saved_model_dir: Any,
    out_dir: Any,
    precision: str = "fp16",
    *,
    input_shapes: InputShapes | None = None,
    calibration_data: CalibrationData | None = None,
    max_workspace_size_bytes: int = 8 << 30,
    minimum_segment_size: int = 3,
    maximum_cached_engines: int = 1,
    allow_build_at_runtime: bool = True,
    overwrite: bool = False,
    allow_unsafe: bool = False,
    sparsity_m_by_n: PatternLike = TWO_FOUR,
    progress: bool | None = None,
) -> Any:
    """Converts a SavedModel to one whose graph runs in TensorRT, sparse where that is faster.

    The SavedModel's constants are checked for 2:4 first, TensorRT's engines are built for the given shapes, and the
    result is saved with them: they fit the kind of GPU that they were built on.

    Args:
        saved_model_dir: what ``export.saved_model`` wrote, or any SavedModel with a ``serving_default`` signature.
        out_dir: folder to write.
        precision: ``"fp32"``, ``"fp16"`` or ``"int8"``. TensorRT documents sparse kernels for fp16 and int8.
        input_shapes: shapes to build engines for: one shape, a list of shapes for several inputs, or a dict by input
            name. A list of such, each as a dict, makes one profile that spans all of them. Needed where the signature
            leaves an axis open; by default the signature's own shapes.
        calibration_data: typical inputs for int8, as ``export.onnx`` takes them. All batches must have one shape.
        max_workspace_size_bytes: GPU memory that TensorRT may use to try kernels, and to run them.
        minimum_segment_size: fewest ops that are worth an engine.
        maximum_cached_engines: engines kept for different input shapes; TF-TRT runs others in TensorFlow.
        allow_build_at_runtime: whether an engine may be built while serving, for a shape that none was built for.
        overwrite: replace an existing SavedModel at ``out_dir``.
        allow_unsafe: convert a SavedModel that can run code when it is loaded, as in ``export.verify``.
        sparsity_m_by_n: the pattern that the SavedModel is checked for, as in ``export.verify``. TensorRT's sparse
            kernels are for 2:4, or for what has more zeros, such as ``"1:4"``.
        progress: show a progress bar; by default if stderr is a terminal.

    Returns:
        TF-TRT's converter, after ``convert``, ``build`` and ``save``; its ``summary()`` prints what became an engine.

    Raises:
        RuntimeError: if this TensorFlow has no TensorRT, or there is no GPU.
        ValueError: if an argument is unusable, or the SavedModel has no 2:4 weights, or can run code.
        FileNotFoundError: if there is no SavedModel.
        FileExistsError: if ``out_dir`` exists.

    Example:
        >>> tfmot_asp.export.saved_model(model, "exported", batch_size=64)
        >>> tfmot_asp.export.tftrt("exported", "converted", precision="fp16")
    """
    parameters = conversion_parameters(
        precision,
        max_workspace_size_bytes=max_workspace_size_bytes,
        minimum_segment_size=minimum_segment_size,
        maximum_cached_engines=maximum_cached_engines,
        allow_build_at_runtime=allow_build_at_runtime,
        use_calibration=calibration_data is not None,
    )
    source, out = Path(saved_model_dir), Path(out_dir)
    if parameters["precision_mode"] == "INT8" and calibration_data is None:
        raise ValueError("precision='int8' needs calibration_data: some batches of typical inputs")
    if parameters["precision_mode"] != "INT8" and calibration_data is not None:
        raise ValueError(f"calibration_data is for precision='int8' only, got {precision!r}")
    report = verify(source, sparsity_m_by_n=sparsity_m_by_n, allow_unsafe=allow_unsafe)
    if not report.sparse:
        pattern = report.sparsity_m_by_n
        raise ValueError(
            f"no weight in {str(source)!r} is {pattern}, so sparse kernels have nothing to gain:\n{report}"
        )
    function = load_signature(source, allow_unsafe)
    if cast := [op.name for op in trace_function(function).ops if product_of(op) and _reads_a_cast(op)]:
        logger.warning(
            "%d products of %s read weights through a Cast (the first is %s), which TF-TRT may leave in TensorFlow: "
            "export the SavedModel without precision=; the one of tftrt makes half-precision engines all the same",
            len(cast),
            source,
            cast[0],
        )
    batches = example_inputs(function, input_shapes)
    converter = new_converter(source, parameters, dynamic=_has_open_axes(function))
    with (
        replacing(out, overwrite=overwrite, what="a SavedModel", folder=True) as new,
        Stages("tftrt", ("converting", "building", "writing"), progress) as at,
    ):
        at.begin("converting")
        if calibration_data is None:
            converter.convert()
        else:
            converter.convert(calibration_input_fn=lambda: calibration_batches(calibration_data, _specs(function)))
        at.begin("building")
        converter.build(input_fn=lambda: iter(batches))
        at.begin("writing")
        converter.save(str(new))
    if os.environ.get(SPARSE_MODE) == "0":
        logger.warning("%s=0 is set: the engines were built without sparse kernels", SPARSE_MODE)
    return converter


def example_inputs(function: Any, input_shapes: InputShapes | None = None) -> list[dict[str, tf.Tensor]]:
    """Random inputs of the shapes that engines are to be built for.

    Args:
        function: the signature of a SavedModel.
        input_shapes: as for ``tftrt``.

    Returns:
        A dict of tensors by input name for each set of shapes.

    Raises:
        ValueError: if the shapes do not fit the signature, or are missing where it leaves an axis open.
    """
    specs = {spec.name: spec for spec in _specs(function)}
    given: Any = input_shapes
    several = isinstance(given, Sequence) and all(isinstance(shapes, Mapping) for shapes in given)
    sets = list(given) if several and given else [given]
    generator = np.random.default_rng(0)
    batches = []
    for shapes in sets:
        chosen = _shapes(specs, shapes)
        batch = {}
        for name, spec in specs.items():
            values = generator.standard_normal(chosen[name]) if spec.dtype.is_floating else np.zeros(chosen[name])
            batch[name] = tf.cast(tf.constant(values), spec.dtype)
        batches.append(batch)
    return batches


def _shapes(specs: dict[str, tf.TensorSpec], shapes: Any) -> dict[str, list[int]]:
    names = list(specs)
    if shapes is None:
        given: dict[str, Any] = {name: spec.shape for name, spec in specs.items()}
    elif isinstance(shapes, Mapping):
        given = dict(shapes)
    elif all(isinstance(size, int | np.integer) for size in shapes):
        given = dict.fromkeys(names, shapes) if len(names) == 1 else {}
    else:
        given = dict(zip(names, shapes, strict=True)) if len(shapes) == len(names) else {}
    if sorted(given) != sorted(names):
        raise ValueError(f"input_shapes must name the inputs {names}, got {shapes!r}")
    for name, shape in given.items():
        sizes = list(shape)
        if any(size is None for size in sizes):
            raise ValueError(
                f"input {name!r} has the open shape {tuple(sizes)}, and an engine needs its sizes: pass "
                "input_shapes=(batch, ...), or export the SavedModel with batch_size=..."
            )
        if not specs[name].shape.is_compatible_with(sizes) or any(size < 1 for size in sizes):
            raise ValueError(f"input {name!r} takes {tuple(specs[name].shape)}, got {tuple(sizes)}")
        given[name] = [int(size) for size in sizes]
    return given


def _specs(function: Any) -> list[tf.TensorSpec]:
    return list(function.structured_input_signature[1].values())


def _reads_a_cast(op: Op) -> bool:
    maker = op.inputs[1].op
    return (
        maker is not None and maker.type == "Cast" and maker.inputs[0].op is not None and not maker.inputs[0].op.inputs
    )


def _has_open_axes(function: Any) -> bool:
    return any(not spec.shape.is_fully_defined() for spec in _specs(function))
