"""Where output goes: results to standard output, everything else to standard error, and TensorFlow's noise nowhere."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import shutil
import sys
import tempfile
import traceback
import warnings
from collections.abc import Iterator
from typing import Any, TextIO

from tfmot_asp.cli.wording import spoken
from tfmot_asp.loading.one_line import first_line
from tfmot_asp.reports.document import Document
from tfmot_asp.reports.plain_data import jsonable
from tfmot_asp.reports.table import WIDTH, Paint, painted, plain, visible

PROGRAM = "tfmot-asp"
_LONGEST = 2000  # characters of an error

_COLOURS = {"header": 1, "good": 32, "bad": 31, "warning": 33}  # bold, green, red, yellow
_NOISY_LOGGERS = ("tensorflow", "absl", "tf2onnx", "onnx", "numba", "h5py")


class Console:
    """The terminal as a command sees it: a context manager, in which printing goes to standard error.

    Attributes:
        progress: whether to show progress bars.
        width: of the lines of tables; None if they may be of any length.
        prose: of the other lines.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._json: bool = arguments.json
        self._quiet: bool = arguments.quiet
        self._verbose: bool = arguments.verbose
        self._debug: bool = arguments.debug
        self._summary: bool = arguments.summary
        self._out: TextIO = sys.stdout
        known = _width(sys.stdout)
        self.width: int | None = None if arguments.wide else known or WIDTH
        self.prose: int | None = None if arguments.wide else known
        self._scopes = contextlib.ExitStack()
        self.progress: bool = not arguments.quiet and sys.stderr.isatty()

    def __enter__(self) -> Console:
        # Standard output belongs to the result: what libraries print must not get between.
        self._scopes.enter_context(contextlib.redirect_stdout(sys.stderr))
        self._scopes.enter_context(_logging(self._level()))
        self._scopes.enter_context(_warnings())
        return self

    def __exit__(self, *_: Any) -> None:
        self._scopes.close()

    def result(self, document: Document, data: dict[str, Any]) -> None:
        """Prints a command's result: the document, or with ``--json`` the data."""
        if self._json:
            text = _json_text(data)
        else:
            text = document.worded(spoken).to_text(
                self.width, self.prose, tables=not self._summary, paint=paint_for(self._out)
            )
        self._out.write(f"{text}\n")

    def raw(self, text: str, data: dict[str, Any]) -> None:
        """The same for text that is for another program."""
        self._out.write(f"{_json_text(data) if self._json else text}\n")

    def note(self, text: str) -> None:
        """Says something on standard error, unless ``--quiet``."""
        if not self._quiet:
            sys.stderr.write(f"{Document([spoken(text)]).to_text(prose=self.prose)}\n")

    @contextlib.contextmanager
    def without_noise(self) -> Iterator[None]:
        """Hides what C++ libraries write to the file descriptor of standard error, and nothing else."""
        if self._verbose or sys.stderr is not sys.__stderr__ or sys.__stderr__ is None:
            yield
            return
        with contextlib.ExitStack() as scopes:
            stream = scopes.enter_context(
                open(os.dup(2), "w", buffering=1, encoding="utf-8", errors="backslashreplace")
            )
            scopes.enter_context(_held_stderr())
            scopes.enter_context(contextlib.redirect_stderr(stream))
            yield

    def error(self, text: str) -> None:
        """Says on standard error why the command ends, and with ``--json`` on standard output too."""
        fail(text, json=self._json, out=self._out)

    def failure(self, error: Exception) -> None:
        """The same, for an exception, after where it comes from with ``--debug``."""
        if self._debug:
            traceback.print_exception(error)
        text = first_line(error, _LONGEST)
        if isinstance(error, OSError) and error.strerror and error.filename is not None:
            text = f"{os.fsdecode(error.filename)!r}: {error.strerror}"
        known = (ValueError, TypeError, OSError, ImportError, RuntimeError, MemoryError)
        if not isinstance(error, known):
            text = f"unexpected {type(error).__name__}: {text} (--debug shows where)"
        self.error(spoken(text))

    def flush(self) -> None:
        """Makes sure that the output has arrived, or raises BrokenPipeError."""
        self._out.flush()

    def _level(self) -> int:
        return logging.ERROR if self._quiet else logging.INFO if self._verbose else logging.WARNING


