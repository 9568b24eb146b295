"""Writes a model back in the format that the output's name asks for, and reads it again before it takes its place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tfmot_asp.files import check_writable, is_free, is_saved_model, replacing, reserve
from tfmot_asp.loading.one_line import first_line

HDF5 = (".h5", ".hdf5")
MODEL_FORMATS = (".keras", *HDF5, "")
_HDF5_ENTRY, _HDF5_REST = 8 << 10, 256 << 10  # bytes, at most, that a file has besides each weight, and in all


def check_output(output: Path, source: Path, *, force: bool, formats: tuple[str, ...]) -> None:
    """Makes sure, before long work, that the result can be written.

    Args:
        output: what ``-o`` names.
        source: what is read.
        force: whether to replace what is there.
        formats: suffixes that the output may have; ``""`` is a folder.

    Raises:
        ValueError: if the suffix is another, or the output is the source.
        FileExistsError: if something is there.
        OSError: if its folder cannot be written to.
    """
    check_writable(output)
    if output.suffix.lower() not in formats:
        wanted = ", ".join(suffix or "a folder without a suffix" for suffix in formats)
        raise ValueError(f"{str(output)!r} has the suffix {output.suffix!r}; this command writes {wanted}")
    is_folder = output.suffix == ""
    if is_free(output, folder=is_folder):
        return
    if output.resolve() == source.resolve() and not force:
        raise FileExistsError(f"{str(output)!r} is the file that is read; give another -o, or --force to replace it")
    if not force:
        raise FileExistsError(f"{str(output)!r} exists; give another -o, or --force to replace it")
    if output.is_dir() != is_folder or (is_folder and not is_saved_model(output)):
        raise FileExistsError(f"{str(output)!r} exists and is of another kind, so --force does not replace it")


def write_model(model: Any, output: Path, *, force: bool, allow_unsafe: bool) -> None:
    """Writes a model as ``.keras``, ``.h5`` or, without a suffix, as a SavedModel with its layers.

    It is written beside its place, read back and compared, and renamed: an error or Ctrl-C leaves nothing behind.

    Raises:
        ValueError: if Keras cannot write the model in that format.
        RuntimeError: if what was written is not the model.
    """
    from tfmot_asp.keras_models.which_keras import is_keras3

    suffix = output.suffix.lower()
    if suffix == "" and is_keras3(model):
        raise ValueError(
            f"{str(output)!r} would be a SavedModel with layers, which Keras 3 does not write: give -o a .keras "
            "name, or use `export --to saved_model`"
        )
    with replacing(output, overwrite=force, what="a model", folder=suffix == "") as written:
        if suffix in HDF5:  # HDF5 cannot close a file that does not fit, and ends the process
            arrays = [np.asarray(weight) for weight in model.weights]
            reserve(written, sum(array.nbytes + _HDF5_ENTRY for array in arrays) + _HDF5_REST)
        try:
            model.save(str(written))
        except (NotImplementedError, ValueError, TypeError) as error:
            reason = first_line(error)
            raise ValueError(f"Keras cannot write this model as {suffix or 'a SavedModel'}: {reason}") from error
        _compare(model, written, allow_unsafe)


def _compare(model: Any, written: Path, allow_unsafe: bool) -> None:
    from tfmot_asp.loading import load_model

    try:
        again = load_model(written, allow_unsafe=allow_unsafe)
    except ValueError as error:
        reason = str(error).replace(repr(str(written)), "it")
        other = "; a folder (-o with a name without a suffix) keeps custom layers as graphs" if written.suffix else ""
        raise ValueError(
            f"what Keras writes as {written.suffix or 'SavedModel'} cannot be read again: {reason}{other}"
        ) from error
    ours = {id(v): np.asarray(v) for v in model.weights}.values()
    theirs = {id(v): np.asarray(v) for v in again.weights}.values()
    if sorted(map(_key, ours)) != sorted(map(_key, theirs)):
        raise RuntimeError(
            f"the {written.suffix or 'SavedModel'} file does not hold the weights of the model; not kept"
        )


def _key(array: np.ndarray) -> tuple[tuple[int, ...], str, bytes]:
    """Equal for equal arrays. The order of a model's weights may change as it is saved, what they are may not."""
    import hashlib

    return array.shape, str(array.dtype), hashlib.sha256(np.ascontiguousarray(array).tobytes()).digest()
