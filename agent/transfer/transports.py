"""Every way by which this device gets files over the network, made once, in the order of `fetch.transports`.

Called by `service`, which gives the sources to the fetcher, runs the gateway where this device is one, and closes all.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from agent.config import AgentConfig, StatePaths, parse_place
from agent.errors import ConfigError
from agent.https import address
from agent.identity import pinned_tls
from agent.link import Link
from agent.news import Tell
from agent.transfer.https import HttpsSource
from agent.transfer.offers import Offering
from agent.transfer.schedule import Gate
from agent.transfer.source import MqttSource, Source

if TYPE_CHECKING:
    from agent.transfer.gateway import Gateway

Find = Callable[[str], Path | None]
_log = logging.getLogger(__name__)


class Transports:
    """`sources` in their order; `gateway` is None where this device is none. `find` looks up a whole file in a slot."""

    def __init__(self, config: AgentConfig, paths: StatePaths, link: Link, find: Find, tell: Tell) -> None:
        """Raises ConfigError (bad-address)."""
        fetch = config.fetch
        self.offering = Offering(link)
        self.gate = Gate(fetch.hours, fetch.max_bytes_per_s)
        self.gateway: Gateway | None = None
        self._close: list[Callable[[], None]] = []
        make: dict[str, Callable[[], Source | None]] = {
            "gateway": partial(self._gateway, config, paths, link, find, tell),
            "https": partial(self._https, config, paths),
            "mqtt": lambda: MqttSource(link),
        }
        made = [make[name]() for name in fetch.transports]
        self.sources: tuple[Source, ...] = tuple(source for source in made if source is not None)
        if not self.sources:
            _log.warning("no transport is left of %s, using mqtt", fetch.transports)
            self.sources = (MqttSource(link),)

    def close(self) -> None:
        """Ends connections and threads."""
        for close in self._close:
            close()

    def _https(self, config: AgentConfig, paths: StatePaths) -> Source:
        hub = address(ConfigError, config.hub)
        source = HttpsSource(self.offering, hub, lambda: pinned_tls(paths.server_ca.read_text()))
        self._close.append(source.close)
        return source

    def _gateway(self, config: AgentConfig, paths: StatePaths, link: Link, find: Find, tell: Tell) -> Source | None:
        """A gateway fetches for itself as it does for neighbours; others ask the gateways that they are told."""
        if config.gateway.listen:
            return self._own(config, paths, link, find)
        return self._neighbour(config, paths, tell) if config.fetch.gateways else None

    # Imported only where they are used: most devices are no gateways and know none, and memory is dear.

    def _own(self, config: AgentConfig, paths: StatePaths, link: Link, find: Find) -> Source:
        from agent.transfer.gateway import Gateway
        from agent.transfer.gateway_cache import Cache
        from agent.transfer.gateway_store import GatewayStore, OwnSource

        cache = Cache(paths.gateway, config.gateway.cache_bytes, config.fetch.disk_margin_bytes, find)
        store = GatewayStore(link, cache, config.fetch, self.gate)
        self.gateway = Gateway(config.gateway, paths, store)
        return OwnSource(store, self.offering)

    def _neighbour(self, config: AgentConfig, paths: StatePaths, tell: Tell) -> Source:
        from agent.transfer.gateway_source import GatewaySource

        places = [parse_place(text) for text in config.fetch.gateways]
        source = GatewaySource(places, paths, self.offering, tell)
        self._close.append(source.close)
        return source
