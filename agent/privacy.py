"""The accountant: what private windows have spent, by module and day. On the disk before the window leaves.

A window of a module whose policy asks for privacy goes out only if it says what it spent, and only while the day's
budget holds; what is left then is withheld and counted. A crash after the charge loses the window, never the charge.
Stands between the workers and the outbox; made by `agent.service`.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime

import msgspec

from agent.store import AgentStore
from modules.errors import WindowError
from modules.messages import Stream
from modules.privacy import Privacy, Spent
from modules.sampling import SamplingPolicy
from modules.windows import Window, decode_window

KEY = "privacy.spent"
MAX_WAITING = 256  # windows that wait for their charge
KEPT_DAYS = 40
SHOWN_DAYS = 2
_SLACK = 1e-6  # of a budget, for sums of many small shares

Offer = Callable[[Stream, bytes], bool]
_logger = logging.getLogger(__name__)


class Accounts:
    """`offer` is called by workers in place of the outbox's own; `run` is a unit of the supervisor.

    `policy_of` says what holds for a module, None when it is not kept (any more): then its last policy does.
    """

    def __init__(self, store: AgentStore, offer: Offer, policy_of: Callable[[str], SamplingPolicy | None]) -> None:
        self._store, self._offer, self._policy_of = store, offer, policy_of
        self._last: dict[str, SamplingPolicy] = {}
        self._spent: dict[tuple[str, str], Spent] = {}
        self._waiting: deque[tuple[Window, bytes]] = deque()
        self._wake = asyncio.Event()
        self._turn = asyncio.Lock()

    async def open(self) -> None:
        """Reads what was spent. Before anything else. Raises StoreError."""
        known = await self._store.get(KEY, tuple[Spent, ...]) or ()
        self._spent = {(spent.day, spent.module): spent for spent in known}

    def offer(self, stream: Stream, payload: bytes) -> bool:
        """Whether it was taken. What is private waits for its charge."""
        if stream != "window":
            return self._offer(stream, payload)
        try:
            window = decode_window(payload)
        except WindowError as error:
            _logger.error("a worker's window cannot be read, and does not leave", extra={"why": str(error)})
            return False
        if window.rho <= 0.0 and self._privacy_of(window.module) is None:
            return self._offer(stream, payload)
        if len(self._waiting) >= MAX_WAITING:
            return False
        self._waiting.append((window, payload))
        self._wake.set()
        return True

    def spent(self) -> tuple[Spent, ...]:
        """Of the latest days on which anything was spent, newest first."""
        days = sorted({day for day, _ in self._spent}, reverse=True)[:SHOWN_DAYS]
        return tuple(sorted((s for s in self._spent.values() if s.day in days), key=lambda s: (s.day, s.module)))[::-1]

    async def run(self) -> None:
        """Charges and hands on, until cancelled. Raises StoreError: the supervisor starts it again."""
        while True:
            await self._wake.wait()
            await self.flush()
            self._wake.clear()  # nothing waits; after a failure it stays set, for whoever runs this again

    async def flush(self) -> None:
        """Charges and hands on what waits, each window once: also while `run` is at it, when the agent stops."""
        async with self._turn:
            while self._waiting:
                await self._charge(*self._waiting[0])
                self._waiting.popleft()

    async def _charge(self, window: Window, payload: bytes) -> None:
        before = self._of(window)
        afforded = self._affords(window, before)
        after = msgspec.structs.replace(
            before,
            rho=before.rho + (window.rho if afforded else 0.0),
            windows=before.windows + afforded,
            withheld=before.withheld + (not afforded),
        )
        self._spent[(after.day, after.module)] = after
        self._forget()
        await self._store.put(KEY, tuple(self._spent.values()))
        if not afforded:
            _logger.warning("a private window is withheld", extra={"of": window.module, "day": after.day})
        elif not self._offer("window", payload):
            _logger.warning("a private window was charged, and found no room", extra={"of": window.module})

    def _privacy_of(self, module: str) -> Privacy | None:
        policy = self._policy_of(module) or self._last.get(module)
        if policy is None:
            return None
        self._last[module] = policy
        return policy.privacy or None

    def _of(self, window: Window) -> Spent:
        try:
            day = datetime.fromtimestamp(window.start, UTC).date().isoformat()
        except (OverflowError, ValueError, OSError):
            day = "0001-01-01"
        return self._spent.get((day, window.module)) or Spent(window.module, day, 0.0)

    def _affords(self, window: Window, before: Spent) -> bool:
        """Without a policy (any more) there is no bound to hold; what the window spent is counted all the same."""
        privacy = self._privacy_of(window.module)
        if privacy is None:
            return window.rho > 0.0
        return 0.0 < window.rho <= privacy.rho_per_day * (1 + _SLACK) - before.rho

    def _forget(self) -> None:
        days = sorted({day for day, _ in self._spent}, reverse=True)
        for key in [key for key in self._spent if key[0] in days[KEPT_DAYS:]]:
            del self._spent[key]
