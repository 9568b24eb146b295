"""From a TensorFlow function to an ONNX model, by tf2onnx."""

from __future__ import annotations

import contextlib
import gc
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MethodType
from typing import TYPE_CHECKING, Any

import tensorflow as tf

from tfmot_asp.export.lowering.widening import computes_in_half, widened
from tfmot_asp.export.onnx_files.axis_names import axis_names
from tfmot_asp.export.onnx_files.onnx_graph import BATCH, Scope, import_onnx, node_name
from tfmot_asp.export.onnx_files.rewrites import REWRITES
from tfmot_asp.export.onnx_files.tensorrt_forms import suit_tensorrt
from tfmot_asp.export.onnx_files.weight_names import restore_names
from tfmot_asp.graph.flatten import trace_function
from tfmot_asp.graph.inputs import has_open_batch
from tfmot_asp.graph.open_axes import Place

if TYPE_CHECKING:
    import onnx

logger = logging.getLogger(__name__)

# QuantizeLinear has an axis from 13 on; TensorRT 8.6 reads up to 17, which is also the first with LayerNormalization.
MIN_OPSET = 13
DEFAULT_OPSET = 17

_NOISY = ("tf2onnx", "tensorflow")


def import_tf2onnx() -> Any:
    """The ``tf2onnx`` package, and ``onnxruntime`` beside it.

    Raises:
        ImportError: if one of them is missing, with the extra that installs it.
    """
    import_onnx()
    try:
        import onnxruntime  # noqa: F401  what was converted is run
        import tf2onnx
        import tf2onnx.optimizer
        import tf2onnx.tf_loader
        import tf2onnx.tfonnx
    except ImportError as error:
        raise ImportError(
            f'export.onnx needs tf2onnx and onnxruntime ({error}): pip install "tfmot-asp[onnx]"'
        ) from error
    return tf2onnx


def check_opset(opset: Any) -> int:
    """Validates an opset number.

    Raises:
        ValueError: unless tf2onnx can write that opset and quantization works in it.
    """
    largest = max(import_tf2onnx().constants.OPSET_TO_IR_VERSION)
    if isinstance(opset, bool) or not isinstance(opset, int) or not MIN_OPSET <= opset <= largest:
        raise ValueError(
            f"opset must be {MIN_OPSET} to {largest} (what the installed tf2onnx writes), got {opset!r}; "
            f"TensorRT 8.6 reads up to 17, TensorRT 10 and 11 all of them"
        )
    return opset


def convert(
    function: Any,
    opset: int = DEFAULT_OPSET,
    inputs_as_nchw: Sequence[str] = (),
    output_order: Sequence[str] | None = None,
    outputs_as_nchw: Sequence[str] = (),
    variables: Sequence[tf.Variable] = (),
) -> onnx.ModelProto:
    """Converts a frozen function.

    Args:
        function: a ``ConcreteFunction`` without variables; ``structured_outputs`` is a dict.
        opset: of the ONNX file.
        inputs_as_nchw: names of image inputs that the file is to take channels first.
        output_order: names of the outputs, in the order in which the file is to list them.
        outputs_as_nchw: names of outputs of rank 4 that the file is to give channels first.
        variables: those that the function had before it was frozen, for the names of weights.

    Returns:
        The model in float32, checked by onnx's checker with shapes inferred. Its inputs and outputs have the names and
        types of the function's; an open first axis of all of them is called ``"batch"``.

    Raises:
        ValueError: if an input is a string, the model is quantized, or an op has no counterpart in ONNX.
        RuntimeError: if what tf2onnx makes of the model is invalid.
    """
    tf2onnx, onnx = import_tf2onnx(), import_onnx()
    specs = list(function.structured_input_signature[0])
    _check_inputs(specs)
    _check_images("inputs_as_nchw", inputs_as_nchw, {str(spec.name): spec.shape.rank for spec in specs})
    _check_images(
        "outputs_as_nchw", outputs_as_nchw, {n: tensor.shape.rank for n, tensor in function.structured_outputs.items()}
    )
    _check_not_quantized(function)
    if computes_in_half(function):
        function = widened(function, keep_io=True)
    inputs, outputs = [tensor.name for tensor in function.inputs], [tensor.name for tensor in function.outputs]
    names = {tensor.name: spec.name for tensor, spec in zip(function.inputs, specs, strict=True)}
    names |= dict(zip(outputs, sorted(function.structured_outputs), strict=True))
    with _quiet(), tf.device("/cpu:0"):
        graph_def = function.graph.as_graph_def()
        with tf.Graph().as_default():
            graph_def = tf2onnx.tf_loader.tf_optimize(inputs, outputs, graph_def)
        axes = axis_names(graph_def, inputs, outputs, specs)

        def converted() -> Any:
            with tf.Graph().as_default() as graph:
                tf.import_graph_def(graph_def, name="")
                return tf2onnx.tfonnx.process_tf_graph(
                    graph,
                    opset=opset,
                    input_names=inputs,
                    output_names=outputs,
                    tensors_to_rename=names,
                    inputs_as_nchw=[name for name in inputs if names[name] in inputs_as_nchw],
                    outputs_as_nchw=[name for name in outputs if names[name] in outputs_as_nchw],
                    custom_rewriter=REWRITES,
                )

        try:
            model = _optimized(converted)
        except Exception as error:  # handlers fail in as many ways as there are ops
            raise ValueError(
                f"tf2onnx cannot convert the model to opset {opset}: {error}{_on_complex_numbers(function)}"
            ) from error
    gc.collect()  # the graphs refer to themselves, and hold several copies of the weights
    _check_ops(model, opset, function)
    restore_names(model, function, variables)
    suit_tensorrt(model)
    _tidy(model, list(output_order or function.structured_outputs), specs, axes)
    try:
        model = onnx.shape_inference.infer_shapes(model, data_prop=True)
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # ValidationError, InferenceError
        raise RuntimeError(f"tf2onnx made an invalid file of the model: {error}") from error
    return model


