"""The helpers that put an edited graph in order, on graphs that no Keras model of these tests has."""

import pytest

onnx = pytest.importorskip("onnx")

from onnx import TensorProto, helper  # noqa: E402

from tfmot_asp.export.onnx_files.onnx_graph import move_into_bodies, sort_nodes  # noqa: E402


def body(name, op, read):
    output = helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, [2])
    return helper.make_graph([helper.make_node(op, [read], [f"{name}_out"])], name, [], [output])


def model_of(nodes):
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])]
    inputs.append(helper.make_tensor_value_info("c", TensorProto.BOOL, []))
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])]
    graph = helper.make_graph(nodes, "g", inputs, outputs)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_nodes_are_sorted_by_what_they_and_their_bodies_read():
    bodies = {"then_branch": body("a", "Neg", "h"), "else_branch": body("b", "Abs", "h")}
    model = model_of(
        [
            helper.make_node("Add", ["picked", "x"], ["y"]),
            helper.make_node("If", ["c"], ["picked"], **bodies),
            helper.make_node("Mul", ["x", "x"], ["h"]),
        ]
    )
    sort_nodes(model.graph)
    assert [node.op_type for node in model.graph.node] == ["Mul", "If", "Add"]
    onnx.checker.check_model(model, full_check=True)


def test_nodes_that_read_what_only_a_body_has_move_into_it():
    bodies = {"then_branch": body("a", "Neg", "late"), "else_branch": body("b", "Abs", "x")}
    bodies["then_branch"].node.append(helper.make_node("Exp", ["x"], ["inner"]))
    model = model_of(
        [
            helper.make_node("If", ["c"], ["y"], **bodies),
            helper.make_node("Sqrt", ["earlier"], ["late"]),
            helper.make_node("Floor", ["inner"], ["earlier"]),
        ]
    )
    move_into_bodies(model.graph)
    sort_nodes(model.graph)
    (chosen,) = model.graph.node
    then = next(attribute.g for attribute in chosen.attribute if attribute.name == "then_branch")
    assert [node.op_type for node in then.node] == ["Exp", "Floor", "Sqrt", "Neg"]
    onnx.checker.check_model(model, full_check=True)
