"""What each module's samples have taken of their quota, kept by the agent's parent, and the secret that hashes are
keyed with. So a worker that starts again goes on where the one before it stood, also after a restart of the agent.

No NumPy here. Made by `agent.service`; `agent.runtimes.process` asks it for what a worker is given.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable

import msgspec

from agent.errors import StoreError
from agent.sampling.quota import Quota
from agent.store import AgentStore
from modules.messages import Stream
from modules.sampling import SamplingPolicy

SPENT_KEY, SECRET_KEY = "sampling.spent", "sampling.secret"
KEEP_EVERY_S = 60.0

_logger = logging.getLogger(__name__)


class Standing(msgspec.Struct, frozen=True):
    """The level of a quota at a time, by the wall clock."""

    level: float
    at: float


class Spending:
    """`run` is a unit of the supervisor."""

    def __init__(self, store: AgentStore, clock: Callable[[], float] = time.time) -> None:
        self._store, self._clock = store, clock
        self._quotas: dict[str, Quota] = {}
        self._spent: dict[str, Standing] = {}
        self._changed = False
        self.secret = b""

    async def open(self) -> None:
        """Reads what was kept; makes the secret at the first start. Raises StoreError."""
        self._spent = await self._store.get(SPENT_KEY, dict[str, Standing]) or {}
        kept = await self._store.get(SECRET_KEY, str)
        if kept is None:
            kept = secrets.token_hex(32)
            await self._store.put(SECRET_KEY, kept)
        self.secret = bytes.fromhex(kept)

    def left(self, module: str, policy: SamplingPolicy) -> float | None:
        """The bytes that the module may send now; None where nothing bounds them."""
        bound, now = policy.quota_bytes_per_day or None, self._clock()
        quota, before = self._quotas.get(module), self._spent.get(module)
        if quota is None:
            quota = Quota(bound, before.at if before else now, before.level if before else None)
            self._quotas[module] = quota
        quota.change(bound, now)
        return quota.level if bound else None

    def passed(self, module: str, stream: Stream, size: int) -> None:
        """An item of the module's goes to the hub."""
        quota = self._quotas.get(module)
        if quota is not None and quota.bytes_per_day and stream in ("sample", "blob"):
            quota.spend(size, self._clock())
            self._changed = True

    async def run(self) -> None:
        """Writes down what has changed, until cancelled."""
        while True:
            await asyncio.sleep(KEEP_EVERY_S)
            try:
                await self.keep()
            except StoreError as error:
                _logger.warning("what samples have taken is not written down", extra={"why": str(error)})

    async def keep(self) -> None:
        """Writes it down now. Raises StoreError."""
        if not self._changed:
            return
        self._changed, now = False, self._clock()
        bound = {name: quota for name, quota in self._quotas.items() if quota.bytes_per_day}
        await self._store.put(SPENT_KEY, {name: Standing(quota.level, now) for name, quota in bound.items()})
