"""``load_model``: reads a model file with the Keras that wrote it, after its content was checked."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from tfmot_asp.loading.archive import load_archive
from tfmot_asp.loading.formats import Format, ModelFileError, detect, parsed_json, within_budget
from tfmot_asp.loading.hdf5_check import check_hdf5
from tfmot_asp.loading.keras_config import UnknownLayerError
from tfmot_asp.loading.one_line import first_line
from tfmot_asp.loading.readers import keras_of, trusting
from tfmot_asp.loading.saved_model_check import check_saved_model, parse_saved_model
from tfmot_asp.types import StrPath

logger = logging.getLogger(__name__)


def load_model(path: StrPath, *, allow_unsafe: bool = False) -> Any:
    """Loads a Keras model from a file that need not be trusted.

    Reads ``.keras`` archives of tf_keras and Keras 3, HDF5 files of both, and SavedModels made by tf_keras'
    ``model.save(folder)``; the content decides, not the suffix. Models with pruning or quantization wrappers load as
    they are. The model is not compiled. Before anything is built, the file is checked: classes and functions must be
    Keras', tfmot's, this package's, or registered by your program; the ops of a SavedModel must be such as only
    compute; an HDF5 file must not take data from other files.

    Args:
        path: the file or folder.
        allow_unsafe: skip these checks, for files whose origin you trust: Lambda layers and TensorFlow ops of any kind
            then run with the rights of this process.

    Returns:
        A tf_keras or Keras 3 model, whichever wrote it.

    Raises:
        FileNotFoundError: if there is no such file.
        UnsafeModelError: (a ``ValueError``) naming the layer or op that could run code or reach other files.
        ValueError: if the file is damaged, of another kind, or has custom layers that are not registered.
        ImportError: if it needs Keras 3 on the TensorFlow backend, and that is not there.

    Example:
        >>> model = tfmot_asp.loading.load_model("model.keras")
        >>> print(tfmot_asp.permute(model))
    """
    path = Path(path)
    load = {Format.KERAS: load_archive, Format.HDF5: _load_hdf5, Format.SAVED_MODEL: _load_saved_model}[detect(path)]
    try:
        with within_budget(path, trusted=allow_unsafe):
            model = load(path, allow_unsafe)
    except (FileNotFoundError, ImportError, ModelFileError):
        raise
    except UnknownLayerError as error:
        raise ModelFileError(f"{str(path)!r} cannot be loaded: {first_line(error, 800)}") from None
    except MemoryError as error:
        raise ModelFileError(f"{str(path)!r} does not fit into memory: {first_line(error)}") from error
    except Exception as error:  # damaged files fail in as many ways as there are bytes
        raise ModelFileError(f"{str(path)!r} cannot be loaded as a Keras model: {first_line(error)}") from error
    if not hasattr(model, "layers"):
        raise ModelFileError(f"{str(path)!r} holds a {type(model).__name__}, no Keras model")
    return model


def _load_hdf5(path: Path, allow_unsafe: bool) -> Any:
    import h5py  # a dependency of TensorFlow

    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise ModelFileError(f"{str(path)!r} is damaged or cut short: {first_line(error)}") from error
    with file:
        if not allow_unsafe:
            check_hdf5(file, path)
        text = file.attrs.get("model_config")
        if text is None:
            raise ModelFileError(
                f"{str(path)!r} holds weights only, no model: build the model, load them, and save it whole"
            )
        config = parsed_json(text)
        keras = keras_of(file.attrs.get("keras_version"))
        with trusting(config, keras, allow_unsafe, path):
            if keras.__name__ == "tf_keras":
                return keras.models.load_model(file, compile=False)
            if path.suffix not in (".h5", ".hdf5"):
                raise ModelFileError(f"{str(path)!r} is an HDF5 file by another name; rename it to {path.stem}.h5")
            return keras.models.load_model(str(path), compile=False, safe_mode=not allow_unsafe)


def _load_saved_model(path: Path, allow_unsafe: bool) -> Any:
    check_saved_model(path, allow_unsafe=allow_unsafe)
    metadata = [parsed_json(text) for text in _keras_metadata(path)]
    if not metadata:
        raise ModelFileError(
            f"{str(path)!r} is a SavedModel without Keras layers, as tf.saved_model.save and model.export write it: it "
            "can be verified, but not pruned, permuted or exported. Save the model with tf_keras' model.save instead"
        )
    import tf_keras

    config = [{k: v for k, v in node.items() if k != "training_config"} for node in metadata if isinstance(node, dict)]
    with trusting(config, tf_keras, allow_unsafe, path, resolves_by_import=False):
        return tf_keras.models.load_model(str(path), compile=False)


def _keras_metadata(path: Path) -> list[str]:
    """The JSON that tf_keras stored for each of its objects in a SavedModel, where its loader looks for it."""
    file = path / "keras_metadata.pb"
    if file.is_file():
        from google.protobuf.message import DecodeError
        from tf_keras.protobuf import saved_metadata_pb2

        stored = saved_metadata_pb2.SavedMetadata()
        try:
            stored.ParseFromString(file.read_bytes())
        except DecodeError as error:
            raise ModelFileError(f"{str(path)!r} is damaged: its keras_metadata.pb cannot be read") from error
        return [node.metadata for node in stored.nodes]
    nodes = parse_saved_model(path).meta_graphs[0].object_graph_def.nodes  # before TensorFlow 2.5
    return [n.user_object.metadata for n in nodes if n.user_object.identifier.startswith("_tf_keras_")]
