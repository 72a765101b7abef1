"""Which predictions come back whole: decided once per prediction, by a hash of its id. Worker side.

So inputs, outputs and a late label are kept or dropped together, the choice can be repeated, and the recorded
probability lets the hub re-weight. The strata, from the first that fits: `first` (the first rows after a start),
`low_confidence`, `base`. Pure but for the clock given; called by `agent.sandbox.watch` after the answer was written.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from agent.backends import Array
from agent.endpoint.codec import to_tensor
from modules.manifest import Manifest, SamplingPolicy
from modules.messages import Sample
from modules.tensors import TensorSpec
from modules.windows import Numeric, ReferenceProfile

_WHOLE = 2.0**64
_MANY_ROWS = 64  # asking each of more costs more than what it saves


class Choice(NamedTuple):
    """A row that is kept, why, and with which chance a row of its stratum is."""

    row: int
    stratum: str
    probability: float


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
    """The policy of one module, applied. `digest` is the manifest's."""

    def __init__(
        self, manifest: Manifest, digest: str, scores: str, policy: SamplingPolicy, clock: Callable[[], float]
    ) -> None:
        """`scores` is the output whose largest element is the confidence; empty when there is none."""
        self._scores = scores
        self._manifest = manifest
        self._digest = digest
        self._clock = clock
        self._seen = 0
        self.policy = policy

    @property
    def policy(self) -> SamplingPolicy:
        return self._policy

    @policy.setter
    def policy(self, policy: SamplingPolicy) -> None:
        self._policy = policy
        self._tail = _tail(self._digest, policy.salt)  # hashed for every prediction

    def choose(self, prediction_id: str, row: int, rows: int, low: Array | None) -> Choice | None:
        """Whether to keep this row; to be asked once per row. `low` says which rows have low confidence."""
        policy = self._policy
        self._seen += 1
        if self._seen <= policy.first:
            return Choice(row, "first", 1.0)
        is_low = low is not None and row < len(low) and bool(low[row])
        probability = max(policy.rate, policy.low_confidence_rate) if is_low else policy.rate
        if probability < 1.0 and (
            probability <= 0.0
            or int.from_bytes(_hash(row_id(prediction_id, row, rows), self._tail), "big") / _WHOLE >= probability
        ):
            return None
        return Choice(row, "low_confidence" if is_low else "base", probability)

    def may_choose(self, prediction_id: str, rows: int) -> bool:
        """Whether some row might be kept, before anybody knows the outputs; from any thread."""
        policy = self.policy
        if self._seen < policy.first or rows > _MANY_ROWS:
            return True
        largest = max(policy.rate, policy.low_confidence_rate if policy.low_confidence > 0.0 else 0.0)
        return largest >= 1.0 or any(
            share(row_id(prediction_id, row, rows), self._digest, policy.salt) < largest for row in range(rows)
        )

    def low(self, outputs: Mapping[str, Array]) -> Array | None:
        """Which rows have low confidence; None when the policy does not ask, or the model has no scores."""
        if self.policy.low_confidence <= 0.0 or self.policy.low_confidence_rate <= 0.0:
            return None
        array = outputs.get(self._scores)
        if array is None or array.size == 0 or array.ndim < 2:
            return None
        largest = array.reshape(array.shape[0], -1).max(axis=1)
        return np.asarray(~(largest >= self.policy.low_confidence))  # NaN is low

    def sample(
        self, prediction_id: str, rows: int, choice: Choice, inputs: Mapping[str, Array], outputs: Mapping[str, Array]
    ) -> Sample:
        """The row with what went in and came out, each of batch size 1."""
        return Sample(
            module=self._manifest.name,
            manifest_sha256=self._digest,
            prediction_id=row_id(prediction_id, choice.row, rows),
            at=self._clock(),
            stratum=choice.stratum,
            probability=choice.probability,
            inputs=tuple(
                to_tensor(s.name, s.datatype, _row(s, inputs[s.name], choice.row)) for s in self._manifest.inputs
            ),
            outputs=tuple(
                to_tensor(s.name, s.datatype, _row(s, outputs[s.name], choice.row)) for s in self._manifest.outputs
            ),
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


def _row(spec: TensorSpec, array: Array, row: int) -> Array:
    """The row as a batch of one; a tensor without rows of its own belongs to every row."""
    if spec.shape and spec.shape[0] == -1 and row < array.shape[0]:
        return array[row : row + 1]
    return array
