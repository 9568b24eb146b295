"""``load_architecture``: the model that a file describes, whose weights are elsewhere."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

from tfmot_asp.loading.archive import load_description
from tfmot_asp.loading.formats import ModelFileError, parsed_json, within_budget
from tfmot_asp.loading.one_line import first_line
from tfmot_asp.loading.readers import keras_of, trusting
from tfmot_asp.types import StrPath


def load_architecture(path: StrPath, *, allow_unsafe: bool = False) -> Any:
    """Builds a model as a file describes it, with weights of its own, after the checks of ``load_model``.

    Args:
        path: what ``model.to_json()`` gives, or a ``.keras`` archive, of whose weights nothing is read.
        allow_unsafe: as for ``load_model``.

    Raises:
        FileNotFoundError: if there is no such file.
        UnsafeModelError: as ``load_model``.
        ValueError: if it describes no Keras model.

    Example:
        >>> model = tfmot_asp.loading.architecture.load_architecture("model.json")
    """
    path = Path(path)
    with within_budget(path, trusted=allow_unsafe):
        config, keras = load_description(path, allow_unsafe) if zipfile.is_zipfile(path) else _from_json(path)
        with trusting(config, keras, allow_unsafe, path, weightless=True):
            try:
                return keras.models.model_from_json(json.dumps(config))
            except ValueError as error:
                raise ModelFileError(f"{str(path)!r} cannot be built as a Keras model: {first_line(error)}") from error


def _from_json(path: Path) -> tuple[dict[str, Any], Any]:
    """What ``model.to_json()`` says of the model, and the Keras that wrote it."""
    try:
        config = parsed_json(path.read_bytes())
        # Keras 3 writes no version here, and a module where tf_keras has one.
        version = config.get("keras_version") or ("3" if "module" in config else None)
        config["config"], config["class_name"]
    except FileNotFoundError:
        raise
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ModelFileError(
            f"{str(path)!r} is neither what model.to_json() gives nor a .keras archive ({first_line(error)})"
        ) from error
    return {**config, "compile_config": None}, keras_of(version)
