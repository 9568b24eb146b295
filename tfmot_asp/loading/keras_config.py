"""Checks the config of a Keras model: every class and function that it names must be one of Keras' or tfmot's own, or
be registered by the program that loads it.

Keras resolves names in a config in several ways: by import of a module, by its public API (which holds functions that
download files or switch its safe mode off), by tables of its classes, by calling what is no class. So it is not enough
to look for Lambda layers. Checked is every dict at any depth that has a ``class_name`` or a ``module``, whatever key it
is under, against names that are known to be harmless.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from tfmot_asp.loading.allowed_ops import is_pure_symbol, why_refused
from tfmot_asp.loading.formats import HOW_TO_TRUST, UnsafeModelError

_PACKAGES = ("keras", "tf_keras", "tensorflow_model_optimization", "tfmot_asp")

# Layers that hold code or name files to load.
_CODE = {
    "Lambda": "a Lambda layer, which is Python code",
    "__lambda__": "a lambda, which is Python code",
    "TFSMLayer": "a TFSMLayer, which loads a SavedModel from a path of its own",
    "JaxLayer": "a JaxLayer, which calls into Python",
    "FlaxLayer": "a FlaxLayer, which calls into Python",
    "TorchModuleWrapper": "a TorchModuleWrapper, which is pickled code",
    "VocabularyFileCategoricalColumn": "a feature column that reads a vocabulary from a path of its own",
}

# Dicts with a class_name that stand for plain data.
_DATA = frozenset(
    {
        "__bytes__", "__ellipsis__", "__keras_tensor__", "__numpy__", "__slice__", "__tensor__", "__tuple__",
        "CompositeTensor", "TensorShape", "TypeSpec",
    }
)  # fmt: skip
_TYPE_SPECS = frozenset({"IndexedSlicesSpec", "RaggedTensorSpec", "SparseTensorSpec", "TensorSpec"})
_TYPE_SPEC_MODULE = re.compile(r"tensorflow\.python\.(framework|ops)\.[\w.]+")

_CLASS_NAMESPACES = (
    "layers", "layers.experimental", "layers.experimental.preprocessing", "models", "initializers", "regularizers",
    "constraints", "losses", "metrics", "optimizers", "optimizers.schedules", "optimizers.legacy",
    "optimizers.experimental", "mixed_precision", "dtype_policies", "quantizers", "activations",
)  # fmt: skip
_FUNCTION_NAMESPACES = ("activations", "constraints", "initializers", "losses", "metrics", "regularizers")
# Not in the public namespaces, and yet in files: internals, and names of earlier versions.
_MORE_CLASSES = frozenset(
    re.findall(
        r"[\w.]+",
        """Functional Policy PolicyV1 AddMetric AddLoss BatchNormalizationV1 BatchNormalizationV2 CuDNNGRU CuDNNLSTM
    DeviceWrapper DropoutWrapper ResidualWrapper SyncBatchNormalization GRUV1 GRUV2 LSTMV1 LSTMV2 GRUCellV1 GRUCellV2
    LSTMCellV1 LSTMCellV2 InputSpec SequenceFeatures LinearModel WideDeepModel LossScaleOptimizer QuantizedDTypePolicy
    QuantizedFloat8DTypePolicy ConstantSparsity PolynomialDecay PruningSchedule LayerScale StochasticDepth
    TFOpLambda SlicingOpLambda TensorFlowOpLayer ClassMethod InstanceProperty InstanceMethod
    """,
    )
)
# Modules whose classes are all harmless: the ops of Keras 3, which are classes, and tfmot's layers and quantizers.
_OWN_MODULE = re.compile(
    r"keras\.src\.ops\.\w+|tensorflow_model_optimization\.python\.core\.(?!.*test)[\w.]+|tfmot_asp\.(training\.)?wrapper"
)
_CLASS = re.compile(r"_?[A-Z]\w*")

_RAGGED_AND_SPARSE = re.compile(
    r"(nested_)?(flat_)?values|(nested_)?row_\w+|value_rowids|nrows|bounding_shape|with_\w+|merge_dims|to_tensor"
    r"|to_sparse|indices|dense_shape|from_\w+"
)


@dataclass(frozen=True)
class _ConfigPlace:
    """A dict in a config, and the layer that it is in, for messages."""

    node: dict[Any, Any]
    layer: str | None

    def __str__(self) -> str:
        return f"its layer {self.layer!r}" if self.layer else "it"


class UnknownLayerError(ValueError):
    """A file needs a class or function that the program which loads it has not registered."""


def check_config(config: Any, *, keras: Any, resolves_by_import: bool = True) -> None:
    """Makes sure that Keras, building a model from this config, runs no code but Keras' own.

    Args:
        config: the model's config: dicts, lists, strings and numbers, as ``json.loads`` gives them.
        keras: the package that will build it, ``tf_keras`` or ``keras``: its registered objects are trusted.
        resolves_by_import: whether names that are not known fail to load; if not, they are revived without Python
            code, as in a SavedModel.

    Raises:
        UnsafeModelError: for code, and for names that are not known to be harmless.
        UnknownLayerError: for custom layers that are not registered.
    """
    for place in _dicts(config):
        node = place.node
        if "class_name" not in node:
            continue  # Keras builds nothing from it, whatever else it has
        reason = _refusal(place, keras) or _refused_name(place)
        if reason is not None:
            raise UnsafeModelError(f"{reason}. {HOW_TO_TRUST}")
        if not _is_known(node, keras) and (resolves_by_import or node.get("module")):
            name = str(node["class_name"])
            raise UnknownLayerError(
                f"{place} is a custom {name:.80}{_of_module(node)}, which is not registered here: import the code that "
                f"defines it, with @{keras.__name__}.saving.register_keras_serializable() on it (on the command line: "
                "--import MODULE), and load the file then"
            )


def names_in(config: Any) -> set[str]:
    """All class names in a config."""
    return {str(place.node["class_name"]) for place in _dicts(config) if "class_name" in place.node}


def _dicts(config: Any) -> Iterator[_ConfigPlace]:
    stack: list[tuple[Any, str | None]] = [(config, None)]
    while stack:  # no recursion: a file may nest as deep as it likes
        node, layer = stack.pop()
        if isinstance(node, dict):
            if "class_name" in node:
                inner = node.get("config")
                named = node.get("name") or (inner.get("name") if isinstance(inner, dict) else None)
                layer = named if isinstance(named, str) else layer
            yield _ConfigPlace(node, layer)
            stack += [(value, layer) for value in reversed(node.values())]
        elif isinstance(node, (list, tuple)):
            stack += [(value, layer) for value in reversed(node)]


def _refusal(place: _ConfigPlace, keras: Any) -> str | None:
    """Why a dict must not be built; None if it may, or if nothing can be built from it."""
    node = place.node
    name, module = node.get("class_name"), node.get("module")
    if not isinstance(name, str) or not (module is None or isinstance(module, str)):
        return f"{place} names a class that is no string: {name!r:.80}"
    if _is_registered(node, keras):
        return None
    base = name.split(">")[-1]
    if base in _CODE:
        return f"{place} is {_CODE[base]}" if place.layer and base != "__lambda__" else f"{place} holds {_CODE[base]}"
    return _CHECKS.get(name, _refused_class)(place, keras)


def _refused_name(place: _ConfigPlace) -> str | None:
    """Keras makes paths of names, in archives and in the folder of a layer's assets."""
    inner = place.node.get("config")
    names = (place.node.get("name"), inner.get("name") if isinstance(inner, dict) else None)
    for name in names:
        if isinstance(name, str) and (name.startswith("/") or ".." in re.split(r"[/\\]", name)):
            return f"it has the name {name!r:.80}, which is a path to elsewhere"
    return None


