"""The matrix products in files of TensorFlow and Keras."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tensorflow as tf

from tfmot_asp.graph.flatten import trace_function
from tfmot_asp.graph.gemm import Gemm
from tfmot_asp.graph.gemms import find_gemms
from tfmot_asp.graph.inputs import known_inputs
from tfmot_asp.graph.trace import concrete_function, trace, variables_of
from tfmot_asp.keras_models.modules import all_variables
from tfmot_asp.keras_models.variables import underlying_variable
from tfmot_asp.loading import check_saved_model, load_model
from tfmot_asp.loading.one_line import first_line


def read_saved_model(path: Path, allow_unsafe: bool = False) -> list[Gemm]:
    """The matrix products of a SavedModel's ``serving_default`` function.

    Raises:
        ValueError: if the folder is no readable SavedModel, has no such signature, or can run code.
    """
    return find_gemms(trace_function(load_signature(path, allow_unsafe)))


def read_keras(path: Path, allow_unsafe: bool = False) -> list[Gemm]:
    """The matrix products of a Keras file; where the model leaves sizes open, they stay so: kernels have theirs.

    Raises:
        ValueError: if it is no readable Keras file, or can run code.
    """
    model = load_model(path, allow_unsafe=allow_unsafe)
    known = known_inputs(model)
    specs = [spec for spec in tf.nest.flatten(known) if isinstance(spec, tf.TensorSpec)]
    if known is not None and any(spec.shape.rank is None or None in spec.shape.as_list()[1:] for spec in specs):
        graph = trace_function(concrete_function(model, known), variables=variables_of(model))
    else:
        graph = trace(model)
    # The variables that Keras 3 gives to layers of a subclassed model are all named "kernel"; their paths tell.
    paths = {id(underlying_variable(v)): v.path for v in all_variables(model) if hasattr(v, "path")}
    return find_gemms(graph, paths)


def load_signature(path: Path, allow_unsafe: bool = False) -> Any:
    """The ``serving_default`` function of a SavedModel.

    Raises:
        ValueError: if the folder is no readable SavedModel, or has no such signature.
    """
    check_saved_model(path, allow_unsafe=allow_unsafe)  # before TensorFlow runs what a SavedModel runs on loading
    try:
        loaded = tf.saved_model.load(str(path))
    except Exception as error:  # damaged files fail in many ways, parse errors and missing ops among them
        raise ValueError(f"{str(path)!r} cannot be read as a SavedModel: {first_line(error)}") from error
    signatures = dict(loaded.signatures)
    if "serving_default" not in signatures:
        has = f"it has {sorted(signatures)}" if signatures else "it has none"
        raise ValueError(
            f"{str(path)!r} has no signature 'serving_default', {has}; tfmot_asp.export.saved_model adds it"
        )
    function = signatures["serving_default"]
    function._loaded_object = loaded  # a signature does not keep its variables alive
    return function
