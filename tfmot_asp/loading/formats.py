"""What a model file is, by its content: Keras archive, HDF5 or SavedModel; and the errors for all that it is not."""

from __future__ import annotations

import zipfile
from enum import Enum
from pathlib import Path, PurePosixPath
from typing import Any

from tfmot_asp.types import StrPath

HOW_TO_TRUST = "If you trust where it comes from, load it with allow_unsafe=True (--allow-unsafe on the command line)"

_HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
_MAX_UNPACKED = 1 << 30  # bytes; above it, what a file claims to hold must bear some relation to its size
_MAX_RATIO = 100


class ModelFileError(ValueError):
    """A file holds no model that can be loaded. The message names the file."""


class UnsafeModelError(ModelFileError):
    """A file holds what could run code, or reach other files, when it is loaded or run."""


def printable(text: str) -> str:
    """Text from a file, on one line and without what a terminal would obey."""
    return "".join(character if character.isprintable() else "?" for character in " ".join(text.split()))


def first_line(error: BaseException, length: int = 300) -> str:
    """An exception's message on one line, shortened in the middle: a long one ends with the cause, Keras' above all."""
    text = printable(str(error))
    if len(text) > length:
        text = f"{text[: length // 3]} ... {text[-(length - length // 3) :]}"
    return text or type(error).__name__


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
        UnsafeModelError: if not.
    """
    total = 0
    for entry in archive.infolist():
        name = PurePosixPath(entry.filename.replace("\\", "/"))
        if name.is_absolute() or ".." in name.parts or ":" in entry.filename:
            raise UnsafeModelError(
                f"{str(path)!r} is not loaded: it would unpack {entry.filename!r} outside its folder"
            )
        total += entry.file_size
    _check_size(path, total)


def check_hdf5(file: Any, path: Path) -> None:
    """Makes sure that all data of an HDF5 file is in that file, and that it has not more of it than its size explains.

    Args:
        file: an open ``h5py.File``.
        path: of the file on disk, for messages and its size.

    Raises:
        UnsafeModelError: if a link, a dataset or a virtual dataset takes its data from another file.
    """
    import h5py

    total, seen, stack = 0, set(), [file]
    while stack:
        group = stack.pop()
        if group.id in seen:
            continue
        seen.add(group.id)
        for name in group:
            where = f"{group.name.rstrip('/')}/{name}"
            if isinstance(group.get(name, getlink=True), h5py.ExternalLink):
                raise UnsafeModelError(f"{str(path)!r} is not loaded: its {where!r} is a link into another file")
            item = group.get(name)
            if isinstance(item, h5py.Group):
                stack.append(item)
            elif isinstance(item, h5py.Dataset):
                if item.external or item.is_virtual:
                    raise UnsafeModelError(
                        f"{str(path)!r} is not loaded: its {where!r} takes its data from another file"
                    )
                total += item.size * item.dtype.itemsize if item.size else 0
    _check_size(path, total)


def _check_size(path: Path, total: int) -> None:
    size = path.stat().st_size
    if total > _MAX_UNPACKED and total > _MAX_RATIO * size:
        raise UnsafeModelError(
            f"{str(path)!r} is not loaded: its {size:,} bytes claim to hold {total:,} bytes of data. {HOW_TO_TRUST}"
        )
