"""A SavedModel is a folder: what lies in it, and that nothing in it leads out of it."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from tfmot_asp.loading.formats import HOW_TO_TRUST, ModelFileError, UnsafeModelError


def check_folder(folder: Path) -> None:
    """Makes sure that whatever is opened in a folder is a file that lies in it.

    The folder itself may be a link. Hard links cannot be told from files.

    Raises:
        UnsafeModelError: for links that lead out, also through other links, and for pipes, devices and sockets.
        ValueError: if a part of it cannot be looked at.
    """
    home = folder.resolve()
    for path in _everything_in(folder):
        name = str(path.relative_to(folder))
        target = Path(os.path.realpath(path))
        if target != home and home not in target.parents:
            raise UnsafeModelError(
                f"{str(folder)!r} is not loaded: its {name!r} is a link that leads out of the folder, to "
                f"{str(target)!r}. Copy the folder with what its links name, as by cp -rL. {HOW_TO_TRUST}"
            )
        try:
            mode = path.stat().st_mode
        except FileNotFoundError:
            continue  # a dangling link: as good as a file that is missing
        except OSError as error:  # a loop of links
            raise ModelFileError(f"{str(folder)!r} cannot be read: its {name!r}: {error.strerror}") from error
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise UnsafeModelError(f"{str(folder)!r} is not loaded: its {name!r} is neither a file nor a folder")


def _everything_in(folder: Path) -> Iterator[Path]:
    """All names below a folder, links to folders among them, which are not followed."""

    def fail(error: OSError) -> None:
        raise ModelFileError(f"{str(folder)!r} cannot be read: {error.filename!r}: {error.strerror}")

    for parent, folders, files in os.walk(folder, onerror=fail):
        yield from (Path(parent, name) for name in (*folders, *files))
