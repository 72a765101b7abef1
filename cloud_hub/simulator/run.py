"""One run of `mooring simulate`: devices from a file, from the API or from the hub's directory; then the fleet, until
the end. Called by `operator.cli.simulate`, which shows what it tells.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec

from cloud_hub.operator.client import HubClient
from cloud_hub.operator.context import HubContext
from cloud_hub.operator.errors import FileError
from cloud_hub.simulator.book import EVERY_S, Book
from cloud_hub.simulator.counts import Summary
from cloud_hub.simulator.enrolment import enrol
from cloud_hub.simulator.fleet import Fleet, Member, Place
from cloud_hub.simulator.limits import raise_file_limit
from cloud_hub.simulator.profile import Profile
from cloud_hub.simulator.seeding import seed
from firmware_profiles.catalog import built_in
from firmware_profiles.profile import DeviceProfile

MAX_DEVICES = 60_000
DEVICES = 100  # where nobody says how many, and no file keeps a fleet
_DIGITS = 5


class Wish(msgspec.Struct, frozen=True):
    """What the command was asked for.

    `devices` 0: those of `state`, else DEVICES. Empty `prefix`: one that no earlier run has had; `for_s` 0: until
    stopped. `seed_directory`: the hub's own, for devices without its API. `state`: a file that keeps the fleet between
    runs.
    """

    devices: int
    profile: Profile
    hardware: str
    prefix: str = ""
    tags: dict[str, str] = {}
    for_s: float = 0.0
    state: Path | None = None
    seed_directory: Path | None = None


class Watcher:
    """What a run tells. All on its loop; must not raise. The default says nothing."""

    def enrolled(self, more: int) -> None:
        """So many devices have come in since the last call."""

    def ready(self, devices: int, seconds: float) -> None:
        """The devices are there, and start to connect now."""

    def look(self, summary: Summary) -> None:
        """Once a second."""


async def simulate(context: HubContext, wish: Wish, stop: asyncio.Event, watcher: Watcher) -> Summary:
    """Until `stop` or the end of its time. Raises FileError, Refused, HubUnreachable, OSError."""
    if not 0 <= wish.devices <= MAX_DEVICES:
        raise FileError("too-many-devices", f"expected 1 to {MAX_DEVICES} devices, got {wish.devices}")
    book = Book(wish.state) if wish.state is not None else None
    clean = False
    try:
        devices = wish.devices or (book.size() if book is not None else 0) or DEVICES
        wish = msgspec.structs.replace(wish, devices=devices)
        raise_file_limit(devices * 2 if any(group.clone for group in wish.profile.groups) else devices)
        began = asyncio.get_running_loop().time()
        place, members = await _members(context, wish, book, watcher.enrolled)
        watcher.ready(len(members), asyncio.get_running_loop().time() - began)
        summary = await _live(Fleet(place, members, wish.profile), wish, book, stop, watcher.look)
        if book is not None:
            await book.save(members)
        clean = True
        return summary
    finally:
        if book is not None:
            book.close(clean)


async def _members(
    context: HubContext, wish: Wish, book: Book | None, progress: Callable[[int], None]
) -> tuple[Place, list[Member]]:
    """Those of the book first; those that it lacks come in now."""
    place, members = book.load() if book is not None else (None, [])
    missing = wish.devices - len(members)
    if place is not None and missing <= 0:
        return place, members[: wish.devices]
    prefix = wish.prefix or _prefix_of(members) or f"sim-{secrets.token_hex(2)}"
    first = len(members) + 1
    names = [f"{prefix}-{number:0{_DIGITS}d}" for number in range(first, first + missing)]
    hardware = _hardware(wish.hardware)
    if wish.seed_directory is not None:
        place, fresh = await seed(wish.seed_directory, names, hardware, wish.tags)
        progress(len(fresh))
    else:
        async with HubClient(context, "a simulated fleet") as hub:
            place, fresh = await enrol(hub, names, f"{prefix}-*", hardware, wish.tags, progress)
    if book is not None:
        book.add(place, fresh)
    return place, [*members, *fresh]


def _prefix_of(members: list[Member]) -> str:
    return members[0].identity.device.rpartition("-")[0] if members else ""


def _hardware(name: str) -> DeviceProfile:
    known = built_in()
    if name not in known:
        raise FileError("profile-unknown", f"device profile {name}: expected one of {', '.join(sorted(known))}")
    return known[name]


async def _live(
    fleet: Fleet, wish: Wish, book: Book | None, stop: asyncio.Event, look: Callable[[Summary], None]
) -> Summary:
    loop = asyncio.get_running_loop()
    ends_at = loop.time() + wish.for_s if wish.for_s else None
    async with fleet:
        while not stop.is_set() and (ends_at is None or loop.time() < ends_at):
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), EVERY_S if ends_at is None else min(EVERY_S, ends_at - loop.time()))
            if book is not None:
                await book.save(fleet.changed())
            look(fleet.summary)
        return fleet.summary
