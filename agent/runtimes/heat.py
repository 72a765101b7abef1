"""Backs off before the machine throttles or ends itself: what modules may do depends on how warm it is.

    cool   everything
    warm   candidates rest: they get no inputs, and answer nothing
    warm   modules of low priority get a part of the processors
    hot    modules of low priority answer 503 and their sources wait; sources of normal priority wait, too, and their
           modules get a part of the processors. High priority goes on in any case: the firmware has the last word

A warmer state is entered at its temperature and left some degrees below. `judged` and `burden` are pure; `Heat` is a
unit of the supervisor, made by `agent.service`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from enum import IntEnum
from fnmatch import fnmatch

import msgspec

from agent.config import HeatSettings
from agent.news import Tell, nobody
from agent.probe.heat import Heat as Reading
from agent.probe.heat import heat
from agent.probe.tree import THIS, Tree
from modules.manifest import Priority

# What a firmware does about heat, as `agent.probe.heat` says it; a weak power supply is no heat.
_HELD_BACK = frozenset({"throttled", "soft temperature limit"})

_logger = logging.getLogger(__name__)


class Warmth(IntEnum):
    """How warm it is, in order."""

    COOL = 0
    WARM = 1
    HOT = 2


class Burden(msgspec.Struct, frozen=True):
    """What a module bears: only a part of the processors; no requests; no inputs of its own."""

    slow: bool = False
    requests: bool = False
    sources: bool = False


NO_BURDEN = Burden()


def judged(before: Warmth, celsius: float | None, held_back: bool, settings: HeatSettings) -> Warmth:
    """How warm it is now; `held_back` is the firmware's word, and at least warm. Nothing that can be read is cool."""
    lowest = Warmth.WARM if held_back else Warmth.COOL
    if celsius is None:
        return lowest
    stays = settings.hysteresis_c
    hot = settings.hot_c - (stays if before is Warmth.HOT else 0.0)
    warm = settings.warm_c - (stays if before >= Warmth.WARM else 0.0)
    return max(lowest, Warmth.HOT if celsius >= hot else Warmth.WARM if celsius >= warm else Warmth.COOL)


def burden(warmth: Warmth, priority: Priority, candidate: bool = False) -> Burden:
    if warmth is Warmth.COOL or (priority == "high" and not candidate):
        return NO_BURDEN
    if candidate:
        return Burden(slow=True, requests=True, sources=True)
    if warmth is Warmth.WARM:
        return Burden(slow=priority == "low")
    return Burden(slow=True, requests=priority == "low", sources=True)


class Heat:
    """`bear` tells everybody how warm it is, on every change. `warmth` is how warm it was at the last look."""

    def __init__(
        self,
        settings: HeatSettings,
        bear: Callable[[Warmth], Awaitable[None]],
        tell: Tell = nobody,
        tree: Tree = THIS,
    ) -> None:
        self.warmth = Warmth.COOL
        self._settings = settings
        self._bear = bear
        self._tell = tell
        self._tree = tree

    async def run(self) -> None:
        """Looks again and again, until cancelled."""
        while self._settings.every_s:
            await self.look()
            await asyncio.sleep(self._settings.every_s)

    async def look(self) -> None:
        # In a thread: a sensor on a slow bus takes its time.
        reading = await asyncio.to_thread(heat, self._tree)
        zones = [zone for zone in reading.zones if self._counts(zone.name)]
        hottest = max(zones, key=lambda zone: zone.celsius, default=None)
        held_back = bool(_HELD_BACK & set(reading.throttled))
        warmth = judged(self.warmth, hottest.celsius if hottest else None, held_back, self._settings)
        if warmth is self.warmth:
            return
        before, self.warmth = self.warmth, warmth
        where = f"{hottest.name} {hottest.celsius:.0f} °C" if hottest else "no sensor"
        self._say(before, warmth, where, reading)
        await self._bear(warmth)

    def _counts(self, name: str) -> bool:
        return not self._settings.zones or any(fnmatch(name, pattern) for pattern in self._settings.zones)

    def _say(self, before: Warmth, now: Warmth, where: str, reading: Reading) -> None:
        held = f", held back: {', '.join(reading.throttled)}" if reading.throttled else ""
        text = f"{where}{held}: {_WORDS[now]}"
        _logger.warning("heat", extra={"before": before.name.lower(), "now": now.name.lower(), "where": where})
        self._tell("info" if now is Warmth.COOL else "warning", f"device-{now.name.lower()}", text, "")


_WORDS = {
    Warmth.COOL: "modules do as before",
    Warmth.WARM: "modules of low priority get less of the processors",
    Warmth.HOT: "modules of low priority answer 503, and only high priority takes inputs of its own",
}
