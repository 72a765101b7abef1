"""Rings the doorbells of many devices at the pace at which the hub answers what they ask then.

Each device that hears its bell asks ten questions within seconds. Ten thousand that hear it together would get their
first answers when they have given up waiting, and ask again. So sets are signed ahead and bells rung slice by slice,
and the next slice waits while many questions do. Nobody waits for it: what is lost with the process is rung by the
round for devices that lag behind (`link`). Called by the rollout controller and `arms.candidates`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Final

from cloud_hub.errors import HubError

FEW: Final = 20  # rung at once: whoever called sees them rung
SLICE: Final = 100

log = logging.getLogger(__name__)


class Ringing:
    """`ready` makes what these devices will ask for, `ring` tells them, and returns when more may be told."""

    def __init__(
        self,
        ready: Callable[[Collection[str]], Awaitable[None]],
        ring: Callable[[Mapping[str, int]], Awaitable[None]],
    ) -> None:
        self._ready = ready
        self._ring = ring
        self._waiting: dict[str, int] = {}
        self._more = asyncio.Event()

    async def ring_all(self, versions: Mapping[str, int]) -> None:
        """Of each device, that its director stands at this version. Many are rung behind this call."""
        if len(versions) <= FEW and not self._waiting:
            await self._slice(versions)
            return
        self._waiting.update(versions)
        self._more.set()

    async def run(self) -> None:
        """Rings what waits, until cancelled."""
        while True:
            await self._more.wait()
            self._more.clear()
            while self._waiting:
                some = {device: self._waiting[device] for device, _ in zip(self._waiting, range(SLICE), strict=False)}
                for device in some:
                    del self._waiting[device]
                try:
                    await self._slice(some)
                except (HubError, OSError) as error:
                    log.warning(
                        "%s doorbells not rung now, the round for those behind rings them: %s", len(some), error
                    )

    async def _slice(self, versions: Mapping[str, int]) -> None:
        if versions:
            await self._ready(list(versions))
            await self._ring(versions)
