"""Puts written files in their place only once they are whole and checked, and leaves nothing else behind."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_OURS = ".tfmot-asp-"  # in the names of temporary folders
_LOCK = "lock"  # a file in them, held as long as their process lives
_NEW, _REPLACED = "new", "replaced"

# What is wrong with the place that a file is written to, not with the file.
_OF_THE_PLACE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO, errno.ENAMETOOLONG)


@contextmanager
def replacing(path: Path, *, overwrite: bool, what: str, folder: bool = False) -> Iterator[Path]:
    """Gives a temporary path to write to, which takes the place of ``path`` when the block ends without an exception.

    Whatever happens in the block, there is never half a file at ``path``: on an exception (Ctrl-C too) what was there
    is still there, and nothing else is left behind. What a process left that was killed goes when the next one writes
    the same file.

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
        OSError: naming ``path``, if its folder cannot be written to, or the disk is full.
    """
    check_target(path, overwrite=overwrite, what=what, folder=folder)
    made = [parent for parent in (path.parent, *path.parent.parents) if not parent.exists()]  # innermost first
    try:
        with _errors_of(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary_folder(path.parent, f".{path.name[:40]}", before_removal=_put_back) as temporary:
                written, replaced = temporary / _NEW / path.name, temporary / _REPLACED
                try:
                    written.parent.mkdir()
                    yield written
                    if path.is_dir():  # a file is replaced in one step, a folder is not
                        path.rename(replaced)
                    written.replace(path)
                finally:
                    if replaced.exists() and not path.exists():
                        replaced.rename(path)
    except BaseException:
        with contextlib.suppress(OSError):  # not empty: someone else's by now
            for parent in made:
                parent.rmdir()
        raise


def reserve(path: Path, size: int) -> None:
    """Makes sure that a file of so many bytes could be written, for libraries that do not survive it if not.

    Args:
        path: from ``replacing``, which names the file in its error.
        size: in bytes.

    Raises:
        OSError: if the disk is full, or files may not be so large.
    """
    if not hasattr(os, "posix_fallocate"):  # Windows, macOS
        if shutil.disk_usage(path.parent).free < size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return
    with path.open("wb") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        finally:
            path.unlink()


@contextmanager
def temporary_folder(
    parent: Path | None = None, name: str = "", *, before_removal: Callable[[Path], None] | None = None
) -> Iterator[Path]:
    """A folder that is removed at the end, by the next process that asks for one of the same name at the latest.

    Args:
        parent: where to make it; the system's place for temporary files by default.
        name: what its name begins with.
        before_removal: called with the folder of a process that was killed.
    """
    parent = Path(tempfile.gettempdir()) if parent is None else parent
    prefix = f"{name}{_OURS}"
    _remove_stale(parent, prefix, before_removal)
    folder, lock = _locked_folder(parent, prefix)
    try:
        yield folder
    finally:
        try:
            os.close(lock)
            shutil.rmtree(folder, ignore_errors=True)
        except BaseException:  # stopped on the way: once more, before the stop goes on
            shutil.rmtree(folder, ignore_errors=True)
            raise


def _locked_folder(parent: Path, prefix: str) -> tuple[Path, int]:
    while True:
        folder = parent.absolute() / f"{prefix}{secrets.token_hex(4)}"  # known before it is there: a stop may come then
        try:
            folder.mkdir(mode=0o700)
            lock = os.open(folder / _LOCK, os.O_CREAT | os.O_RDWR)
            if _take(lock) and (folder / _LOCK).exists():
                return folder, lock
            os.close(lock)  # another process took it for stale, in the moment before it was locked
        except FileExistsError:
            pass
        except FileNotFoundError:
            if not parent.exists():
                raise
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise


def _remove_stale(parent: Path, prefix: str, before_removal: Callable[[Path], None] | None) -> None:
    """Removes folders that nobody holds the lock of: their processes are no more, on whichever machine they were."""
    with contextlib.suppress(OSError):
        for entry in os.scandir(parent):
            if entry.name.startswith(prefix) and entry.is_dir(follow_symlinks=False):
                _remove_if_stale(Path(entry.path), before_removal)


def _remove_if_stale(folder: Path, before_removal: Callable[[Path], None] | None) -> None:
    with contextlib.suppress(OSError):
        lock = os.open(folder / _LOCK, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
        try:
            if _take(lock):
                if before_removal is not None:
                    before_removal(folder)
                shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(lock)


def _take(lock: int) -> bool:
    """Whether a lock could be had. Its process holds it until it ends, however it ends."""
    try:
        import fcntl
    except ImportError:  # Windows, where an open file cannot be removed
        return True
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EWOULDBLOCK, errno.EACCES)  # a file system without locks: as if alone
    return True


def _put_back(folder: Path) -> None:
    """Gives a SavedModel its place again, if the process was killed between taking it away and putting the new one."""
    replaced = folder / _REPLACED
    for new in (folder / _NEW).iterdir():
        target = folder.parent / new.name
        if replaced.exists() and not os.path.lexists(target):
            replaced.rename(target)


@contextmanager
def _errors_of(path: Path) -> Iterator[None]:
    """Errors of the place that is written to name the path that was asked for, whoever raised them."""
    try:
        yield
    except OSError as error:
        named = os.fsdecode(error.filename) if isinstance(error.filename, (str, bytes)) else ""
        ours = _OURS in named or named in map(str, (path, *path.parents))
        if isinstance(error, FileExistsError) or not (error.errno in _OF_THE_PLACE or (error.errno and ours)):
            _raise_as_of_the_place(error, path)
            raise
        raise OSError(error.errno, os.strerror(error.errno or 0), str(path)) from error
    except Exception as error:
        _raise_as_of_the_place(error, path)
        raise


def _raise_as_of_the_place(error: Exception, path: Path) -> None:
    """HDF5 and TensorFlow say what the system said inside errors of their own."""
    said = str(error)
    for code in _OF_THE_PLACE:
        if os.strerror(code) in said:
            raise OSError(code, os.strerror(code), str(path)) from error


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


def check_writable(path: Path) -> None:
    """Raises OSError naming ``path`` if its folder, or the one in which that would be made, cannot be written to."""
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not os.access(folder, os.W_OK | os.X_OK):
        read_only = hasattr(os, "statvfs") and os.statvfs(folder).f_flag & os.ST_RDONLY
        code = errno.EROFS if read_only else errno.EACCES
        raise OSError(code, os.strerror(code), str(path))


def is_free(path: Path, *, folder: bool) -> bool:
    """Whether nothing is in the place of a file, or of a folder; a dangling link is something."""
    if folder and path.is_dir() and not path.is_symlink():
        return not any(path.iterdir())
    return not os.path.lexists(path)


def is_saved_model(path: Path) -> bool:
    """Whether a folder holds a SavedModel."""
    return (path / "saved_model.pb").exists()
