"""Which events leave the hub, by their kind: the families that do, and patterns of those who choose among them. Pure.

What is about people, their sessions and their tokens stays in the audit trail. A family that is not listed stays too:
a test asks every kind that the hub records for its place here.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Final

# Families (the word before the first dot) that others may hear of.
PUBLIC: Final = frozenset(
    {
        "agent", "alert", "arm", "blob", "candidate", "command", "comparison", "configuration", "crl", "dataset",
        "device", "event", "gate", "group", "label", "labels", "model", "module", "offline-set", "policy", "profile",
        "quality", "query", "reference", "retention", "retrain", "retrain-plan", "retraining", "rollout", "sample",
        "samples", "sampling", "site", "state", "trust", "webhook", "window",
    }
)  # fmt: skip
PRIVATE: Final = frozenset({"access", "api-token", "operation", "session", "token", "user"})
MAX_PATTERNS: Final = 32
_PATTERN: Final = re.compile(r"\*|[a-z][a-z0-9-]{0,30}(\.(\*|[a-z0-9][a-z0-9.-]{0,50}))?")


def is_public(kind: str) -> bool:
    return family(kind) in PUBLIC


def family(kind: str) -> str:
    return kind.partition(".")[0]


def checked_patterns(patterns: Sequence[str], name: str = "kinds") -> tuple[str, ...]:
    """`*`, a family with all its kinds (`alert.*` or `alert`), or one kind. Raises ValueError naming `name`."""
    if not 0 < len(patterns) <= MAX_PATTERNS:
        raise ValueError(f"{name}: expected 1 to {MAX_PATTERNS} patterns, got {len(patterns)}")
    for pattern in patterns:
        if not _PATTERN.fullmatch(pattern):
            raise ValueError(f"{name}: expected a kind such as alert.opened, alert.* or *, got {pattern[:80]!r}")
        if pattern != "*" and family(pattern) not in PUBLIC:
            raise ValueError(f"{name}: no events of {family(pattern)!r} leave the hub; {', '.join(sorted(PUBLIC))} do")
    return tuple(patterns)


def chosen(kind: str, patterns: Collection[str]) -> bool:
    """Whether one of the patterns fits the kind, and it may leave the hub at all."""
    every = f"{family(kind)}.*"
    return is_public(kind) and any(pattern in ("*", kind, every, family(kind)) for pattern in patterns)
