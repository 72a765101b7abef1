"""What goes beside a call of the client without being an argument of it: the state that is changed, and the state seen.

It belongs to the call and to no method in particular, as `Store.guards` on the hub's side. Used by `transport` and
`client`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Generic, TypeVar

_Value = TypeVar("_Value")
_CHANGES = ("PUT", "PATCH", "DELETE")
_only_if: ContextVar[str] = ContextVar("only_if", default="")
_noted: ContextVar[list[str] | None] = ContextVar("noted", default=None)


@dataclass(frozen=True)
class Seen(Generic[_Value]):
    """An answer, and the tag of the state that it shows; empty where the hub gives none."""

    value: _Value
    etag: str


@contextmanager
def only_if(etag: str) -> Iterator[None]:
    before = _only_if.set(etag)
    try:
        yield
    finally:
        _only_if.reset(before)


@contextmanager
def noting() -> Iterator[list[str]]:
    """The tags of the answers to what is asked inside."""
    tags: list[str] = []
    before = _noted.set(tags)
    try:
        yield tags
    finally:
        _noted.reset(before)


def conditions(method: str) -> dict[str, str]:
    """The headers of a request."""
    etag = _only_if.get()
    return {"If-Match": etag} if etag and method in _CHANGES else {}


def note(etag: str) -> None:
    tags = _noted.get()
    if tags is not None and etag:
        tags.append(etag)
