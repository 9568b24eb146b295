"""Checks a SavedModel before TensorFlow loads it: which ops can run, and which files its assets name."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from tfmot_asp.loading import on_load
from tfmot_asp.loading.allowed_ops import CHECKPOINT_OPS, RESTORE_OPS, why_refused
from tfmot_asp.loading.asset_paths import ASSET_READERS, MAIN, AssetPaths, assets, named_functions, node_name
from tfmot_asp.loading.checkpoint_index import check_checkpoint
from tfmot_asp.loading.folder import check_folder
from tfmot_asp.loading.formats import HOW_TO_TRUST, ModelFileError, UnsafeModelError, within_budget
from tfmot_asp.loading.graph_claims import spend_on_graph
from tfmot_asp.loading.one_line import first_line, printable
from tfmot_asp.types import StrPath

logger = logging.getLogger(__name__)

_FILES = ("saved_model.pb", "saved_model.pbtxt", "saved_model.cpb")
_INIT_SIGNATURE = "__saved_model_init_op"
_INIT_COLLECTIONS = ("saved_model_main_op", "legacy_init_op", "table_initializer")


def check_saved_model(path: StrPath, *, allow_unsafe: bool = False) -> None:
    """Makes sure that loading a SavedModel, or running it, does nothing but compute.

    ``tf.saved_model.load`` runs parts of the graph (initializers of tables, restoring), and any op may be in it.
    Allowed are ops that compute, variables, tables, control flow and random numbers: see
    ``tfmot_asp.loading.allowed_ops``. Ops that read and write checkpoints are allowed to the saver alone, and tables
    are filled from assets of the SavedModel alone. Its files must lie in its folder, not behind links that lead out.
    The file is read as data, nothing of it is run.

    Args:
        path: folder of a SavedModel, of whatever origin.
        allow_unsafe: check only that it can be read.

    Raises:
        FileNotFoundError: if there is no such folder.
        UnsafeModelError: (a ``ValueError``) naming the op, its node and its function, the asset, or the file.
        ValueError: if it is no SavedModel, or damaged.

    Example:
        >>> tfmot_asp.loading.check_saved_model("exported")
    """
    if allow_unsafe:
        parse_saved_model(path)
        return
    if Path(path).is_dir():
        check_folder(Path(path))
    with within_budget(Path(path)):
        for meta_graph in parse_saved_model(path).meta_graphs:
            scan = _Scan(meta_graph)
            reason = next(scan.refusals(), None)
            if reason is not None:
                raise UnsafeModelError(f"{str(path)!r} is not loaded: {printable(reason)}. {HOW_TO_TRUST}")
            with _damage(path):
                spend_on_graph(meta_graph, scan.functions)
        variables = Path(path) / "variables" / "variables"
        if variables.with_name("variables.index").exists():
            with _damage(path):
                check_checkpoint(variables)
        elif variables.exists():
            raise ModelFileError(f"{str(path)!r} has variables in the format of TensorFlow 0; save it again")


@contextlib.contextmanager
def _damage(path: StrPath) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ModelFileError(f"{str(path)!r} is damaged: {first_line(error)}") from None


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
        yield from self._paths()
        yield from on_load.refusals(self.meta_graph, self.functions, self._initial())
        yield from self._checkpoints_in_functions()
        yield from self._checkpoints_in_the_main_graph()

    def _assets(self) -> Iterator[str]:
        """Assets are copied along when a model is saved again, so they must not name files outside its folder."""
        for asset in assets(self.meta_graph):
            name = PurePosixPath(asset.filename.replace("\\", "/"))
            if name.is_absolute() or ".." in name.parts or ":" in asset.filename:
                yield f"its asset {asset.filename!r} lies outside its folder"

    def _ops(self) -> Iterator[str]:
        from tensorflow.python.framework import op_def_registry

        for name in self.functions:
            if op_def_registry.get(name) is not None:
                yield f"its function {name!r} has the name of an op"
        for where, nodes in self._bodies():
            for node in nodes:
                if node.op in self.functions or node.op in CHECKPOINT_OPS or node.op in ASSET_READERS:
                    continue
                if reason := why_refused(node):
                    yield f"its op {node.op} (node {node.name!r} in {where}) {reason}"

    def _paths(self) -> Iterator[str]:
        """A loader of TensorFlow 1 hands the paths of assets to initializers alone, no other run of the main graph."""
        paths = AssetPaths(self.meta_graph, self.functions)
        yield from paths.refusals()
        run = self._signature_tensors(without=_INIT_SIGNATURE)
        for node in self._reached([*run, self.meta_graph.saver_def.restore_op_name]):
            if node.name in paths.opened_by:
                yield f"its op {node.op} (node {node.name!r} in {MAIN}) opens a file when a signature runs"

    def _initial(self) -> Iterator[Any]:
        """What the loader of TensorFlow 1 runs of the main graph, which has no objects."""
        if not self.meta_graph.HasField("object_graph_def"):
            roots = [name for key in _INIT_COLLECTIONS for name in self._collected(key)]
            signature = self.meta_graph.signature_def.get(_INIT_SIGNATURE)
            roots += [] if signature is None else [info.name for info in signature.outputs.values()]
            yield from self._reached([*roots, self.meta_graph.saver_def.restore_op_name])

    def _checkpoints_in_functions(self) -> Iterator[str]:
        """Functions with checkpoint ops are the saver's: no other function, object or gradient may refer to them."""
        for where, nodes in self._bodies():
            for node in nodes if where != MAIN else ():
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
                yield f"its op {node.op} (node {node.name!r} in {MAIN}) reads or writes files when it is loaded or run"
        # A SavedModel of TensorFlow 1 is restored by running this; the loader of TensorFlow 2 has no use for it.
        for node in self._reached([self.meta_graph.saver_def.restore_op_name]):
            if self._checkpoint_ops(node) - RESTORE_OPS:
                yield f"its op {node.op} (node {node.name!r} in {MAIN}) writes files when it is loaded"

    def _checkpoint_ops(self, node: Any) -> set[str]:
        """The checkpoint ops that run with a node of the main graph."""
        found = self._named_by(node)
        inner = self.functions[found].node_def if found else ()
        return {node.op, *(n.op for n in inner)} & CHECKPOINT_OPS

    def _bodies(self) -> Iterator[tuple[str, Iterable[Any]]]:
        yield MAIN, self.main
        for name, function in self.functions.items():
            yield f"function {name!r}", function.node_def

    def _named_by(self, node: Any) -> str | None:
        """The function with checkpoint ops that a node refers to in any way."""
        return next((name for name in named_functions(node) if name in self.checkpointing), None)

    def _roots(self) -> list[str]:
        """Names of the nodes and tensors of the main graph that TensorFlow's loader runs, or that a user can run."""
        return [*self._signature_tensors(), *(name for key in _INIT_COLLECTIONS for name in self._collected(key))]

    def _collected(self, key: str) -> list[str]:
        found = self.meta_graph.collection_def
        return list(found[key].node_list.value) if key in found else []

    def _signature_tensors(self, without: str | None = None) -> list[str]:
        roots = []
        for key, signature in self.meta_graph.signature_def.items():
            for info in signature.outputs.values() if key != without else ():
                roots += [info.name, info.coo_sparse.values_tensor_name]
                roots += [component.name for component in info.composite_tensor.components]
        return roots

    def _reached(self, roots: Iterable[str]) -> Iterator[Any]:
        nodes = {node.name: node for node in self.main}
        stack, seen = [node_name(root) for root in roots], set()
        while stack:
            name = stack.pop()
            if name in seen or name not in nodes:
                continue
            seen.add(name)
            yield nodes[name]
            stack += [node_name(source) for source in nodes[name].input]
