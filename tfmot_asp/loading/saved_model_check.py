"""Checks a SavedModel before TensorFlow loads it: which ops can run, and which files its assets name."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from tfmot_asp.loading.allowed_ops import CHECKPOINT_OPS, RESTORE_OPS, why_refused
from tfmot_asp.loading.formats import HOW_TO_TRUST, ModelFileError, UnsafeModelError, first_line, printable
from tfmot_asp.types import StrPath

logger = logging.getLogger(__name__)

_FILES = ("saved_model.pb", "saved_model.pbtxt", "saved_model.cpb")
_INIT_COLLECTIONS = ("saved_model_main_op", "legacy_init_op", "table_initializer")


def check_saved_model(path: StrPath, *, allow_unsafe: bool = False) -> None:
    """Makes sure that loading a SavedModel, or running it, does nothing but compute.

    ``tf.saved_model.load`` runs parts of the graph (initializers of tables, restoring), and any op may be in it.
    Allowed are ops that compute, variables, tables, control flow and random numbers: see
    ``tfmot_asp.loading.allowed_ops``. Ops that read and write checkpoints are allowed to the saver alone. The file is
    read as data, nothing of it is run.

    Args:
        path: folder of a SavedModel, of whatever origin.
        allow_unsafe: check only that it can be read.

    Raises:
        FileNotFoundError: if there is no such folder.
        UnsafeModelError: (a ``ValueError``) naming the op, its node and its function, or the asset.
        ValueError: if it is no SavedModel, or damaged.

    Example:
        >>> tfmot_asp.loading.check_saved_model("exported")
    """
    meta_graphs = parse_saved_model(path).meta_graphs
    if allow_unsafe:
        return
    for meta_graph in meta_graphs:
        reason = next(_Scan(meta_graph).refusals(), None)
        if reason is not None:
            raise UnsafeModelError(f"{str(path)!r} is not loaded: {printable(reason)}. {HOW_TO_TRUST}")


def parse_saved_model(path: StrPath) -> Any:
    """The ``SavedModel`` proto of a folder, read as TensorFlow's loader reads it.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if it is no SavedModel, or damaged.
    """
    folder = Path(path)
    if not folder.exists():
        raise FileNotFoundError(f"there is no file or folder {str(path)!r}")
    if not any((folder / name).is_file() for name in _FILES):
        what = f"a folder without {_FILES[0]}" if folder.is_dir() else "a file"
        raise ModelFileError(f"{str(path)!r} is {what}, so it is no SavedModel")
    from tensorflow.python.saved_model import loader_impl

    try:
        saved_model = loader_impl.parse_saved_model(str(folder))
    except Exception as error:  # OSError, ParseError, DecodeError and RecursionError, among others
        raise ModelFileError(
            f"{str(path)!r} is damaged, it cannot be read as a SavedModel: {first_line(error)}"
        ) from error
    if not saved_model.meta_graphs:
        raise ModelFileError(f"{str(path)!r} is damaged or empty: its SavedModel holds no graph")
    return saved_model


class _Scan:
    """One meta graph: its main graph, its function library, its assets."""

    def __init__(self, meta_graph: Any) -> None:
        self.meta_graph = meta_graph
        self.main = list(meta_graph.graph_def.node)
        library = meta_graph.graph_def.library
        self.functions = {function.signature.name: function for function in library.function}
        self.checkpointing = {
            name for name, function in self.functions.items() if any(n.op in CHECKPOINT_OPS for n in function.node_def)
        }

    def refusals(self) -> Iterator[str]:
        """The reasons not to load it."""
        yield from self._assets()
        yield from self._ops()
        yield from self._checkpoints_in_functions()
        yield from self._checkpoints_in_the_main_graph()

    def _assets(self) -> Iterator[str]:
        """Assets are copied along when a model is saved again, so they must not name files outside its folder."""
        for asset in self.meta_graph.asset_file_def:
            name = PurePosixPath(asset.filename.replace("\\", "/"))
            if name.is_absolute() or ".." in name.parts or ":" in asset.filename:
                yield f"its asset {asset.filename!r} lies outside its folder"

    def _ops(self) -> Iterator[str]:
        for where, nodes in self._bodies():
            for node in nodes:
                if node.op not in self.functions and node.op not in CHECKPOINT_OPS and (reason := why_refused(node)):
                    yield f"its op {node.op} (node {node.name!r} in {where}) {reason}"

    def _checkpoints_in_functions(self) -> Iterator[str]:
        """Functions with checkpoint ops are the saver's: no other function, object or gradient may refer to them."""
        for where, nodes in self._bodies():
            for node in nodes if where != _MAIN else ():
                if found := self._named_by(node):
                    yield f"{where} calls {found!r}, which reads or writes files"
        for name in self.checkpointing.intersection(self.meta_graph.object_graph_def.concrete_functions):
            yield f"its function {name!r} reads or writes files"
        for gradient in self.meta_graph.graph_def.library.gradient:
            if gradient.gradient_func in self.checkpointing:
                yield f"the gradient {gradient.gradient_func!r} reads or writes files"
        for name in sorted(self.checkpointing):
            if not self.meta_graph.HasField("object_graph_def"):  # of TensorFlow 1, whose saver has no functions
                yield f"its function {name!r} reads or writes files"
            # The graph optimizer can put functions with the same tag in place of others.
            if any(attribute.startswith("api_") for attribute in self.functions[name].attr):
                yield f"its function {name!r} reads or writes files and may replace another"

    def _checkpoints_in_the_main_graph(self) -> Iterator[str]:
        """The main graph has the saver's ops too, but nothing that is run may reach them, other than to restore."""
        for node in self._reached(self._roots()):
            if self._checkpoint_ops(node):
                yield f"its op {node.op} (node {node.name!r} in {_MAIN}) reads or writes files when it is loaded or run"
        # A SavedModel of TensorFlow 1 is restored by running this; the loader of TensorFlow 2 has no use for it.
        for node in self._reached([self.meta_graph.saver_def.restore_op_name]):
            if self._checkpoint_ops(node) - RESTORE_OPS:
                yield f"its op {node.op} (node {node.name!r} in {_MAIN}) writes files when it is loaded"

    def _checkpoint_ops(self, node: Any) -> set[str]:
        """The checkpoint ops that run with a node of the main graph."""
        found = self._named_by(node)
        inner = self.functions[found].node_def if found else ()
        return {node.op, *(n.op for n in inner)} & CHECKPOINT_OPS

    def _bodies(self) -> Iterator[tuple[str, Iterable[Any]]]:
        yield _MAIN, self.main
        for name, function in self.functions.items():
            yield f"function {name!r}", function.node_def

    def _named_by(self, node: Any) -> str | None:
        """The function with checkpoint ops that a node refers to in any way."""
        if node.op in self.checkpointing:
            return node.op
        for value in node.attr.values():
            names = [
                value.func.name,
                *(function.name for function in value.list.func),
                value.s.decode(errors="replace"),
            ]
            for name in names:
                if name in self.checkpointing:
                    return name
        return None

    def _roots(self) -> list[str]:
        """Names of the nodes and tensors of the main graph that TensorFlow's loader runs, or that a user can run."""
        roots = []
        for signature in self.meta_graph.signature_def.values():
            for info in signature.outputs.values():
                roots += [info.name, info.coo_sparse.values_tensor_name]
                roots += [component.name for component in info.composite_tensor.components]
        for name in _INIT_COLLECTIONS:
            if name in self.meta_graph.collection_def:
                roots += self.meta_graph.collection_def[name].node_list.value
        return roots

    def _reached(self, roots: Iterable[str]) -> Iterator[Any]:
        nodes = {node.name: node for node in self.main}
        stack, seen = [_node_name(root) for root in roots], set()
        while stack:
            name = stack.pop()
            if name in seen or name not in nodes:
                continue
            seen.add(name)
            yield nodes[name]
            stack += [_node_name(source) for source in nodes[name].input]


_MAIN = "the main graph"


def _node_name(tensor: str) -> str:
    return tensor.removeprefix("^").split(":")[0]
