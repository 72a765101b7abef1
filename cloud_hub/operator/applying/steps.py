"""One change that makes the hub more like the file: what it is about, what it changes, and how. Used by `comparing`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec

from cloud_hub.operator.client import HubClient

Act = Literal["create", "change", "remove", "roll out"]
MAX_NAMED = 8


class Line(msgspec.Struct, frozen=True):
    """One value: "" stands for nothing there."""

    name: str
    before: str
    after: str


class Change(msgspec.Struct, frozen=True):
    """What is different, for people and for scripts.

    `kind` is query, group, tags, configuration, sampling or rollout.
    """

    act: Act
    kind: str
    subject: str
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Made:
    """What came of a change: in words, where there is more to say than that it was made, and the rollout it started."""

    words: str = ""
    rollout: str = ""


Make = Callable[[HubClient], Awaitable[Made]]


@dataclass(frozen=True)
class Step:
    """A change, and the call that makes it."""

    change: Change
    make: Make


def lines_of(before: Mapping[str, object], after: Mapping[str, object]) -> tuple[Line, ...]:
    """The names whose values differ."""
    names = sorted(before.keys() | after.keys())
    both = [(name, before.get(name, ""), after.get(name, "")) for name in names]
    return tuple(Line(name, text_of(old), text_of(new)) for name, old, new in both if old != new)


def named(ids: Sequence[str]) -> str:
    """The first of them, and how many more."""
    more = f" and {len(ids) - MAX_NAMED} more" if len(ids) > MAX_NAMED else ""
    return ", ".join(ids[:MAX_NAMED]) + more


def text_of(value: object) -> str:
    """As it stands in a line: text as it is, "" for nothing, everything else as JSON."""
    if value is msgspec.UNSET or value is None:
        return ""
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()
