"""The Keras that reads a file, and the scope in which it may build what the file says."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tfmot_asp.loading.claims import counted_variables, spend_on_objects
from tfmot_asp.loading.keras_config import UnknownLayerError, check_config, names_in
from tfmot_asp.loading.one_line import first_line


def keras_of(version: Any) -> Any:
    """The Keras package that wrote a file, by the version in it."""
    version = version.decode() if isinstance(version, bytes) else version
    if isinstance(version, str) and version.split(".")[0].isdecimal() and int(version.split(".")[0]) >= 3:
        try:
            import keras
        except ImportError as error:
            raise ImportError(f"the file was written by Keras {version}: pip install keras ({error})") from error
        if not keras.__version__.startswith("3."):
            raise ImportError(f"the file was written by Keras {version}, and keras is {keras.__version__} here")
        if keras.config.backend() != "tensorflow":
            raise ImportError(
                f"the file was written by Keras {version}, which uses the backend {keras.config.backend()} here: set "
                "KERAS_BACKEND=tensorflow"
            )
        return keras
    import tf_keras

    return tf_keras


@contextlib.contextmanager
def trusting(
    config: Any,
    keras: Any,
    allow_unsafe: bool,
    path: Path,
    *,
    resolves_by_import: bool = True,
    weightless: bool = False,
) -> Iterator[None]:
    """A scope in which a config may be built: it was checked, and the wrappers that it needs are registered.

    Variables count as memory that the file asks for, unless the model is built without weights.
    """
    spend_on_objects(config)
    with contextlib.ExitStack() as scopes:
        for scope in _wrapper_scopes(names_in(config)) if keras.__name__ == "tf_keras" else ():
            scopes.enter_context(scope)
        if not allow_unsafe:
            try:
                check_config(config, keras=keras, resolves_by_import=resolves_by_import)
            except UnknownLayerError:
                raise
            except ValueError as error:
                raise type(error)(f"{str(path)!r} is not loaded: {first_line(error, 800)}") from None
            if not weightless:
                scopes.enter_context(counted_variables())
        yield


def _wrapper_scopes(names: set[str]) -> Iterator[Any]:
    """tfmot's scopes, imported only for models that need them: the import turns ``tf.keras`` into Keras 2."""
    bases = {name.split(">")[-1] for name in names}
    if "PruneLowMagnitude" in bases:
        from tfmot_asp.training.prune import prune_scope

        yield prune_scope()
    if any("Quantize" in base for base in bases):
        from tfmot_asp.quantization.quantize import quantize_scope

        yield quantize_scope()
    if "ClusterWeights" in bases:
        from tensorflow_model_optimization.python.core.clustering.keras.cluster import cluster_scope

        yield cluster_scope()
