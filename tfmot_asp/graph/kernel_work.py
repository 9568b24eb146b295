"""How much work each kernel of a model does: its products found in a trace of the model, matched by identity."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import tensorflow as tf

from tfmot_asp.graph.flat_graph import Graph, variable_key
from tfmot_asp.graph.flatten import trace_function
from tfmot_asp.graph.inputs import input_specs
from tfmot_asp.graph.products import GemmSize, Product, count_products
from tfmot_asp.graph.trace import concrete_function, variables_of
from tfmot_asp.keras_models.kernels import Kernel
from tfmot_asp.types import InputShapes

logger = logging.getLogger(__name__)

TWO_ACTIVATIONS = "products of two activations"


@dataclass(frozen=True)
class OtherProduct:
    """Work that is done by no kernel of the report.

    Attributes:
        name: of the weight, or of the op if both operands are activations.
        type: TensorFlow op type.
        gemms: its sizes.
        multiply_adds: of all of them.
        reason: what kind of work it is.
    """

    name: str
    type: str
    gemms: tuple[GemmSize, ...]
    multiply_adds: int
    reason: str


@dataclass(frozen=True)
class ModelWork:
    """What ``measure`` found.

    Attributes:
        gemms: for each kernel its sizes, in the order given; empty for one that the model does not use.
        others: the products of no kernel.
        input_shapes: shapes that the model was traced with.
        uncounted: what could not be counted, in words.
    """

    gemms: tuple[tuple[GemmSize, ...], ...]
    others: tuple[OtherProduct, ...]
    input_shapes: tuple[tuple[int, ...], ...]
    uncounted: tuple[str, ...]

    @property
    def multiply_adds(self) -> int:
        """Of the whole model."""
        kernels = sum(size.multiply_adds for sizes in self.gemms for size in sizes)
        return kernels + sum(other.multiply_adds for other in self.others)


def measure(
    model: Any,
    kernels: Sequence[Kernel],
    batch_size: int = 1,
    input_shapes: InputShapes | None = None,
    open_size: int | None = None,
) -> ModelWork:
    """Traces a model in inference mode and counts the work of each kernel.

    Args:
        model: a built model or layer of tf_keras or Keras 3.
        kernels: whose work to tell apart.
        batch_size: number of samples, where the model leaves it open.
        input_shapes: as in ``tfmot_asp.permute``, for models that do not know their own.
        open_size: of other axes that the model leaves open.

    Raises:
        ValueError: if an input shape is open and not given, or the model cannot be traced.
    """
    specs = input_specs(model, input_shapes, batch_size, open_size)
    shapes = tuple(tuple(spec.shape.as_list()) for spec in tf.nest.flatten(specs) if isinstance(spec, tf.TensorSpec))
    graph = trace_function(concrete_function(model, specs), variables=variables_of(model))
    count = count_products(graph)
    position: dict[Any, int] = {}
    for i, kernel in enumerate(kernels):
        position.setdefault(variable_key(kernel.tf_variable), i)
    owner = {
        index: position[key]
        for index, variable in enumerate(graph.variables)
        if (key := variable_key(variable)) in position
    }
    own: list[list[GemmSize]] = [[] for _ in kernels]
    others: dict[tuple[str, str, str], list[GemmSize]] = {}
    for product in count.products:
        owners = [owner[index] for index in product.variables if index in owner]
        if len(owners) == 1:
            own[owners[0]].append(product.size)
        else:
            others.setdefault(_describe(graph, product, len(owners)), []).append(product.size)
    logger.debug("%d products in %s", len(count.products), graph)
    rows = tuple(
        OtherProduct(name, kind, merged(sizes), sum(size.multiply_adds for size in sizes), reason)
        for (name, kind, reason), sizes in others.items()
    )
    return ModelWork(tuple(merged(sizes) for sizes in own), rows, shapes, count.uncounted)


def merged(sizes: Sequence[GemmSize]) -> tuple[GemmSize, ...]:
    """Equal sizes as one, with their calls added up, in the order of the first of each."""
    calls: dict[GemmSize, int] = {}
    for size in sizes:
        one = replace(size, calls=1)
        calls[one] = calls.get(one, 0) + size.calls
    return tuple(replace(size, calls=count) for size, count in calls.items())


def _describe(graph: Graph, product: Product, kernels: int) -> tuple[str, str, str]:
    if not product.constant:
        return product.op, product.type, TWO_ACTIVATIONS
    variables = [graph.variables[index] for index in product.variables]
    if kernels > 1:
        return product.op, product.type, "products with a weight that is put together from several kernels"
    if not variables:
        return product.op, product.type, "products with a constant that is no variable"
    largest = max(variables, key=lambda variable: variable.shape.num_elements() or 0)
    return largest.name.split(":")[0], product.type, "products with weights of other layer kinds"
