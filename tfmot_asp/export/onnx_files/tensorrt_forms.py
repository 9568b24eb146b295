"""Gives nodes the form that TensorRT's parser takes, where it refuses what tf2onnx writes; they compute the same.

- ``Resize`` of nearest neighbours: TensorFlow's rule ``floor((x + 0.5) / scale)`` is ONNX's ``tf_half_pixel_for_nn``,
  which TensorRT refuses. For a whole factor ``floor(x / scale)`` is the same, for others rounding half up of
  ``(x + 0.5) / scale - 0.5``.
- ``Loop`` of a recurrent layer: TensorRT wants a trip count beside the condition. The bound of the loop's counter, the
  length of the sequence, is one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tfmot_asp.export.onnx_files.onnx_graph import Scope, attributes, import_onnx

if TYPE_CHECKING:
    import onnx


def suit_tensorrt(model: onnx.ModelProto) -> None:
    """Changes a model in place."""
    scope = Scope(model, model.graph)
    for inner, node in scope.walk():
        if node.op_type == "Resize":
            _suit_resize(inner, node)
    # In the bodies of loops the names of counts would not be unlike those around them.
    for index, node in reversed(list(enumerate(model.graph.node))):
        if node.op_type == "Loop" and not node.input[0]:
            bound = _bound(scope, node)
            if bound is not None:
                node.input[0] = f"{node.output[0]}/trip_count"
                cast = import_onnx().helper.make_node(
                    "Cast", [bound], [node.input[0]], name=f"{node.output[0]}/Cast", to=import_onnx().TensorProto.INT64
                )
                model.graph.node.insert(index, cast)


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


def _bound(scope: Scope, loop: onnx.NodeProto) -> str | None:
    """The tensor around a loop below which its condition keeps a counter that starts at 0 or more and grows by 1."""
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

    def outer(name: str) -> str | None:
        """A tensor that stays what it is while the loop runs, by its name outside of it."""
        name = source(name)
        if name in entry:
            return entry[name] if source(after[name]) == name else None
        return None if name in producers or (inside.varies(name) and not scope.varies(name)) else name

    def counts(name: str) -> bool:
        node: Any = producers.get(source(name))
        if node is None or node.op_type != "Add":
            return False
        state, step = (source(x) for x in node.input)
        if state not in entry or source(after[state]) != source(name):
            return False
        values = [inside.value(step) if not inside.varies(step) else None, _constant(scope, entry[state])]
        return values[0] is not None and values[1] is not None and int(values[0]) == 1 and int(values[1]) >= 0

    conditions = [body.output[0].name]
    while conditions:
        node = producers.get(source(conditions.pop()))
        if node is not None and node.op_type == "And":
            conditions += node.input
        elif node is not None and node.op_type == "Less" and counts(node.input[0]):
            return outer(node.input[1])
    return None


def _constant(scope: Scope, name: str) -> Any:
    return None if scope.varies(name) else scope.value(name)
