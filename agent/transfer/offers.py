"""What the hub offers for files, asked once and kept as long as it holds: addresses, grants, patches.

Called by the fetcher before it begins, and by the HTTPS and gateway sources for each file they are asked for. An answer
is never needed: a hub that is old, slow or away offers nothing, and files then come in blocks over MQTT.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from agent.errors import LinkDown, LinkError, LinkTimeout
from agent.link import Link
from modules.bundle import FileEntry
from modules.messages import MAX_OFFERS, Offered, Way

ASK_S = 5.0  # one question; a hub of before 0.2 lets it run out
# How long a hub that did not answer is not asked again on the same connection: twice as long each time.
SILENT_FIRST_S, SILENT_MOST_S = 15.0, 600.0
AGAIN_S = 10.0  # between two questions about the same file
BATCH = 64
MAX_KEPT = 2048

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Kept:
    """One answer: `way` is None where the hub offers nothing."""

    way: Way | None
    held: frozenset[str]
    asked_at: float
    ends_at: float


class Offering:
    """One per agent. `clock` counts seconds and never goes back."""

    def __init__(self, link: Link, clock: Callable[[], float] = time.monotonic) -> None:
        self._link, self._clock = link, clock
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self._patched: OrderedDict[str, tuple[str, str]] = OrderedDict()  # patch -> (file, base)
        self._turn = asyncio.Lock()
        self._silent_session, self._silent_until, self._unanswered = -1, 0.0, 0

    async def ways(self, files: Sequence[FileEntry], held: Sequence[str]) -> dict[str, Way]:
        """The ways to each of these files, by digest, with patches from those held. Whatever fails, fewer of them."""
        return await self._ways([entry.sha256 for entry in files], held)

    async def url(self, sha256: str) -> str:
        """Where the file, or patch, can be had over HTTPS now: an address, perhaps relative to the hub's; or empty."""
        way = await self._one(sha256)
        return way[0] if way else ""

    async def grant(self, sha256: str) -> str:
        """With which a gateway may fetch the file, or patch, for this device; or empty."""
        way = await self._one(sha256)
        return way[1] if way else ""

    def forget(self, sha256: str) -> None:
        """What was offered does not work: the next question goes to the hub, unless the last was a moment ago."""
        file = self._patched.get(sha256, (sha256, ""))[0]
        kept = self._kept.get(file)
        if kept is not None:
            self._kept[file] = _Kept(None, kept.held, kept.asked_at, 0.0)

    async def _one(self, sha256: str) -> tuple[str, str] | None:
        file, base = self._patched.get(sha256, (sha256, ""))
        way = (await self._ways([file], [base] if base else [])).get(file)
        if way is None:
            return None
        if not base:
            return way.url, way.grant
        return next(((patch.url, patch.grant) for patch in way.patches if patch.sha256 == sha256), None)

    async def _ways(self, files: Sequence[str], held: Sequence[str]) -> dict[str, Way]:
        held = list(dict.fromkeys(held))[:MAX_OFFERS]
        async with self._turn:
            now = self._clock()
            missing = [file for file in dict.fromkeys(files) if not self._is_known(file, held, now)]
            for batch in _batches(missing):
                if not await self._ask(batch, held):
                    break
        found = {file: self._kept[file].way for file in files if file in self._kept}
        return {file: way for file, way in found.items() if way is not None}

    def _is_known(self, file: str, held: Iterable[str], now: float) -> bool:
        kept = self._kept.get(file)
        if kept is None:
            return False
        if now < kept.asked_at + AGAIN_S and kept.held.issuperset(held):
            return True
        return now < kept.ends_at and kept.held.issuperset(held)

    async def _ask(self, files: Sequence[str], held: Sequence[str]) -> bool:
        """Whether the hub answered."""
        session = self._link.session
        if session == self._silent_session and self._clock() < self._silent_until:
            return False
        try:
            offered = await self._link.offers(tuple(files), tuple(held), ASK_S)
        except LinkDown:
            return False
        except LinkError as error:
            if not isinstance(error, LinkTimeout):
                _log.warning("no offers from the hub: %s", error)
            pause = min(SILENT_MOST_S, SILENT_FIRST_S * 2 ** min(self._unanswered, 10))
            self._silent_session, self._silent_until = session, self._clock() + pause
            self._unanswered += 1
            return False
        self._unanswered = 0
        self._keep(files, held, offered)
        return True

    def _keep(self, files: Sequence[str], held: Sequence[str], offered: Offered) -> None:
        now = self._clock()
        ways = {way.file: way for way in offered.ways}
        for file in files:
            self._kept[file] = _Kept(ways.get(file), frozenset(held), now, now + offered.valid_s)
            self._kept.move_to_end(file)
            for patch in ways[file].patches if file in ways else ():
                self._patched[patch.sha256] = (file, patch.base)
                self._patched.move_to_end(patch.sha256)
        for kept in (self._kept, self._patched):
            while len(kept) > MAX_KEPT:
                kept.popitem(last=False)


def _batches(files: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(files), BATCH):
        yield files[start : start + BATCH]
