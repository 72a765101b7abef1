"""Who has the bytes of a file: the hub over MQTT or HTTPS, a store, a gateway next door, a folder. None is trusted.

What a source gives is checked by `agent.transfer.pull` against the signed manifest before it is kept.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from agent.link import Link


class Source(Protocol):
    """Where blocks come from. `name` is for logs and reports: mqtt, https, gateway, folder."""

    name: str

    async def read(self, sha256: str, offset: int, length: int, timeout_s: float) -> bytes:
        """Bytes [offset, offset+length) of the blob with this digest, unverified; fewer at its end.

        Ends within `timeout_s`. Raises LinkDown (cannot be reached now), LinkTimeout, Refused (not-found, not-allowed,
        busy, bad-request), LinkError (what came is not what was asked for).
        """
        ...


@runtime_checkable
class Suspect(Source, Protocol):
    """A source that wants to hear when what it gave was not what was asked for."""

    def wrong(self, sha256: str) -> None:
        """Called for each such block of this file. Must not raise."""
        ...


class MqttSource:
    """The hub, over the device's one connection. `grant` lets a gateway fetch for its neighbours."""

    name = "mqtt"

    def __init__(self, link: Link, grant: str = "") -> None:
        self.connected = link.connected  # set while it can be reached
        self._link, self._grant = link, grant

    async def read(self, sha256: str, offset: int, length: int, timeout_s: float) -> bytes:
        return (await self._link.get("blob", sha256, offset, length, timeout_s, grant=self._grant)).data