def _refused_data(place: _ConfigPlace, _: Any) -> str | None:
    """Some readers know plain data by these names, and others would import the module."""
    module = place.node.get("module")
    return f"{place} names {place.node['class_name']!r} of module {module!r:.80}" if module else None


def _refused_type_spec(place: _ConfigPlace, _: Any) -> str | None:
    node = place.node
    known = str(node.get("spec_name")) in _TYPE_SPECS and not node.get("registered_name")
    known = known and _TYPE_SPEC_MODULE.fullmatch(node.get("module") or "") is not None
    return None if known else f"{place} holds an unknown type spec"


def _refused_function(place: _ConfigPlace, keras: Any) -> str | None:
    node = place.node
    name = node.get("config")
    known = isinstance(name, str) and name in _known_functions(keras)
    known = known and (node.get("module") or "builtins").split(".")[0] in (*_PACKAGES, "builtins")
    known = known and node.get("registered_name") in (None, name)
    return None if known else f"{place} names the function {name!r:.80}{_of_module(node)}"


def _refused_class(place: _ConfigPlace, _: Any) -> str | None:
    node = place.node
    name, module, registered = str(node["class_name"]), node.get("module"), node.get("registered_name")
    base = name.split(">")[-1]
    if module and module.split(".")[0] in ("builtins", "tensorflow", "os", "sys", "subprocess", "importlib"):
        return f"{place} names {name!r:.80} of module {module!r:.80}"
    if not _CLASS.fullmatch(base) and ">" not in name:
        return f"{place} names {name!r:.80}{_of_module(node)}, which is no class"
    if module and registered not in (None, name) and not (isinstance(registered, str) and ">" in registered):
        return f"{place} is registered as {registered!r:.80}"  # Keras would look that up in the module
    config = node.get("config")
    if not isinstance(config, dict):
        return None
    what = _OPTIONS.get(base, _what_vocabulary)(config) or _what_vocabulary(config)
    return None if what is None else f"{place} {what}"


