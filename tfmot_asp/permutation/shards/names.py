"""What the tensors of a model's variables are called in a store: found as the library that wrote it finds them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tfmot_asp.graph.flat_graph import variable_key
from tfmot_asp.keras_models.modules import all_variables
from tfmot_asp.keras_models.variables import underlying_variable
from tfmot_asp.keras_models.which_keras import is_keras3
from tfmot_asp.permutation.shards.stores import Store


def tensor_names(model: Any, store: Store, names: Callable[[Any], str] | None) -> dict[Any, str]:
    """The name of each variable's tensor in a store, by `variable_key`; those that are not known are missing.

    Args:
        model: whose variables they are.
        store: that holds them.
        names: gives the name of a variable's tensor, where it is not that of its path.
    """
    if names is not None:
        return {variable_key(variable): names(variable) for variable in all_variables(model)}
    if store.kind == "checkpoint":
        return _checkpoint_names(model, str(store.path))
    return _keras_names(model) if store.kind == "keras" else _paths(model)


def _paths(model: Any) -> dict[Any, str]:
    """The paths of Keras 3's variables (`dense/kernel`), the names of others."""
    return {variable_key(v): getattr(v, "path", None) or v.name.split(":")[0] for v in all_variables(model)}


def _keras_names(model: Any) -> dict[Any, str]:
    """The paths in Keras 3's .weights.h5 files, recorded from Keras' own saving."""
    if not is_keras3(model):
        raise ValueError(
            "the places of tf_keras' weights in a .weights.h5 file cannot be found without them: store them as a "
            "TensorFlow checkpoint, model.save_weights('folder/name'), or pass names="
        )
    from keras.src.saving import saving_lib

    found: dict[Any, str] = {}

    class Recorder(saving_lib.H5IOStore):
        def __init__(self, path: str = "") -> None:
            self.path = path

        def make(self, path: str, metadata: Any = None) -> Recorder:
            return Recorder(f"{path}/vars" if path else "vars")

        def __setitem__(self, key: str, value: Any) -> None:
            if hasattr(underlying_variable(value), "handle"):
                found[variable_key(value)] = f"{self.path}/{key}"

        def __bool__(self) -> bool:
            return True

    saving_lib._save_state(model, Recorder(), None, inner_path="", visited_saveables=set())
    return found


def _checkpoint_names(model: Any, prefix: str) -> dict[Any, str]:
    """The keys of a TensorFlow checkpoint of a model, or of one that holds it, by the graph of objects in it."""
    import tensorflow as tf
    from tensorflow.core.protobuf import trackable_object_graph_pb2
    from tensorflow.python.checkpoint.graph_view import ObjectGraphView

    reader = tf.train.load_checkpoint(prefix)
    stored = trackable_object_graph_pb2.TrackableObjectGraph.FromString(
        reader.get_tensor("_CHECKPOINTABLE_OBJECT_GRAPH")
    ).nodes
    view = ObjectGraphView(model)
    root = 0
    for child in stored[0].children:
        if child.local_name == "model":  # tf.train.Checkpoint(model=model)
            root = child.node_id
    found: dict[Any, str] = {}
    queue, seen = [(model, root)], {root}
    while queue:
        thing, number = queue.pop()
        for attribute in stored[number].attributes:
            if attribute.name == "VARIABLE_VALUE" and hasattr(underlying_variable(thing), "handle"):
                found[variable_key(thing)] = attribute.checkpoint_key
        children = dict(view.list_children(thing))
        for child in stored[number].children:
            if child.local_name in children and child.node_id not in seen:
                seen.add(child.node_id)
                queue.append((children[child.local_name], child.node_id))
    return found
