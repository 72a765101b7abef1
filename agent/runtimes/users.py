"""Which user a worker becomes: one per module name, where the agent may give users away. Called by `process`."""

from __future__ import annotations

import asyncio
from pathlib import Path

from agent.config import ServingSettings
from agent.store import AgentStore

# CAP_KILL, CAP_SETGID, CAP_SETUID: to give a worker another user, and to be able to end it then.
_SET_IDS = 1 << 5 | 1 << 6 | 1 << 7


class Users:
    """Kept in the store, because process limits count all processes of a user."""

    def __init__(self, settings: ServingSettings, store: AgentStore) -> None:
        self._settings = settings
        self._store = store
        self._asking = asyncio.Lock()

    async def uid(self, name: str) -> int:
        """0 where the worker stays the agent's."""
        if not self._settings.uid_first or not self._settings.confine:
            return 0
        async with self._asking:  # two at once would get the same user
            names = await self._store.get("uids", list[str]) or []
            if name not in names:
                names.append(name)
                await self._store.put("uids", names)
        uid = self._settings.uid_first + names.index(name)
        return uid if may_become(uid) else 0


def first_uid(settings: ServingSettings) -> int:
    """The user that a worker becomes here; 0 where it stays the agent's."""
    return settings.uid_first if settings.confine and settings.uid_first and may_become(settings.uid_first) else 0


def may_become(uid: int) -> bool:
    """Whether this process may give a child another user, and end it then, and whether such a user exists here."""
    try:
        status = Path("/proc/self/status").read_text()
        ranges = [list(map(int, line.split())) for line in Path("/proc/self/uid_map").read_text().splitlines()]
    except (OSError, ValueError):
        return False
    effective = next((int(line.split()[1], 16) for line in status.splitlines() if line.startswith("CapEff:")), 0)
    return effective & _SET_IDS == _SET_IDS and any(first <= uid < first + count for first, _, count in ranges)