def fail(text: str, prog: str = PROGRAM, *, json: bool, out: TextIO | None = None) -> None:
    """Says on standard error why a command ends, and if ``json`` as a document too."""
    sys.stderr.write(f"{prog}: {_word('error:', 'bad')} {_shown(text)}\n")
    if json:
        out = out or sys.stdout
        out.write(f"{_json_text({'error': text})}\n")
        out.flush()


def _json_text(data: dict[str, Any]) -> str:
    return json.dumps(jsonable(data), indent=1, allow_nan=False)


def _shown(text: str) -> str:
    """Text with names from files in it, whose lines are ours."""
    return "\n".join(map(visible, text.split("\n")))


def _word(text: str, mood: str) -> str:
    """A word on standard error, in its colour."""
    return painted(text, paint_for(sys.stderr), mood)


def _width(stream: TextIO) -> int | None:
    """Of the terminal, or as COLUMNS says; None if there is none."""
    if stream.isatty() or os.environ.get("COLUMNS"):
        return shutil.get_terminal_size((WIDTH, 24)).columns
    return None


def paint_for(stream: TextIO) -> Paint:
    """The colours of a stream: none of what is no terminal, nor where NO_COLOR or TERM=dumb asks for none."""
    environment = os.environ
    if environment.get("NO_COLOR"):
        return plain
    if environment.get("FORCE_COLOR"):
        return _colour
    dumb = environment.get("TERM") == "dumb" or (os.name == "nt" and "WT_SESSION" not in environment)
    return _colour if stream.isatty() and not dumb else plain


def _colour(text: str, mood: str) -> str:
    return f"\x1b[{_COLOURS[mood]}m{text}\x1b[0m" if mood in _COLOURS and text else text


def load_tensorflow() -> None:
    """Imports TensorFlow without its messages about CUDA and CPU features, which it writes to the file descriptor."""
    if "tensorflow" in sys.modules:
        return
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    with _held_stderr():
        import tensorflow as tf

        tf.config.list_physical_devices()  # looks for GPUs, and logs that there are none


def closed_pipe() -> int:
    """What to do when nobody reads standard output any more, as after ``| head``: end quietly."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        # Python flushes standard output once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 141


@contextlib.contextmanager
def _held_stderr() -> Iterator[None]:
    """Holds back what is written to the file descriptor."""
    try:
        saved = os.dup(2)
    except OSError:  # it is closed
        yield
        return
    with tempfile.TemporaryFile() as held:
        try:
            os.dup2(held.fileno(), 2)
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)


class _Handler(logging.Handler):
    """Writes to standard error as it is at the time."""

    def emit(self, record: logging.LogRecord) -> None:
        level = _word(f"{record.levelname.lower()}:", "warning") + " " if record.levelno >= logging.WARNING else ""
        sys.stderr.write(f"{PROGRAM}: {level}{_shown(spoken(record.getMessage()))}\n")


@contextlib.contextmanager
def _logging(level: int) -> Iterator[None]:
    ours, handler = logging.getLogger("tfmot_asp"), _Handler()
    before = {name: logging.getLogger(name).level for name in (*_NOISY_LOGGERS, ours.name)}
    propagate = ours.propagate
    for name in _NOISY_LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    ours.setLevel(level)
    ours.addHandler(handler)
    ours.propagate = False
    try:
        yield
    finally:
        ours.removeHandler(handler)
        ours.propagate = propagate
        for name, was in before.items():
            logging.getLogger(name).setLevel(was)


@contextlib.contextmanager
def _warnings() -> Iterator[None]:
    """Shows our own warnings, on one line, and hides those of libraries, which their users can do nothing about."""

    def show(message: Any, category: Any, *_: Any, **__: Any) -> None:
        sys.stderr.write(f"{PROGRAM}: {_word('warning:', 'warning')} {_shown(spoken(str(message)))}\n")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("default", module=r"tfmot_asp\b")
        warnings.showwarning = show
        yield
