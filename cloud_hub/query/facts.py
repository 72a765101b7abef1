"""What a query can ask of a device, by name and kind, and the values of one device. Pure.

A name that stands here is never a tag: `tag.NAME` says that a tag is meant, also where its name was free before.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Final

MODULE: Final = "module."  # module.NAME: the version of that module which the device reports
TAG: Final = "tag."
NUMBER: Final = re.compile(r"-?[0-9]+(?:\.[0-9]+)?")
LATE_S: Final = 30.0  # a report this long after the device went is not one that was on its way
_VERSION: Final = re.compile(r"[0-9]+(?:\.[0-9]+)*")
_PART: Final = 10_000  # one part of a version, and a part of the number that versions are ordered by

# Texts, where `*` stands for any part of one.
PATTERNS: Final[Mapping[str, str]] = {
    "id": "id",
    "profile": "profile",
    "arch": "arch",
    "group": "groups",
    "rollout": "rollouts",
}
# Texts of which the whole is asked.
WORDS: Final[Mapping[str, str]] = {"state": "states", "accelerator": "accelerators", "query": "queries"}
STATES: Final[Mapping[str, str]] = {
    "online": "it is connected, and has been heard of lately",
    "offline": "it is not online",
    "never": "no report of it has ever come",
    "differs": "what it reports is not what it shall run",
    "settled": "it reports what it shall run",
    "updating": "it says that an update is under way",
    "failed": "a module of it has failed",
    "retired": "it was retired; lists leave it out unless they are asked for it",
}
NUMBERS: Final = frozenset(
    {"memory_mib", "memory_free_mib", "disk_mib", "disk_free_mib", "temperature_c", "cores", "load", "rtt_ms"}
)
DURATIONS: Final = frozenset({"last_seen", "enrolled", "uptime"})  # how long ago, and how long
VERSIONS: Final = frozenset({"agent"})
RESERVED: Final = frozenset({*PATTERNS, *WORDS, *NUMBERS, *DURATIONS, *VERSIONS})


@dataclass(frozen=True)
class DeviceFacts:
    """What a query looks at in memory. A device of which a fact is not known has it not.

    `numbers` are NUMBERS and DURATIONS, these in seconds. `modules`: the version of each module that it reports.
    """

    id: str
    profile: str
    tags: Mapping[str, str]
    arch: str = ""
    agent: str = ""
    groups: Collection[str] = ()
    rollouts: Collection[str] = ()
    states: Collection[str] = ()
    accelerators: Collection[str] = ()
    queries: Collection[str] = ()
    modules: Mapping[str, int] = field(default_factory=dict)
    numbers: Mapping[str, float] = field(default_factory=dict)

    def texts(self, fact: str) -> Collection[str]:
        """The values of a fact that is text; none where it is not known."""
        if fact.startswith(TAG):
            value = self.tags.get(fact.removeprefix(TAG))
            return () if value is None else (value,)
        have: str | Collection[str] = (
            self.agent if fact in VERSIONS else getattr(self, PATTERNS.get(fact) or WORDS[fact])
        )
        if isinstance(have, str):
            return (have,) if have else ()
        return have

    def number(self, fact: str) -> float | None:
        if fact.startswith(TAG):
            value = self.tags.get(fact.removeprefix(TAG), "")
            return float(value) if NUMBER.fullmatch(value) else None
        if fact.startswith(MODULE):
            return self.modules.get(fact.removeprefix(MODULE))
        if fact in VERSIONS:
            return version_number(self.agent)
        return self.numbers.get(fact)


@dataclass(frozen=True)
class Moment:
    """When it is, by the hub's clock, and after how long without a word a device is offline."""

    now: float
    offline_after_s: float


def field_of(fact: str) -> str:
    """The field of DeviceFacts that holds a fact."""
    if fact.startswith(TAG):
        return "tags"
    if fact.startswith(MODULE):
        return "modules"
    if fact in VERSIONS:
        return fact
    return PATTERNS.get(fact) or WORDS.get(fact) or "numbers"


def version_number(version: str) -> int | None:
    """A number that orders versions by their first three parts: 0.2 as 0.2.0; what follows these is not looked at.

    >>> version_number("0.2") == version_number("0.2.0.dev3"), version_number("0.10.1") > version_number("0.9")
    (True, True)
    """
    found = _VERSION.match(version)
    if found is None:
        return None
    parts = [min(int(part[:5]), _PART - 1) for part in found[0].split(".")[:3]]
    major, minor, patch = (*parts, 0, 0)[:3]
    return (major * _PART + minor) * _PART + patch
