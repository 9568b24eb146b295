"""Gives nodes the form that TensorRT's parser takes, where it refuses what tf2onnx writes; they compute the same.

- ``Resize`` of nearest neighbours: TensorFlow's rule ``floor((x + 0.5) / scale)`` is ONNX's ``tf_half_pixel_for_nn``,
  which TensorRT refuses. For a whole factor ``floor(x / scale)`` is the same, for others rounding half up of
  ``(x + 0.5) / scale - 0.5``.
- ``Resize`` by a scale such as 9/20, whose nearest float32 is less: rounded down, 20 becomes 8. The next larger does.
- ``Loop`` of a recurrent layer: TensorRT wants a trip count beside the condition. The bound of the loop's counter, the
  length of the sequence, is one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tfmot_asp.export.onnx_files.onnx_graph import Scope, attributes, import_onnx

if TYPE_CHECKING:
    import onnx


def suit_tensorrt(model: onnx.ModelProto) -> None:
    """Changes a model in place."""
    scope = Scope(model, model.graph)
    for inner, node in scope.walk():
        if node.op_type == "Resize":
            _suit_resize(inner, node)
    for node in model.graph.node:
        if node.op_type == "Resize" and len(node.input) == 3:
            _fit_scales(scope, model, node)
    # In the bodies of loops the names of counts would not be unlike those around them.
    for index, node in reversed(list(enumerate(model.graph.node))):
        if node.op_type == "Loop" and not node.input[0]:
            _suit_loop(scope, model.graph, index, node)


def _suit_loop(scope: Scope, graph: onnx.GraphProto, index: int, loop: onnx.NodeProto) -> None:
    onnx, bound, count = import_onnx(), _bound(scope, loop), f"{loop.output[0]}/trip_count"
    if isinstance(bound, np.ndarray):
        graph.initializer.append(onnx.numpy_helper.from_array(bound.astype(np.int64).reshape(()), count))
    elif bound is not None:
        name = f"{loop.output[0]}/Cast"
        cast = onnx.helper.make_node("Cast", [bound], [count], name=name, to=onnx.TensorProto.INT64)
        graph.node.insert(index, cast)
    else:
        return
    loop.input[0] = count


def _suit_resize(scope: Scope, node: onnx.NodeProto) -> None:
    given = attributes(node)
    if given.get("mode") != "nearest" or given.get("coordinate_transformation_mode") != "tf_half_pixel_for_nn":
        return
    if given.get("nearest_mode") != "floor":
        return
    scales = node.input[2] if len(node.input) > 2 else ""
    known = scope.value(scales) if scales and not scope.varies(scales) else ()
    whole = len(known) > 0 and all(scale >= 1 and scale == int(scale) for scale in known)
    form = ("asymmetric", "floor") if whole else ("half_pixel", "round_prefer_ceil")
    for attribute in node.attribute:
        if attribute.name == "coordinate_transformation_mode":
            attribute.s = form[0].encode()
        if attribute.name == "nearest_mode":
            attribute.s = form[1].encode()


def _fit_scales(scope: Scope, model: onnx.ModelProto, resize: onnx.NodeProto) -> None:
    """Makes scales of a ``Resize`` large enough for the sizes that they stand for."""
    onnx, scales = import_onnx(), resize.input[2]
    if not scales or scope.varies(scales) or np.all(scope.value(scales) % 1 == 0):
        return
    graph = onnx.shape_inference.infer_shapes(model).graph  # anew: one Resize may read another
    value = next((value for value in (*graph.value_info, *graph.input) if value.name == resize.input[0]), None)
    sizes = [] if value is None else [dim.dim_value for dim in value.type.tensor_type.shape.dim]
    fitting = scope.value(scales).astype(np.float32, copy=True)
    if len(sizes) != len(fitting):
        return
    for axis, size in enumerate(sizes):
        wanted = round(size * float(fitting[axis]))
        if abs(size * fitting[axis] - wanted) < 1e-3:
            while size * float(fitting[axis]) < wanted:
                fitting[axis] = np.nextafter(fitting[axis], np.float32(np.inf))
    if not np.array_equal(fitting, scope.value(scales)):
        resize.input[2] = f"{resize.output[0]}/scales"
        model.graph.initializer.append(onnx.numpy_helper.from_array(fitting, resize.input[2]))


def _bound(scope: Scope, loop: onnx.NodeProto) -> np.ndarray | str | None:
    """Below what a loop's condition keeps a counter that starts at 0 or more and grows by 1.

    Returns:
        A constant's value, the name of a tensor around the loop, or None if there is no such bound.
    """
    body = next(attribute.g for attribute in loop.attribute if attribute.name == "body")
    producers = {name: node for node in body.node for name in node.output}
    inside = Scope(scope.model, body, scope)
    # The first two inputs of a body are iteration and condition; of a node, trip count and condition.
    entry = {value.name: outer for value, outer in zip(body.input[2:], loop.input[2:], strict=True)}
    after = {value.name: output.name for value, output in zip(body.input[2:], body.output[1:], strict=False)}

    def source(name: str) -> str:
        while name in producers and producers[name].op_type in ("Identity", "Cast"):
            name = producers[name].input[0]
        return name

    def unchanged(name: str) -> np.ndarray | str | None:
        """What stays as it is while the loop runs."""
        name = source(name)
        if not inside.varies(name):
            return inside.value(name)
        if name in entry:
            same = source(after[name]) == name
            return (entry[name] if scope.varies(entry[name]) else scope.value(entry[name])) if same else None
        return name if scope.varies(name) else None

    def counts(name: str) -> bool:
        node: Any = producers.get(source(name))
        if node is None or node.op_type != "Add":
            return False
        state, step = (source(x) for x in node.input)
        if state not in entry or source(after[state]) != source(name):
            return False
        if inside.varies(step) or scope.varies(entry[state]):
            return False
        start = scope.value(entry[state])
        return start.dtype.kind in "iu" and int(start) >= 0 and int(inside.value(step)) == 1

    conditions = [body.output[0].name]
    while conditions:
        node = producers.get(source(conditions.pop()))
        if node is not None and node.op_type == "And":
            conditions += node.input
        elif node is not None and node.op_type == "Less" and counts(node.input[0]):
            return unchanged(node.input[1])
    return None
