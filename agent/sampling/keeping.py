"""The ring as the policy has it: opened, changed, closed, and searched for what the hub asks. Worker side.

Used by `agent.sampling.taking`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from agent.backends import Array
from agent.endpoint.codec import from_tensor
from agent.sampling.ring import Entry, Record, Ring
from agent.sampling.strata import Strata
from modules.commands import AskSamples
from modules.manifest import SamplingPolicy
from modules.tensors import Tensor

DEFAULT_AGE_S = 86_400.0

log = logging.getLogger(__name__)


class Row(NamedTuple):
    """One row as it was kept, its tensors with batch size 1."""

    id: str
    inputs: dict[str, Array]
    outputs: dict[str, Array]


class Kept:
    """A ring that is open. `batched` are the tensors with rows of their own; others belong to every row."""

    def __init__(self, ring: Ring, batched: frozenset[str]) -> None:
        self.ring = ring
        self._batched = batched

    def append(self, at: float, ids: tuple[str, ...], inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...]) -> int:
        """The number of the first row; 0 where they were too large."""
        return self.ring.append(Record(at, ids, inputs, outputs))

    def expire(self, now: float) -> None:
        self.ring.expire(now)

    def find(self, asked: AskSamples, strata: Strata) -> Iterator[tuple[int, float, Row]]:
        """Rows that fit, the newest first: number, time, and the row."""
        for entry in self.ring.newest():
            wanted = _wanted(entry, asked)
            record = self.ring.read(entry) if wanted else None
            if record is None:
                continue
            inputs, outputs = ({t.name: from_tensor(t) for t in side} for side in (record.inputs, record.outputs))
            if asked.stratum:
                fits = strata.which(asked.stratum, inputs, outputs, entry.rows)
                wanted = [row for row in wanted if fits[row]]
            for row in reversed(wanted):
                left, right = (self._row(side, row, entry.rows) for side in (inputs, outputs))
                yield entry.first + row, entry.at, Row(record.ids[row], left, right)

    def _row(self, arrays: Mapping[str, Array], row: int, rows: int) -> dict[str, Array]:
        has = {name for name, array in arrays.items() if name in self._batched and array.shape[0] == rows}
        return {name: array[row : row + 1] if name in has else array for name, array in arrays.items()}


def open_ring(before: Kept | None, handle: int, policy: SamplingPolicy | None, batched: frozenset[str]) -> Kept | None:
    """As the policy wants it; what a policy no longer wants is blanked."""
    rows = (policy.ring_rows or 0) if policy is not None else 0
    if before is not None and (not rows or policy is None):
        before.ring.clear()
        before.ring.close()
        return None
    if not rows or policy is None or handle < 0:
        return None
    age_s = policy.ring_s or DEFAULT_AGE_S
    if before is not None:
        before.ring.rows, before.ring.age_s = rows, age_s
        return before
    try:
        return Kept(Ring(handle, rows, age_s), batched)
    except (OSError, ValueError) as error:
        log.error("no predictions are kept for later: %s", error)
        return None


def _wanted(entry: Entry, asked: AskSamples) -> list[int]:
    """The rows of the entry that the question may mean, before anybody has looked into them."""
    if asked.since > entry.at or (asked.until and entry.at >= asked.until):
        return []
    last = asked.last or entry.first + entry.rows
    rows = range(max(0, asked.first - entry.first), min(entry.rows, last - entry.first + 1))
    if not asked.id:
        return list(rows)
    return [row for row in rows if entry.ids[row] == asked.id or entry.ids[row].rpartition("#")[0] == asked.id]
