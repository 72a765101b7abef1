"""Says weeks ahead when something signed offline will end: as events, once a week, and in the log.

Called by `service` on a schedule; `mooring trust status` and `mooring-hub doctor` say the same when asked.
"""

from __future__ import annotations

import logging
import math
from typing import Final

from cloud_hub.clock import Clock
from cloud_hub.events import Events
from cloud_hub.store.engine import Store
from cloud_hub.trust.standing import DAY_S, RoleState, read_states

EXPIRING: Final = "trust.expiring"
log = logging.getLogger(__name__)


class ExpiryWatch:
    """Remembers what it has said; after a restart it says it once more."""

    def __init__(self, store: Store, events: Events, clock: Clock) -> None:
        self._store = store
        self._events = events
        self._clock = clock
        self._said: set[tuple[str, str, int | None, int]] = set()

    async def check(self) -> list[RoleState]:
        """Roles that end soon; an event for each that has not had one this week of its life."""
        now = self._clock()
        async with self._store.read() as connection:
            soon = [state for state in await read_states(connection) if state.warning(now)]
        for state in soon:
            weeks = math.ceil(((state.expires_at or now) - now) / (7 * DAY_S))
            said = (state.repository, state.role, state.version, weeks)
            if said in self._said:
                continue
            self._said.add(said)
            log.warning("signed metadata ends soon: %s", state.warning(now))
            await self._record(state, state.warning(now))
        return soon

    async def _record(self, state: RoleState, warning: str) -> None:
        subject = f"{state.repository}/{state.role}"
        async with self._store.write() as connection:
            await self._events.record(
                connection, EXPIRING, "hub", subject,
                version=state.version, expires_at=state.expires_at, warning=warning,
            )  # fmt: skip
