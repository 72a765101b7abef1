"""The tag query: which devices an operator means. Pure.

`all`, or terms joined by ` and ` or commas, all of which must hold: `tag=value`, `tag!=value`, `profile=x`, `id=x`.
A `*` in a value stands for any text; a device without a tag does not have the value, so `tag!=value` holds for it.

>>> parse("site=lyon and profile=jetson*").matches(DeviceFacts("cam-1", "jetson-orin-nano", {"site": "lyon"}))
True
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from cloud_hub.errors import BadRequest

MAX_QUERY_CHARS = 2000
MAX_TAGS = 64
BUILT_IN = frozenset({"id", "profile"})
_TERM = re.compile(r"(?P<name>[A-Za-z0-9][A-Za-z0-9._/-]{0,62})\s*(?P<sign>!=|=)\s*(?P<value>[^=!\s]{1,200})")
_JOIN = re.compile(r"\s+and\s+|\s*,\s*")


@dataclass(frozen=True)
class DeviceFacts:
    """What a query looks at."""

    id: str
    profile: str
    tags: Mapping[str, str]


@dataclass(frozen=True)
class Term:
    """One condition."""

    name: str
    value: str
    equal: bool

    def matches(self, device: DeviceFacts) -> bool:
        built_in = {"id": device.id, "profile": device.profile}
        have = built_in.get(self.name, device.tags.get(self.name))
        return (have is not None and _fits(self.value, have)) == self.equal


@dataclass(frozen=True)
class Query:
    """Terms that must all hold; none at all means every device."""

    text: str
    terms: tuple[Term, ...]

    def matches(self, device: DeviceFacts) -> bool:
        return all(term.matches(device) for term in self.terms)


def parse(text: str) -> Query:
    """Raises BadRequest `query-invalid` with the term that does not fit."""
    words = text.strip()
    if len(words) > MAX_QUERY_CHARS:
        raise BadRequest("query-invalid", f"query: expected at most {MAX_QUERY_CHARS} characters, got {len(words)}")
    if words == "all":
        return Query(words, ())
    return Query(words, tuple(_parse_term(term) for term in _JOIN.split(words)))


def check_tags(tags: Mapping[str, str]) -> None:
    """Raises BadRequest `tags-invalid` for tags that no query could name."""
    if len(tags) > MAX_TAGS:
        raise BadRequest("tags-invalid", f"tags: expected at most {MAX_TAGS}, got {len(tags)}")
    for name, value in tags.items():
        if name in BUILT_IN or "*" in value or _TERM.fullmatch(f"{name}={value}") is None or "," in value:
            raise BadRequest(
                "tags-invalid",
                f"tag {name[:63]!r}: expected a name of letters, digits and ._/- other than id and profile, and a "
                f"value of 1 to 200 characters without spaces or any of =!,* ; got {value[:80]!r}",
            )


def _parse_term(text: str) -> Term:
    match = _TERM.fullmatch(text.strip())
    if match is None:
        raise BadRequest(
            "query-invalid",
            f"query: expected `all` or terms such as site=lyon, profile!=jetson* or id=cam-*, got {text[:80]!r}",
        )
    return Term(match["name"], match["value"], match["sign"] == "=")


def _fits(pattern: str, text: str) -> bool:
    """Whether `text` is the pattern's parts in order, with anything in between. Takes linear time on any pattern."""
    first, *rest = pattern.split("*")
    if not rest:
        return text == pattern
    if not text.startswith(first):
        return False
    *middle, last = rest
    at = len(first)
    for part in middle:
        found = text.find(part, at)
        if found < 0:
            return False
        at = found + len(part)
    return len(text) - at >= len(last) and text.endswith(last)