def _optimized(converted: Callable[[], Any]) -> onnx.ModelProto:
    """The model of a graph after tf2onnx's optimizers, without copying it for each of them unless one fails."""
    optimize = import_tf2onnx().optimizer.optimize_graph
    graph = converted()
    graph.update_proto = MethodType(_update_but_constants, graph)
    try:
        graph = optimize(graph, catch_errors=False)
    except Exception as error:
        logger.debug("An optimizer of tf2onnx failed, and is left out: %s", error)
        graph = optimize(converted(), catch_errors=True)
    return graph.make_model("tfmot_asp")


def _update_but_constants(graph: Any, external_tensor_storage: Any = None) -> None:
    """In place of tf2onnx's method, which each of its optimizers calls: it also copies all constants into their nodes.

    Nothing reads them there, and protocol buffers do not give the memory of what is replaced back.
    """
    for node in graph.get_nodes():
        if not node.is_const():
            node.update_proto(external_tensor_storage)


def _check_inputs(specs: Sequence[tf.TensorSpec]) -> None:
    for spec in specs:
        if not (spec.dtype.is_floating or spec.dtype.is_integer or spec.dtype.is_bool):
            raise ValueError(
                f"Input {spec.name!r} is of type {spec.dtype.name}, which ONNX for TensorRT does not take: export the "
                "part of the model after the lookup of its strings"
            )


def _check_images(what: str, given: Sequence[str], ranks: Mapping[str, int | None]) -> None:
    images = {name for name, rank in ranks.items() if rank == 4}
    if isinstance(given, str) or not set(given) <= images:
        kind = what.split("_")[0]
        raise ValueError(f"{what} must list {kind} of rank 4, out of {sorted(images)}; got {given!r}")


def _check_not_quantized(function: Any) -> None:
    """Raises for a model of quantization-aware training: its ranges are not symmetric, nor where TensorRT has them."""
    fake = [op.name for op in trace_function(function).ops if op.type.startswith("FakeQuant")]
    if fake:
        raise ValueError(
            f"the model is quantized, by tfmot's quantization-aware training ({fake[0]} and {len(fake) - 1} more); "
            "export.tflite writes it. For TensorRT export the float model that it was made of, with precision='int8' "
            "and calibration_data"
        )


def _on_complex_numbers(function: Any) -> str:
    """What to do about complex numbers that were left in a function, as an end of a message."""
    left = [op for op in trace_function(function).ops if any(tensor.dtype.is_complex for tensor in op.outputs)]
    if not left:
        return ""
    return (
        f". ONNX has no complex numbers, which {left[0].type} ({left[0].name}) makes: Fourier transforms are written "
        "without, outside of loops, along axes of known lengths (give input_shapes), up to what makes them real again"
    )


def _check_ops(model: onnx.ModelProto, opset: int, function: Any) -> None:
    """Raises if the model holds ops that tf2onnx passed on as they were."""
    onnx = import_onnx()
    unknown: dict[str, list[str]] = {}
    for _, node in Scope(model, model.graph).walk():
        if node.domain in ("", "ai.onnx") and not onnx.defs.has(node.op_type, opset):
            unknown.setdefault(node.op_type, []).append(node_name(node))
    if unknown:
        hint = "Try a higher opset, replace the layers, or leave them out of the exported model"
        if any(op.startswith("Xla") for op in unknown):
            hint = "In loops they are not rewritten: export one step of the loop, and repeat it where the file runs"
        ops = "; ".join(f"{op} ({', '.join(names[:3])}{', ...' * (len(names) > 3)})" for op, names in unknown.items())
        raise ValueError(
            f"tf2onnx has no counterpart in ONNX opset {opset} for these TensorFlow ops: {ops}"
            + (_on_complex_numbers(function) or f". {hint}")
        )


def _tidy(
    model: onnx.ModelProto, output_order: list[str], specs: Sequence[tf.TensorSpec], axes: dict[Place, str]
) -> None:
    """Puts outputs into the model's order, names open axes, and drops opsets that nothing uses."""
    outputs = sorted(model.graph.output, key=lambda value: output_order.index(value.name))
    del model.graph.output[:]
    model.graph.output.extend(outputs)
    order = {spec.name: i for i, spec in enumerate(specs)}
    inputs = sorted(model.graph.input, key=lambda value: order.get(value.name, len(order)))
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    for value in model.graph.input:
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if not dim.dim_value and (value.name, axis) in axes:
                dim.dim_param = axes[value.name, axis]
    batched = has_open_batch(specs)
    for value in model.graph.output:
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if not dim.dim_value:
                dim.Clear()  # tf2onnx's own name; what the shapes say of it is found below
                if batched and axis == 0:
                    dim.dim_param = BATCH
    used = {node.domain for _, node in Scope(model, model.graph).walk()} | {""}
    kept = [opset for opset in model.opset_import if opset.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(kept)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Holds back what tf2onnx and TensorFlow log on the way: what is wrong is raised, with more to go by."""
    loggers = [logging.getLogger(name) for name in _NOISY]
    loggers += [entry for name, entry in logging.root.manager.loggerDict.items() if name.startswith("tf2onnx.")]  # type: ignore[misc]
    levels = [entry.level for entry in loggers if isinstance(entry, logging.Logger)]
    loggers = [entry for entry in loggers if isinstance(entry, logging.Logger)]
    for entry in loggers:
        entry.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for entry, level in zip(loggers, levels, strict=True):
            entry.setLevel(level)