# What a dict stands for, by its class_name -> why it must not be built, or None. All others are classes.
_CHECKS: dict[str, Callable[[_ConfigPlace, Any], str | None]] = {
    **dict.fromkeys(_DATA, _refused_data),
    "__typespec__": _refused_type_spec,
    "function": _refused_function,
}


def _what_symbol(config: dict[str, Any]) -> str | None:
    symbol = config.get("function")
    return None if is_pure_symbol(symbol) else f"calls tf.{symbol!s:.80}"


def _what_class_method(config: dict[str, Any]) -> str | None:
    symbol, method = config.get("cls_symbol"), config.get("method_name")
    if str(symbol).split(".")[-1] == "RaggedTensor" and _RAGGED_AND_SPARSE.fullmatch(str(method)):
        return None
    return f"calls tf.{symbol!s:.80}.{method!s:.80}"


def _what_attribute(config: dict[str, Any]) -> str | None:
    attribute = str(config.get("method_name", config.get("attr_name")))
    return None if _RAGGED_AND_SPARSE.fullmatch(attribute) else f"calls {attribute[:80]!r} of a tensor"


def _what_op(config: dict[str, Any]) -> str | None:
    from google.protobuf import json_format
    from tensorflow.core.framework import node_def_pb2

    node_def = config.get("node_def")
    try:
        if isinstance(node_def, dict):
            node = json_format.ParseDict(node_def, node_def_pb2.NodeDef())
        else:
            node = node_def_pb2.NodeDef.FromString(node_def.encode("utf-8"))  # type: ignore[union-attr]
    except Exception:  # whatever it is, it is no op
        return "holds an op that cannot be read"
    reason = why_refused(node)
    return None if reason is None else f"runs the op {node.op}, which {reason}"


def _what_vocabulary(config: dict[str, Any]) -> str | None:
    path = next(
        (path for key in ("vocabulary", "initial_vocabulary") if isinstance(path := config.get(key), str)), None
    )
    return None if path is None else f"reads its vocabulary from the file {path!r:.80}"


# Known class -> what its options would have it do that it must not, or None: call TensorFlow by name, or read files.
_OPTIONS: dict[str, Callable[[dict[str, Any]], str | None]] = {
    "TFOpLambda": _what_symbol,
    "SlicingOpLambda": _what_symbol,
    "ClassMethod": _what_class_method,
    "InstanceMethod": _what_attribute,
    "InstanceProperty": _what_attribute,
    "TensorFlowOpLayer": _what_op,
    **dict.fromkeys(("StringLookup", "IntegerLookup", "TextVectorization"), _what_vocabulary),
}


def _is_known(node: dict[str, Any], keras: Any) -> bool:
    """Whether the loader can resolve a name that was found harmless."""
    name, module = node["class_name"], node.get("module")
    if name in _DATA or name in ("function", "__typespec__") or _is_registered(node, keras):
        return True
    if ">" in name or (isinstance(node.get("registered_name"), str) and ">" in node["registered_name"]):
        return False
    if name in _known_classes(keras) or name.removesuffix("V1").removesuffix("V2") in _known_classes(keras):
        return module is None or module.split(".")[0] in _PACKAGES
    return module is not None and _OWN_MODULE.fullmatch(module) is not None


def _is_registered(node: dict[str, Any], keras: Any) -> bool:
    """Whether the program that loads the file has registered the class or function, and no reader takes another.

    Keras' current format looks up the registered name, its legacy format the class name, and which of them reads a dict
    depends on where it stands. So a harmless registered name makes no dangerous class name harmless.
    """
    name = node["class_name"]
    key = node.get("config") if name == "function" else node.get("registered_name", name)
    if not isinstance(key, str) or keras.saving.get_registered_object(key) is None:
        return False
    base = name.split(">")[-1]
    return key == name or name == "function" or not (base in _CODE or base in _OPTIONS or base.startswith("__"))


def _of_module(node: dict[str, Any]) -> str:
    return f" of module {node['module']!r:.80}" if node.get("module") else ""


@functools.cache
def _known_classes(keras: Any) -> frozenset[str]:
    names = set(_MORE_CLASSES) | {"Model", "Sequential"}
    for namespace in _CLASS_NAMESPACES:
        names.update(name for name in _public(keras, namespace) if _CLASS.fullmatch(name))
    return frozenset(names - _CODE.keys())


@functools.cache
def _known_functions(keras: Any) -> frozenset[str]:
    names = {name for namespace in _FUNCTION_NAMESPACES for name in _public(keras, namespace) if name[0].islower()}
    return frozenset(names - {"deserialize", "serialize", "get"})


def _public(keras: Any, namespace: str) -> list[str]:
    module = keras
    for part in namespace.split("."):
        module = getattr(module, part, None)
    return [name for name in dir(module) if not name.startswith("__")] if module is not None else []
