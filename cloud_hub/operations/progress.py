"""What a long operation is at, told by whoever does the work and does not know for whom.

It travels beside the call: the same work is done for requests that wait for their answer, and then nobody listens.
Imports nothing, so that every room may tell.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

Listen = Callable[[str, int, int], None]
_listening: ContextVar[Listen | None] = ContextVar("listening", default=None)


def tell(doing: str, done: int = 0, total: int = 0) -> None:
    """`doing` in words; `done` of `total` (rows, bytes, files; 0: not known). Cheap: call it as often as you like."""
    listen = _listening.get()
    if listen is not None:
        listen(doing, done, total)


@contextmanager
def listening(listen: Listen) -> Iterator[None]:
    """What is told inside, in this task and those that it starts, goes to `listen`."""
    before = _listening.set(listen)
    try:
        yield
    finally:
        _listening.reset(before)
