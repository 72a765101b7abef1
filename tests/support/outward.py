"""What brings events out of a hub, over a real database and without the rest of the hub.

As a program (`python -m support.outward FOLDER`) it runs until it is killed.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from cloud_hub.clock import Clock, system_clock
from cloud_hub.config import HubPaths
from cloud_hub.events import Events
from cloud_hub.outward.courier import Trade
from cloud_hub.outward.couriers import Couriers
from cloud_hub.outward.pace import Pace
from cloud_hub.outward.secrets import Vault
from cloud_hub.outward.sending import Sender
from cloud_hub.outward.settings import OutwardSettings
from cloud_hub.outward.webhooks import NewWebhook, Webhooks
from cloud_hub.store.engine import Store

SOURCE = "https://hub.example.com:8443"
LOOPBACK = OutwardSettings(private_addresses=True, plain_http=True)
QUICK = Pace(first_s=0.02, last_s=0.1)


@dataclass(frozen=True)
class Outside:
    """The parts that tests use."""

    store: Store
    events: Events
    webhooks: Webhooks
    sender: Sender
    trade: Trade

    async def happen(self, *kinds: str, subject: str = "digits:1", **details: object) -> None:
        async with self.store.write() as connection:
            for kind in kinds:
                await self.events.record(connection, kind, "alice", subject, **details)

    async def hook(self, url: str, **choice: object) -> tuple[str, str]:
        """The id of a new webhook and its secret."""
        made = await self.webhooks.create(NewWebhook(url, **choice), "alice")  # type: ignore[arg-type]
        return made.webhook.id, made.secret


@asynccontextmanager
async def outside(
    paths: HubPaths,
    store: Store,
    clock: Clock = system_clock,
    settings: OutwardSettings = LOOPBACK,
    pace: Pace = QUICK,
    delivering: bool = True,
) -> AsyncIterator[Outside]:
    """Delivers inside, unless `delivering` is false."""
    events = Events(store, clock)
    webhooks = Webhooks(store, events, clock, settings, Vault(paths.outward_key), SOURCE)
    async with Sender(settings) as sender:
        trade = Trade(store, events, clock, webhooks, sender, SOURCE, pace, gather_s=0.01)
        task = asyncio.create_task(Couriers(trade, 7 * 86_400.0, 30 * 86_400.0).run()) if delivering else None
        try:
            yield Outside(store, events, webhooks, sender, trade)
        finally:
            if task is not None:
                task.cancel()
                await asyncio.wait([task], timeout=30)


async def _serve(paths: HubPaths) -> None:
    store = await Store.open(paths.database_url, migrate=False)
    async with outside(paths, store):
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_serve(HubPaths(Path(sys.argv[1]))))
