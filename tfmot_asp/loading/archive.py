"""Reads ``.keras`` archives: unpacked once, since HDF5 inside an archive is read from its start for each tensor."""

from __future__ import annotations

import contextlib
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tfmot_asp.files import temporary_folder
from tfmot_asp.loading.formats import ModelFileError, check_archive, check_npz, parsed_json
from tfmot_asp.loading.hdf5_check import check_hdf5
from tfmot_asp.loading.one_line import first_line
from tfmot_asp.loading.readers import keras_of, trusting

_CONFIG, _METADATA, _WEIGHTS = "config.json", "metadata.json", "model.weights.h5"


def load_archive(path: Path, allow_unsafe: bool) -> Any:
    """Loads a ``.keras`` file of tf_keras or Keras 3. See ``load_model`` for what it raises."""
    with temporary_folder() as temporary:
        folder = temporary / "unpacked"
        with opened(path, allow_unsafe) as archive:
            archive.extractall(folder)
        config, keras = description(folder, path)
        if not allow_unsafe:
            for file in sorted(folder.rglob("*.h5")):
                _check_member(file, path)
            for file in sorted(folder.rglob("*.npz")):
                check_npz(file, path)
        if path.suffix != ".keras":
            raise ModelFileError(f"{str(path)!r} is a .keras archive by another name; rename it to {path.stem}.keras")
        with trusting(config, keras, allow_unsafe, path):
            if keras.__name__ == "tf_keras" and (folder / _WEIGHTS).exists():
                return _build(config, folder, safe_mode=not allow_unsafe)
            return keras.models.load_model(str(path), compile=False, safe_mode=not allow_unsafe)


def load_description(path: Path, allow_unsafe: bool) -> tuple[dict[str, Any], Any]:
    """What a ``.keras`` file says of its model, and the Keras that wrote it; nothing else of it is unpacked."""
    with temporary_folder() as folder:
        with opened(path, allow_unsafe) as archive:
            for name in {_CONFIG, _METADATA} & set(archive.namelist()):
                archive.extract(name, folder)
        return description(folder, path)


@contextlib.contextmanager
def opened(path: Path, allow_unsafe: bool) -> Iterator[zipfile.ZipFile]:
    """A ``.keras`` archive that may be unpacked: where it goes was checked, and that its size explains it."""
    try:
        with zipfile.ZipFile(path) as archive:
            if _CONFIG not in archive.namelist():
                raise ModelFileError(f"{str(path)!r} is a zip archive without config.json, so it is no .keras file")
            if not allow_unsafe:
                check_archive(archive, path)
            yield archive
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise ModelFileError(f"{str(path)!r} is damaged or cut short: {first_line(error)}") from error


def description(folder: Path, path: Path) -> tuple[dict[str, Any], Any]:
    """The config of a model, without how it was compiled, and the Keras that wrote it.

    Args:
        folder: where the archive was unpacked.
        path: of the archive, for errors.
    """
    config = parsed_json((folder / _CONFIG).read_bytes())
    metadata = parsed_json(file.read_bytes()) if (file := folder / _METADATA).exists() else {}
    keras = keras_of(metadata.get("keras_version") if isinstance(metadata, dict) else None)
    if not isinstance(config, dict):
        raise ModelFileError(f"{str(path)!r} is damaged: its config.json holds no model")
    return {**config, "compile_config": None}, keras


def _check_member(file: Path, path: Path) -> None:
    import h5py

    try:
        opened = h5py.File(file, "r")
    except OSError as error:
        raise ModelFileError(
            f"{str(path)!r} is damaged: its {file.name} cannot be read: {first_line(error)}"
        ) from error
    with opened:
        check_hdf5(opened, path)


def _build(config: dict[str, Any], folder: Path, safe_mode: bool) -> Any:
    """``tf_keras.models.load_model`` on unpacked files: its own reads them inside the archive (Keras 3's does not)."""
    from tf_keras.src.saving import saving_lib

    enabled = getattr(saving_lib._SAVING_V3_ENABLED, "value", False)
    saving_lib._SAVING_V3_ENABLED.value = True
    try:
        with saving_lib.ObjectSharingScope():
            model = saving_lib.deserialize_keras_object(config, safe_mode=safe_mode)
        weights = saving_lib.H5IOStore(str(folder / _WEIGHTS), mode="r")
        assets = folder / saving_lib._ASSETS_DIRNAME
        saving_lib._load_state(
            model,
            weights_store=weights,
            assets_store=saving_lib.DiskIOStore(str(assets), mode="r") if assets.exists() else None,
            inner_path="",
            visited_trackables=set(),
        )
        weights.close()
        return model
    finally:
        saving_lib._SAVING_V3_ENABLED.value = enabled
