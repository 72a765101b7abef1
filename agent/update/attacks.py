"""What verification has refused, counted by key: the device tells the hub what somebody tried.

Persisted, so that a restart does not hide it; bounded by the number of keys. Filled by the update engine, shown in
the device's report.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from agent.store import AgentStore
from modules.messages import AttackReport

MAX_TEXT = 300
_KEY = "attacks"


class Attacks:
    """One entry for each key; the newest words, how often, and when last."""

    def __init__(self, store: AgentStore, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._clock = clock
        self._seen: dict[str, AttackReport] = {}

    async def open(self) -> None:
        known = await self._store.get(_KEY, list[AttackReport]) or []
        self._seen = {attack.key: attack for attack in known}

    async def add(self, key: str, text: str) -> None:
        count = self._seen[key].count + 1 if key in self._seen else 1
        self._seen[key] = AttackReport(key, text[:MAX_TEXT], self._clock(), count)
        await self._store.put(_KEY, list(self._seen.values()))

    def all(self) -> tuple[AttackReport, ...]:
        return tuple(sorted(self._seen.values(), key=lambda attack: attack.key))
