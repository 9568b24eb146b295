"""The command line ``tfmot-asp``: inspect, permute, prune, verify, plot, export and search, on files.

Exit codes: 0 done; 1 a check failed (``verify``); 2 wrong usage or bad input; 130 interrupted; 143 terminated. Results
go to standard output, as tables or with ``--json`` as one JSON document; everything else goes to standard error.
``--help`` and ``--version`` load no TensorFlow.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from tfmot_asp.cli.parser import parse
from tfmot_asp.cli.stopping import Terminated, terminable
from tfmot_asp.cli.terminal import Console, closed_pipe, fail
from tfmot_asp.cli.usage import UsageError

INTERRUPTED = 130
TERMINATED = 143
FAILED = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code.

    Args:
        argv: the arguments after the program's name; by default those of this process.

    Returns:
        0, 1, 2, 130 or 143, see above; 141 if the reader of the output went away, as programs in C return.

    Example:
        >>> from tfmot_asp.cli import main
        >>> main(["verify", "exported"])
        0
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the shell, as by >&-
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 (for the rest of the process)
    with terminable():
        return _run(argv)


def _run(argv: Sequence[str] | None) -> int:
    given = sys.argv[1:] if argv is None else list(argv)
    try:
        try:
            arguments = parse(argv)
        except UsageError as error:
            command = " ".join(["tfmot-asp help", *error.prog.removesuffix(" help").split()[1:]])
            fail(f"{error} (`{command}` has what there is)", error.prog, json="--json" in given)
            return FAILED
        except SystemExit as end:  # argparse's way of ending, after usage errors, --help and --version
            sys.stdout.flush()
            return int(end.code or 0)
        with Console(arguments) as console:
            try:
                code = arguments.run(arguments, console)
            except Terminated:
                console.error("terminated")
                return TERMINATED
            except KeyboardInterrupt:
                console.error("interrupted")
                return INTERRUPTED
            except BrokenPipeError:
                raise
            except Exception as error:
                console.failure(error)
                return FAILED
            console.flush()
            return code
    except BrokenPipeError:
        return closed_pipe()
    except Terminated:
        return TERMINATED
    except KeyboardInterrupt:
        return INTERRUPTED
