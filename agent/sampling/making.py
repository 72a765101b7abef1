"""Makes the sample of one row: redacted, encoded, and with what is too large cut off into a blob. Worker side, pure.

Used by `agent.sampling.taking`.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

from agent.backends import Array
from agent.endpoint.codec import to_tensor
from agent.sampling.redaction import Redactor
from agent.sampling.sampler import Choice
from modules.errors import MessageError
from modules.manifest import Manifest, SamplingPolicy
from modules.messages import Sample, encode
from modules.pieces import MAX_BLOB_BYTES, Withheld
from modules.pieces import cut as cut_blob
from modules.tensors import Tensor, TensorSpec

REMEMBERED = 256  # blobs that were sent: the same picture again is not
REMEMBERED_S = 3600.0


class NotSent(Exception):
    """A sample that does not leave; `why` is what it is counted as."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


class Made(NamedTuple):
    """A sample, encoded, and the pieces of blobs that have not been sent before."""

    sample: bytes
    pieces: list[bytes]


class Maker:
    """Of one module; `set` before the first."""

    def __init__(self, manifest: Manifest, digest: str, clock: Callable[[], float]) -> None:
        self._manifest, self._digest, self._clock = manifest, digest, clock
        self._sent: OrderedDict[str, float] = OrderedDict()
        self.set(SamplingPolicy(), None)

    def set(self, policy: SamplingPolicy, redactor: Redactor | None) -> None:
        """Without a redactor nothing is made."""
        self._redactor = redactor
        self._blob_bytes = policy.blob_bytes or 0

    def make(
        self,
        id_: str,
        choice: Choice,
        inputs: Mapping[str, Array],
        outputs: Mapping[str, Array],
        *,
        at: float | None = None,
        request: str = "",
        place: int = 0,
        event_at: float = 0.0,
    ) -> Made:
        """The arrays hold one row. Raises NotSent."""
        if self._redactor is None:
            raise NotSent("redaction")
        try:
            row = self._redactor.apply(inputs, outputs)
        except (ValueError, TypeError, IndexError, OverflowError) as error:
            raise NotSent("redaction") from error  # what cannot be taken out does not leave
        withheld: list[Withheld] = []
        blobs: dict[str, bytes] = {}
        left = self._side("input", self._manifest.inputs, inputs, row.inputs, withheld, blobs)
        right = self._side("output", self._manifest.outputs, outputs, row.outputs, withheld, blobs)
        sample = Sample(
            module=self._manifest.name,
            manifest_sha256=self._digest,
            prediction_id=id_,
            at=self._clock() if at is None else at,
            stratum=choice.stratum,
            probability=choice.probability,
            inputs=left,
            outputs=right,
            withheld=tuple(withheld),
            redacted=row.done,
            request=request,
            place=place,
            event_at=event_at,
        )
        try:
            return Made(encode(sample), self._pieces(blobs))
        except MessageError as error:
            raise NotSent("size") from error

    def _side(
        self,
        side: Literal["input", "output"],
        specs: tuple[TensorSpec, ...],
        before: Mapping[str, Array],
        after: Mapping[str, Array],
        withheld: list[Withheld],
        blobs: dict[str, bytes],
    ) -> tuple[Tensor, ...]:
        """The tensors that go with the sample; what else there was goes to `withheld` and `blobs`."""
        tensors = []
        for spec in specs:
            if spec.name not in after:
                shape = tuple(before[spec.name].shape)
                withheld.append(Withheld(spec.name, side, spec.datatype, shape, "drop"))
                continue
            tensor = to_tensor(spec.name, spec.datatype, after[spec.name])
            size = len(tensor.data)
            if not self._blob_bytes or size <= self._blob_bytes:
                tensors.append(tensor)
                continue
            if size > MAX_BLOB_BYTES:
                raise NotSent("size")
            sha256 = hashlib.sha256(tensor.data).hexdigest()
            blobs[sha256] = tensor.data
            withheld.append(Withheld(spec.name, side, spec.datatype, tensor.shape, "blob", sha256, size))
        return tuple(tensors)

    def _pieces(self, blobs: dict[str, bytes]) -> list[bytes]:
        now, pieces = self._clock(), []
        for sha256, data in blobs.items():
            if abs(now - self._sent.get(sha256, -REMEMBERED_S)) < REMEMBERED_S:
                continue
            pieces += cut_blob(sha256, data)
            self._sent[sha256] = now
            self._sent.move_to_end(sha256)
        while len(self._sent) > REMEMBERED:
            self._sent.popitem(last=False)
        return pieces
