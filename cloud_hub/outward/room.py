"""Builds what brings events out of the hub, and runs it beside the hub's other work. Called by `service`."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

import aiomqtt

from cloud_hub.clock import Clock
from cloud_hub.config import HubConfig, HubPaths
from cloud_hub.events import Events
from cloud_hub.outward.courier import Trade
from cloud_hub.outward.couriers import Couriers
from cloud_hub.outward.feed import EventFeed
from cloud_hub.outward.log_file import LogFile
from cloud_hub.outward.mqtt import OtherBroker, Topics
from cloud_hub.outward.pace import Pace
from cloud_hub.outward.secrets import Vault
from cloud_hub.outward.sending import Sender
from cloud_hub.outward.settings import OutwardSettings
from cloud_hub.outward.sinks import Sink, Take
from cloud_hub.outward.webhooks import Webhooks
from cloud_hub.store.engine import Store

if TYPE_CHECKING:
    from cloud_hub.link import HubLink

DAY_S: Final = 86_400.0
DELIVERED_DAYS: Final = 7.0
RETRY_S: Final = 60.0
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outward:
    """`webhooks` for administrators, `sender` for what they try out; `run` brings events out.

    `delivered` counts deliveries of webhooks by what became of them, `taken` events by sink and outcome.
    """

    store: Store
    settings: OutwardSettings
    source: str
    webhooks: Webhooks
    sender: Sender
    trade: Trade
    link: HubLink
    taken: Counter[tuple[str, str]] = field(default_factory=Counter)

    @property
    def delivered(self) -> Counter[str]:
        return self.trade.tally

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            try:
                await self._bring()
            except OSError as error:
                log.error("no events leave the hub, trying again in %s s: %s", RETRY_S, error)
                await asyncio.sleep(RETRY_S)

    async def _bring(self) -> None:
        settings = self.settings
        async with AsyncExitStack() as parts:
            await parts.enter_async_context(self.sender)
            await self._forget_sinks()
            work = [Couriers(self.trade, DELIVERED_DAYS * DAY_S, settings.dead_days * DAY_S).run()]
            if settings.log:
                file = LogFile(Path(settings.log), settings.log_mib * 1024**2, settings.log_files)
                work.append(self._sink("log", file.take).run())
            if settings.mqtt_topic:
                work.append(self._sink("mqtt", self._topics(parts).take).run())
            # None of them ends by itself.
            await asyncio.gather(*work)

    async def _forget_sinks(self) -> None:
        """One that is switched off begins anew when it is switched on again."""
        off = [
            name for name, setting in (("log", self.settings.log), ("mqtt", self.settings.mqtt_topic)) if not setting
        ]
        async with self.store.write() as connection:
            for name in off:
                await EventFeed(self.store, name).close(connection)

    def _topics(self, parts: AsyncExitStack) -> Topics:
        if not self.settings.mqtt_broker:
            return Topics(self.settings.mqtt_topic, self.link.publish_event)
        other = OtherBroker(self.settings)
        parts.push_async_callback(other.close)
        return Topics(self.settings.mqtt_topic, other.publish)

    def _sink(self, name: str, take: Take) -> Sink:
        failures = (OSError, aiomqtt.MqttError)
        return Sink(self.store, name, self.source, self.settings.kinds, take, failures, self.taken)


def outward(config: HubConfig, paths: HubPaths, store: Store, events: Events, clock: Clock, link: HubLink) -> Outward:
    """Nothing is sent before `run`."""
    settings, source = config.outward, config.api_url
    webhooks = Webhooks(store, events, clock, settings, Vault(paths.outward_key), source)
    sender = Sender(settings)
    pace = Pace(retry_s=settings.retry_hours * 3600.0, give_up_s=settings.give_up_days * DAY_S)
    trade = Trade(store, events, clock, webhooks, sender, source, pace)
    return Outward(store, settings, source, webhooks, sender, trade, link)
