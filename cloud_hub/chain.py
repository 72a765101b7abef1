"""The audit trail as a chain: each event's hash is over its content and the hash before it. Pure.

Whoever holds the events in order can check them without the hub: `events` extends the chain, `mooring audit verify`
checks it. The bytes under the hash are JSON with sorted keys, no blanks and no escapes beyond JSON's own, in UTF-8.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any, Final

import msgspec

GENESIS: Final = "0" * 64  # what the first event has before it
MAX_BREAKS: Final = 20


class Event(msgspec.Struct, frozen=True):
    """One thing that happened. `at` is seconds since the epoch; `kind` a word such as model.registered.

    `hash` is SHA-256 over the other fields, `previous` the hash of the event before.
    """

    id: int
    at: float
    kind: str
    actor: str
    subject: str
    details: dict[str, Any]  # what each kind has to tell; shown to people, never parsed
    previous: str
    hash: str


class Link(msgspec.Struct, frozen=True):
    """One place in the chain: what to keep elsewhere, so that a chain that was cut short or made anew shows."""

    id: int
    hash: str

    @classmethod
    def parse(cls, text: str) -> Link:
        """ID:HASH. Raises ValueError."""
        number, found, digest = text.strip().partition(":")
        if not found or not number.isdecimal() or len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
            raise ValueError(f"expected ID:HASH with 64 hexadecimal digits, got {text[:100]!r}")
        return cls(int(number), digest)

    def __str__(self) -> str:
        return f"{self.id}:{self.hash}"


class Break(msgspec.Struct, frozen=True):
    """Where the chain does not hold: the event's id, and what was expected and found."""

    id: int
    why: str


class Verdict(msgspec.Struct, frozen=True):
    """What a check found. `head` is the last event, null in an empty chain; at most MAX_BREAKS breaks are named."""

    events: int
    head: Link | None
    breaks: tuple[Break, ...]

    @property
    def holds(self) -> bool:
        return not self.breaks


def digest(event: Event) -> str:
    """What `event.hash` must be, whatever it says."""
    content = {name: getattr(event, name) for name in event.__struct_fields__ if name != "hash"}
    # allow_nan=False: no event has such a number, and JSON has no word for it.
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def verify(events: Iterable[Event], known: Iterable[Link] = ()) -> Verdict:
    """Checks a whole chain from its first event on; `known` are places that it must contain.

    An event that was taken out, changed, put elsewhere or added shows as a break; events taken off the end show only
    by a known place.
    """
    expected = {link.id: link.hash for link in known}
    breaks: list[Break] = []
    last = Link(0, GENESIS)
    count = 0
    for event in events:
        count += 1
        breaks += [Break(event.id, why) for why in _faults(event, last)]
        remembered = expected.pop(event.id, event.hash)
        if remembered != event.hash:
            breaks.append(Break(event.id, f"expected the known hash {remembered}, found {event.hash}"))
        last = Link(event.id, event.hash)
        if len(breaks) >= MAX_BREAKS:
            expected.clear()
            break
    breaks += [Break(number, f"the known event {number} is not there any more") for number in sorted(expected)]
    return Verdict(count, last if count else None, tuple(breaks[:MAX_BREAKS]))


def _faults(event: Event, last: Link) -> list[str]:
    faults = []
    if event.id != last.id + 1:
        faults.append(f"expected event {last.id + 1} after {last.id}, found event {event.id}")
    if event.previous != last.hash:
        faults.append(f"expected {last.hash} as the hash before, found {event.previous}")
    try:
        content = digest(event)
    except (ValueError, UnicodeEncodeError) as error:
        return [*faults, f"its content cannot be hashed ({error})"]
    if content != event.hash:
        faults.append(f"its content has the hash {content}, found {event.hash}")
    return faults
