"""What a model file is, by its content: Keras archive, HDF5 or SavedModel; and the errors for all that it is not."""

from __future__ import annotations

import contextlib
import json
import math
import zipfile
from collections.abc import Iterator
from enum import Enum
from pathlib import Path, PurePosixPath
from typing import Any

from tfmot_asp.graph import budget
from tfmot_asp.loading.one_line import printable
from tfmot_asp.types import StrPath

HOW_TO_TRUST = "If you trust where it comes from, load it with allow_unsafe=True (--allow-unsafe on the command line)"

_HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
_PLACE_IN_ARCHIVE = 1 << 14  # bytes, of an entry, and of the file that it becomes


class ModelFileError(ValueError):
    """A file holds no model that can be loaded. The message names the file."""


class UnsafeModelError(ModelFileError):
    """A file holds what could run code, or reach other files, when it is loaded or run."""


@contextlib.contextmanager
def within_budget(path: Path, *, trusted: bool = False) -> Iterator[None]:
    """A scope in which a file or folder is read, and may ask for no more memory than its size explains.

    Raises:
        UnsafeModelError: if it does.
    """
    try:
        with budget.reading(None if trusted else budget.size_of(path)):
            yield
    except budget.OverBudgetError as error:
        raise UnsafeModelError(f"{str(path)!r} is not loaded: {error}. {HOW_TO_TRUST}") from None


class Format(Enum):
    """The formats that ``load_model`` knows."""

    KERAS = ".keras"
    HDF5 = ".h5"
    SAVED_MODEL = "SavedModel"


def detect(path: StrPath) -> Format:
    """Tells the format of a file or folder by its content.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is none of them; the message says what it is, as far as that can be told.
    """
    path = Path(path)
    try:
        if not path.exists():
            raise FileNotFoundError(f"there is no file or folder {str(path)!r}")
        if path.is_dir():
            if any((path / name).is_file() for name in ("saved_model.pb", "saved_model.pbtxt", "saved_model.cpb")):
                return Format.SAVED_MODEL
            raise ModelFileError(f"{str(path)!r} is a folder without saved_model.pb, so it is no SavedModel")
        check_is_file(path)
        with path.open("rb") as file:
            start = file.read(64)
    except PermissionError:
        raise ModelFileError(f"{str(path)!r} cannot be read: permission denied") from None
    if not start:
        raise ModelFileError(f"{str(path)!r} is empty")
    if start.startswith(b"version https://git-lfs"):
        raise ModelFileError(f"{str(path)!r} is a Git LFS pointer, not the model; fetch it with: git lfs pull")
    if start.startswith(b"PK\x03\x04"):
        return Format.KERAS
    if start.startswith(_HDF5_MAGIC):
        return Format.HDF5
    if path.name == "saved_model.pb":
        raise ModelFileError(f"{str(path)!r} is a part of a SavedModel; give its folder, {str(path.parent)!r}")
    if path.suffix in (".onnx", ".tflite"):
        raise ModelFileError(f"{str(path)!r} holds a graph without Keras layers; `verify` reads it, nothing else can")
    raise ModelFileError(
        f"{str(path)!r} is neither a .keras archive nor an HDF5 file, as its first bytes show ({start[:8]!r}); "
        "it may be damaged or of another kind"
    )


def check_is_file(path: Path) -> None:
    """Raises ValueError for pipes and devices, which may never end, or wait for ever."""
    if not path.is_file():
        raise ModelFileError(f"{str(path)!r} is neither a file nor a folder")


def check_archive(archive: zipfile.ZipFile, path: Path) -> None:
    """Makes sure that a .keras archive unpacks into its own folder, and to a size that its own explains.

    Raises:
        UnsafeModelError: if an entry would be unpacked elsewhere, or is packed in another way than Keras'.
        OverBudgetError: if its size does not explain what it unpacks to.
    """
    for entry in archive.infolist():
        name = PurePosixPath(entry.filename.replace("\\", "/"))
        if name.is_absolute() or ".." in name.parts or ":" in entry.filename:
            raise UnsafeModelError(
                f"{str(path)!r} is not loaded: it would unpack {entry.filename!r} outside its folder"
            )
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            # Python unpacks the others in pieces of any size, whatever the archive says that they come to.
            raise UnsafeModelError(f"{str(path)!r} is not loaded: {entry.filename!r} is packed as Keras packs nothing")
        budget.spend(entry.file_size + _PLACE_IN_ARCHIVE, f"{printable(entry.filename):.80} in it")


def check_npz(file: Path, path: Path) -> None:
    """Makes sure that arrays of an ``.npz`` file are numbers, and no more of them than the size explains.

    Args:
        file: as it was unpacked.
        path: of the archive that it was in.

    Raises:
        UnsafeModelError, OverBudgetError: if not.
        zipfile.BadZipFile, ValueError: if it is none.
    """
    import numpy as np

    with zipfile.ZipFile(file) as archive:
        check_archive(archive, path)
        for name in archive.namelist():
            with archive.open(name) as member:
                version = np.lib.format.read_magic(member)
                read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                shape, _, dtype = read(member)
            if dtype.hasobject:
                raise UnsafeModelError(
                    f"{str(path)!r} is not loaded: its {printable(name)!r} is pickled, which is code"
                )
            budget.spend(math.prod(shape) * dtype.itemsize, f"its {printable(name)!r} of shape {shape}")


def parsed_json(text: bytes | str) -> Any:
    """JSON from a file, which takes more memory than it has characters."""
    budget.spend(len(text) * budget.JSON, f"a config of {len(text):,} characters")
    return json.loads(text)
