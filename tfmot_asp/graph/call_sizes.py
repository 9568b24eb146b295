"""How large functions come to that call each other, before anybody makes a copy for each call."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import TypeVar

_Key = TypeVar("_Key", bound=Hashable)


def sizes_once_called(
    functions: Iterable[_Key],
    called: Callable[[_Key], list[_Key]],
    own: Callable[[_Key], int],
    deepest: int,
    name: Callable[[_Key], str] = str,
) -> dict[_Key, int]:
    """The size of each function with those of all that it calls, as often as it calls them.

    Args:
        functions: all of them.
        called: the functions that one calls, once for each call.
        own: the size of one alone, in any unit.
        deepest: how deep calls may be nested.
        name: of one, for errors.

    Raises:
        ValueError: if a function calls itself, or calls are nested deeper.
    """
    sizes: dict[_Key, int] = {}
    depths: dict[_Key, int] = {}
    for start in functions:
        path: dict[
            _Key, tuple[list[_Key], Iterator[_Key]]
        ] = {}  # no recursion: a file may nest them as deep as it likes
        waiting: _Key | None = None if start in sizes else start
        while path or waiting is not None:
            if waiting is not None:
                calls = called(waiting)
                path[waiting] = calls, iter(calls)
            key, (calls, rest) = next(reversed(path.items()))
            waiting = next((inner for inner in rest if inner not in sizes), None)
            if waiting in path:
                raise ValueError(f"its function {name(waiting)!r} calls itself")
            if waiting is None:
                sizes[key] = own(key) + sum(sizes[inner] for inner in calls)
                depths[key] = 1 + max((depths[inner] for inner in calls), default=0)
                if depths[key] > deepest:
                    raise ValueError(f"its functions call each other more than {deepest} deep")
                del path[key]
    return sizes
