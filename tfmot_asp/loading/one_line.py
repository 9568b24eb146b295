"""Errors of TensorFlow and Keras, and text from files, on one line that says what is the matter."""

from __future__ import annotations

import re

from tfmot_asp.reports.table import visible

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
# What Keras and TensorFlow put around the cause. The innermost is looked for, so these are applied until none fits.
_AROUND = (
    re.compile(
        r"Exception encountered when calling (?:layer )?(?P<where>.*?)\.?\n\n(?P<cause>.*?)"
        r"(?:\n\n(?:Call arguments|Arguments) received by .*)?\Z",
        re.DOTALL,
    ),
    re.compile(
        r"(?P<where>(?:[^.\n]|\.\w)*could not be deserialized|Error when deserializing class '\w+')"
        r".*?\n\nException encountered: (?P<cause>.*)\Z",
        re.DOTALL,
    ),
    re.compile(
        r"Graph execution error:\s*\n\n?Detected at node .*?\n\n?(?P<cause>[^\n]*\S[^\n]*)(?:\n\s*\[\[.*)?\Z", re.DOTALL
    ),
    re.compile(r"in user code:\s*\n(?:\s+File \"[^\n]*\n[^\n]*\n)*\s*(?P<cause>\w+: .*)\Z", re.DOTALL),
)
_NODE = re.compile(
    r"\s*\[\[\{\{node .*?\}\}\]\]|\s*\[Op:\w+\](?: name:\s*\S*)?|\{\{function_node __wrapped__.*?\}\}\s*", re.DOTALL
)


def printable(text: str) -> str:
    """Text from a file, on one line and without what a terminal would obey."""
    return visible(" ".join(text.split()))


def first_line(error: BaseException, length: int = 300) -> str:
    """An exception's message on one line: the cause, of what Keras and TensorFlow say around it.

    A long one is shortened in the middle, since it ends with the cause more often than not.
    """
    text = printable(_cause(_COLOURS.sub("", str(error)).strip()))
    if len(text) > length:
        text = f"{text[: length // 3]} ... {text[-(length - length // 3) :]}"
    return text or type(error).__name__


def _cause(text: str) -> str:
    for _ in range(10):  # layers in layers
        found = next((match for pattern in _AROUND if (match := pattern.search(text))), None)
        if found is None:
            break
        where = found.groupdict().get("where")
        inner = found["cause"].strip()
        text = f"{where}: {inner}" if where and "Exception encountered" not in inner else inner
    return _NODE.sub("", text)
