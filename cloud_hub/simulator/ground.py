"""What all simulated devices of a process share: clock, chance, timers, sockets, trust, counts, and the broker's place.

Made by `fleet`, read by `session` and `device`.
"""

from __future__ import annotations

import random
import socket
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from cloud_hub.simulator.counts import Counts
from cloud_hub.simulator.facts import Facts
from cloud_hub.simulator.identity import Tls
from cloud_hub.simulator.poller import Poller
from cloud_hub.simulator.profile import Profile
from cloud_hub.simulator.trust import Trust
from cloud_hub.simulator.wheel import Wheel
from cloud_hub.simulator.windows import Draws
from firmware_profiles.profile import DeviceProfile
from modules.messages import Answer, Get, ModuleReport, Refusal

HANDSHAKES_AT_ONCE = 96  # below the backlog of brokers; the devices would be on processors of their own


class Asker(Protocol):
    """A device, to those who do something once for all over its connection."""

    async def ask(self, get: Get) -> Answer | Refusal:
        """Raises `walk.Unanswered`."""

    def verified(self, failure: str) -> None:
        """The chain has been verified, or why not."""


def _nobody(*_: object) -> None:
    """Until `fleet` has put itself here."""


class Slots:
    """Who may shake hands now, and who waits: the simulator's own processor must not make connections late."""

    def __init__(self, most: int = HANDSHAKES_AT_ONCE) -> None:
        self._free = most
        self._waiting: deque[Callable[[], bool]] = deque()

    def ask(self, begin: Callable[[], bool]) -> None:
        """Calls `begin` now or later; it says whether it needs the slot."""
        self._waiting.append(begin)
        self._serve()

    def give_back(self) -> None:
        self._free += 1
        self._serve()

    def _serve(self) -> None:
        while self._free and self._waiting:
            self._free -= 1
            if not self._waiting.popleft()():
                self._free += 1


@dataclass
class Ground:
    """`host` is the name in the broker's certificate, `address` where it is reached. `draws` are by manifest digest."""

    profile: Profile
    hardware: DeviceProfile
    host: str
    address: tuple[str, int]
    tls: Tls
    trust: Trust
    family: int = socket.AF_INET
    facts: Facts = field(default_factory=Facts)
    counts: Counts = field(default_factory=Counts)
    poller: Poller = field(default_factory=Poller)
    slots: Slots = field(default_factory=Slots)
    draws: dict[str, Draws | None] = field(default_factory=dict)
    verify: Callable[[Asker], None] = _nobody  # has the chain verified, then calls the device back
    learn: Callable[[Asker, ModuleReport], None] = _nobody  # has the module's reference fetched
    now: Callable[[], float] = time.monotonic
    clock: Callable[[], float] = time.time

    def __post_init__(self) -> None:
        self.wheel = Wheel(self.now())
        self.chance = random.Random()
