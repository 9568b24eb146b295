"""Puts written files in their place only once they are whole and checked."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path, *, overwrite: bool, what: str, folder: bool = False) -> Iterator[Path]:
    """Gives a temporary path to write to, which takes the place of ``path`` when the block ends without an exception.

    Whatever happens in the block, there is never half a file at ``path``: on an exception (Ctrl-C too) what was there
    is still there, and nothing else is left behind.

    Args:
        path: the file or folder to write. Missing parent folders are made.
        overwrite: whether an existing one may be replaced: a file by a file, a SavedModel by a folder.
        what: in the words of an error, such as ``"a SavedModel"``.
        folder: whether a folder is written. An empty one in its place is as good as none.

    Yields:
        A path that does not exist, with the same name, in a temporary folder beside ``path``.

    Raises:
        FileExistsError: if ``path`` exists and may not be replaced, or its folder is a file; raised before the block
            runs.
    """
    check_target(path, overwrite=overwrite, what=what, folder=folder)
    made = [parent for parent in (path.parent, *path.parent.parents) if not parent.exists()]  # innermost first
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name[:40]}-", dir=path.parent))
        written, replaced = temporary / "new" / path.name, temporary / "replaced"
        try:
            written.parent.mkdir()
            yield written
            if path.is_dir():  # a file is replaced in one step, a folder is not
                path.rename(replaced)
            written.replace(path)
        finally:
            if replaced.exists() and not path.exists():
                replaced.rename(path)
            shutil.rmtree(temporary, ignore_errors=True)
    except BaseException:
        with contextlib.suppress(OSError):  # not empty: someone else's by now
            for parent in made:
                parent.rmdir()
        raise


def check_target(path: Path, *, overwrite: bool, what: str, folder: bool) -> None:
    """Raises FileExistsError if ``path`` exists and ``replacing`` would not replace it, or if its folder is a file."""
    for parent in path.parents:
        if parent.exists() and not parent.is_dir():
            raise FileExistsError(f"{str(path)!r} cannot be written: {str(parent)!r} is no folder")
    if is_free(path, folder=folder):
        return
    if not overwrite:
        raise FileExistsError(f"{str(path)!r} exists; give another path, or overwrite=True to replace {what}")
    if not (is_saved_model(path) if folder else path.is_file()):
        raise FileExistsError(
            f"{str(path)!r} exists and is no {what.split(' ', 1)[-1]}, so overwrite=True does not replace it"
        )


def is_free(path: Path, *, folder: bool) -> bool:
    """Whether nothing is in the place of a file, or of a folder; a dangling link is something."""
    if folder and path.is_dir() and not path.is_symlink():
        return not any(path.iterdir())
    return not os.path.lexists(path)


def is_saved_model(path: Path) -> bool:
    """Whether a folder holds a SavedModel."""
    return (path / "saved_model.pb").exists()
