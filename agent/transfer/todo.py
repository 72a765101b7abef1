"""What is still to be asked for in one run, block by block, and of whom not any more. Pure bookkeeping, no waiting but
for the next thing to do. Used by `agent.transfer.pull`.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass

from agent.errors import FetchError, Refused
from agent.transfer.partial import Partial

# A chunk that is wrong twice from the same source is no accident of the way.
TRIES = 2


@dataclass(frozen=True)
class Block:
    """A range of one file, asked for in one go. `whole`: not to be cut, whatever the size of a block is."""

    partial: Partial
    start: int
    stop: int
    whole: bool = False

    @property
    def size(self) -> int:
        return self.stop - self.start


class Todo:
    """Ranges that are missing, the first of which is next. `strikes`, `excludes`, `hopeless` are about that one."""

    def __init__(self, partials: Sequence[Partial]) -> None:
        self._ranges = deque(Block(partial, *range_) for partial in partials for range_ in partial.missing())
        self._under_way = 0
        self._changed = asyncio.Event()
        self._strikes: Counter[tuple[str, str, int]] = Counter()  # by source, file, chunk
        self._refused: dict[tuple[str, str], Refused] = {}  # by source, file
        self._twins = _twins(partials)
        self._names = ", ".join(sorted(partial.plan.name for partial in partials))[:200]

    @property
    def name(self) -> str:
        """The files, for messages."""
        return self._names

    @property
    def short(self) -> bool:
        """Whether nothing more is left to ask for."""
        return not self._ranges

    async def more(self) -> bool:
        """True when there is something to ask for; False when all is here. Waits for what is under way."""
        while True:
            self._skip()
            if self._ranges:
                return True
            if not self._under_way:
                return False
            self._changed.clear()
            await self._changed.wait()

    def changed_from(self, source: str) -> bool:
        """Whether this source, chosen a moment ago, is not to be asked any more: nothing is left, or it spoilt it."""
        self._skip()
        return not self._ranges or self.excludes(source)

    def take(self, most: int) -> Block:
        """The next block, at most `most` bytes; it counts as under way until `ended`."""
        first = self._ranges.popleft()
        cut = first.stop if first.whole else first.partial.cut(first.start, first.stop, most)
        if cut < first.stop:
            self._ranges.appendleft(Block(first.partial, cut, first.stop))
        self._under_way += 1
        return Block(first.partial, first.start, cut, first.whole)

    def not_twins(self, sha256: str) -> None:
        """A copy of this chunk was wrong: it is asked for at each place."""
        self._twins.pop(sha256, None)

    def ended(self, block: Block) -> None:
        self._under_way -= 1
        self._changed.set()

    def again(self, block: Block) -> None:
        """It did not come."""
        if block.size > 0:
            self._ranges.appendleft(block)

    def twin(self) -> tuple[Partial, int, Partial, int] | None:
        """Where the chunk that is next has come already, for another file or place: from there, to here."""
        first = self._ranges[0]
        index = first.partial.index(first.start)
        for partial, other in self._twins.get(first.partial.plan.stretches[index].sha256, ()):
            if partial.has(other):
                return partial, other, first.partial, index
        return None

    def strike(self, source: str, partial: Partial, index: int) -> None:
        """This source gave a chunk that is wrong; it is asked for once more, by itself."""
        self._strikes[source, partial.plan.sha256, index] += 1
        self._ranges.appendleft(Block(partial, *partial.chunk(index), whole=True))

    def refuse(self, source: str, partial: Partial, error: Refused) -> None:
        """This source will not give the file."""
        self._refused[source, partial.plan.sha256] = error

    def strikes(self, source: str) -> int:
        return self._strikes[source, *self._next()]

    def excludes(self, source: str) -> bool:
        sha256, index = self._next()
        return (source, sha256) in self._refused or self._strikes[source, sha256, index] >= TRIES

    def hopeless(self) -> FetchError:
        """Why nobody can be asked for what is next."""
        first, (sha256, index) = self._ranges[0], self._next()
        name = first.partial.plan.name
        times = sum(count for (_, file, chunk), count in self._strikes.items() if (file, chunk) == (sha256, index))
        if times >= TRIES:
            chunk = first.partial.plan.stretches[index]
            text = f"{name}, chunk {index}: expected {chunk.size} bytes with sha256 {chunk.sha256}, got others"
            return FetchError(f"{text} {times} times", "chunk-mismatch")
        refusals = [error for (_, file), error in self._refused.items() if file == sha256]
        if not refusals:
            return FetchError(f"{name}: there is no source to fetch it from; check the setting transports", "refused")
        key = "not-found" if refusals[-1].key == "not-found" else "refused"
        return FetchError(f"{name}: the hub refused: {refusals[-1]}", key)

    def _next(self) -> tuple[str, int]:
        first = self._ranges[0]
        return first.partial.plan.sha256, first.partial.index(first.start)

    def _skip(self) -> None:
        """Past what has come meanwhile from elsewhere."""
        while self._ranges:
            first = self._ranges[0]
            index = first.partial.index(first.start)
            if not first.partial.has(index):
                return
            _, end = first.partial.chunk(index)
            self._ranges.popleft()
            if end < first.stop:
                self._ranges.appendleft(Block(first.partial, end, first.stop))


def _twins(partials: Sequence[Partial]) -> dict[str, list[tuple[Partial, int]]]:
    """Chunks that are wanted more than once, by digest."""
    counts = Counter(one.sha256 for partial in partials for one in partial.plan.stretches if one.sha256)
    found: dict[str, list[tuple[Partial, int]]] = {}
    for partial in partials:
        for index, one in enumerate(partial.plan.stretches):
            if counts[one.sha256] > 1:
                found.setdefault(one.sha256, []).append((partial, index))
    return found
