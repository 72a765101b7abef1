"""Which predictions come back whole: decided once per prediction, by a hash of its id. Worker side.

So inputs, outputs and a late label are kept or dropped together, the choice can be repeated, and the recorded
probability lets the hub re-weight. A row's rate is the largest of the strata that it fits, times what the quota leaves.
Pure but for the clock given; called by `agent.sampling.taking` after the answer was written.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import NamedTuple

from agent.backends import Array
from agent.sampling.features import Names
from agent.sampling.quota import Quota
from agent.sampling.strata import Strata
from modules.manifest import Manifest, SamplingPolicy
from modules.sampling import FIRST
from modules.windows import Numeric, ReferenceProfile

_WHOLE = 2.0**64
_MANY_ROWS = 64  # asking each of more costs more than what it saves


class Choice(NamedTuple):
    """A row that is kept, why, and with which chance it was."""

    row: int
    stratum: str
    probability: float


class Rows(NamedTuple):
    """Rows of one run, to be chosen from. `beside` is what a sample takes beside its values, in bytes."""

    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]
    total: int
    beside: int

    @property
    def size(self) -> int:
        """What the sample of one row takes, about."""
        raw = sum(array.nbytes for side in (self.inputs, self.outputs) for array in side.values())
        return max(1, raw // max(1, self.total) + self.beside)


def share(prediction_id: str, digest: str, salt: str) -> float:
    """The prediction's place in [0, 1), the same wherever it is computed."""
    return int.from_bytes(_hash(prediction_id, _tail(digest, salt)), "big") / _WHOLE


def _tail(digest: str, salt: str) -> bytes:
    return f"\0{digest}\0{salt}".encode()


def _hash(prediction_id: str, tail: bytes) -> bytes:
    return hashlib.blake2b(prediction_id.encode() + tail, digest_size=8).digest()


def row_id(prediction_id: str, row: int, rows: int) -> str:
    """One row is the prediction itself; rows of a batch have their number behind it."""
    return prediction_id if rows == 1 else f"{prediction_id}#{row}"


class Sampler:
    """The policy of one module, applied. `digest` is the manifest's. `thinned` counts what only the quota left out."""

    def __init__(
        self,
        digest: str,
        scores: str,
        names: Names,
        policy: SamplingPolicy,
        quota: Quota,
        now: Callable[[], float],
    ) -> None:
        """`scores` is the output whose largest element is the confidence; empty when there is none. `now` is the
        quota's clock. Raises PolicyError.
        """
        self._scores = scores
        self._digest = digest
        self._names = names
        self._quota = quota
        self._now = now
        self._seen = 0
        self.thinned = 0
        self.set(policy)

    def set(self, policy: SamplingPolicy) -> None:
        """From the next prediction on. Raises PolicyError; then the policy before stays."""
        self.strata = Strata(policy, self._names, self._scores)
        self.policy = policy
        self._tail = _tail(self._digest, policy.salt)  # hashed for every prediction

    def choose_as(self, digest: str) -> None:
        """From now on, by the hash that another build chooses with: of what both predict, both keep the same."""
        self._digest = digest
        self._tail = _tail(digest, self.policy.salt)

    def choose(self, ids: list[str], rows: Rows) -> list[Choice]:
        """Which of the rows are kept; `ids` are their own. To be asked once per row."""
        first = min(len(ids), max(0, self.policy.first - self._seen))
        self._seen += len(ids)
        strata, tail = self.strata, self._tail
        largest = strata.largest
        if first == 0 and largest <= 0.0:
            return []
        wanted, hashed = int(largest * _WHOLE), hashlib.blake2b  # of each prediction: as little as can be
        numbers = [int.from_bytes(hashed(id_.encode() + tail, digest_size=8).digest(), "big") for id_ in ids]
        if not first and min(numbers) > wanted:
            return []
        shares = [number / _WHOLE for number in numbers]
        likely = [row for row, place in enumerate(shares) if row < first or place < largest]
        if not likely:
            return []
        fits = None if strata.plain else strata.fits(rows.inputs, rows.outputs, rows.total)
        found, size = [], rows.size
        for row in likely:
            number = 0 if fits is None else int(fits[row])
            stratum, rate = (FIRST, 1.0) if row < first else (strata.names[number], strata.rate(number))
            if shares[row] >= rate:
                continue
            probability = rate * self._quota.factor(size, self._now())
            if shares[row] < probability:
                self._quota.spend(size, self._now())
                found.append(Choice(row, stratum, probability))
            else:
                self.thinned += 1
        return found

    def may_choose(self, prediction_id: str, rows: int) -> bool:
        """Whether some row might be kept, before anybody knows the outputs; from any thread."""
        if self._seen < self.policy.first or rows > _MANY_ROWS:
            return True
        largest, tail = self.strata.largest, self._tail
        return largest >= 1.0 or any(
            int.from_bytes(_hash(row_id(prediction_id, row, rows), tail), "big") / _WHOLE < largest
            for row in range(rows)
        )


def scores_output(manifest: Manifest, reference: ReferenceProfile | None) -> str:
    """The output whose largest element is the confidence: the one profiled as such, else the first that looks like
    scores of classes; empty when there is none.
    """
    for feature in reference.outputs if reference is not None else ():
        if isinstance(feature, Numeric) and feature.take == "max":
            return feature.tensor
    scores = (s.name for s in manifest.outputs if s.datatype in ("FP16", "FP32", "FP64") and len(s.shape) == 2)
    return next(scores, "")
