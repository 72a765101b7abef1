"""Takes samples of a module's predictions: chooses, redacts, keeps the ring, and answers what is asked of it.

Off the path of the answer; large requests are looked at in chunks, a little later. Nothing here raises into inference:
what is dropped is counted by reason. A policy that does not fit the module takes no samples at all, and says why. Made
and called by `agent.sandbox.watch`; commands come from `agent.sandbox.session`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence

from agent.backends import Array
from agent.endpoint.codec import to_tensor
from agent.endpoint.counters import Counters
from agent.endpoint.recorder import Prediction, Together
from agent.sampling.features import Names, PolicyError
from agent.sampling.keeping import Kept, open_ring
from agent.sampling.making import Maker, NotSent
from agent.sampling.quota import Quota
from agent.sampling.redaction import Redactor
from agent.sampling.sampler import Choice, Rows, Sampler, row_id, scores_output
from agent.sandbox.given import Given
from agent.sandbox.protocol import Asked, AskedDone, BlobTaken, SampleTaken
from modules.commands import AskSamples
from modules.manifest import Manifest, SamplingPolicy
from modules.sampling import ASKED, BASE
from modules.windows import ReferenceProfile

log = logging.getLogger(__name__)

MAX_WAITING = 16  # large requests whose rows have not all been looked at
CHUNK_ROWS = 128  # rows looked at before the loop gets its turn again
ASK_S = 5.0  # that one question may take
EXPIRE_EVERY_S = 60.0
BESIDE_BYTES = 300.0  # of a sample, beside its values, before one was made
LEARNING = 0.1
_NOTHING = SamplingPolicy(rate=0.0)

Arrays = Mapping[str, Array]
Send = Callable[[SampleTaken | BlobTaken], bool]


class Taking:
    """The samples of one module. `send` says whether the notice was taken; `clock` is wall time."""

    def __init__(
        self,
        manifest: Manifest,
        digest: str,
        reference: ReferenceProfile | None,
        policy: SamplingPolicy,
        counters: Counters,
        clock: Callable[[], float],
        send: Send,
        given: Given = Given(),  # noqa: B008 - frozen
    ) -> None:
        self._manifest, self._given = manifest, given
        self._counters, self._clock, self._send = counters, clock, send
        self._inputs = frozenset(spec.name for spec in manifest.inputs)
        self._profiled = frozenset(f.tensor for f in reference.inputs) if reference is not None else frozenset()
        self._names = Names(manifest, reference)
        specs = (spec for spec, _ in self._names.specs.values())
        self._batched = frozenset(spec.name for spec in specs if spec.shape and spec.shape[0] == -1)
        self._quota = Quota(_bound(policy), time.monotonic(), given.quota_left)
        scores = scores_output(manifest, reference)
        self._sampler = Sampler(digest, scores, self._names, _NOTHING, self._quota, time.monotonic)
        self._maker = Maker(manifest, digest, clock)
        self._waiting: deque[Iterator[None]] = deque()
        self._kept: Kept | None = None
        self._beside = BESIDE_BYTES
        self._timer: asyncio.Task[None] | None = None
        self.set_policy(policy)

    def start(self) -> None:
        """Blanks what is too old from now on, also while nothing is predicted."""
        self._timer = asyncio.create_task(self._expire(), name="ring-timer")

    async def stop(self) -> None:
        """Looks at what waits."""
        if self._timer is not None:
            self._timer.cancel()
            await asyncio.wait([self._timer], timeout=1.0)
        while self._waiting:
            self._take_next()

    def set_policy(self, policy: SamplingPolicy) -> None:
        """From the next prediction on. One that does not fit the module keeps nothing, and is told in `unfit`."""
        self.policy = policy
        try:
            redactor = Redactor(policy, self._names, self._given.secret)
            self._sampler.set(policy)
            self.unfit = ""
        except PolicyError as error:
            redactor = None
            self._sampler.set(_NOTHING)
            self.unfit = str(error)
            log.error("no samples are taken: %s", error)
        self._maker.set(policy, redactor)
        self._quota.change(_bound(policy), time.monotonic())
        self._kept = open_ring(self._kept, self._given.ring, policy if redactor is not None else None, self._batched)

    def choose_as(self, digest: str) -> None:
        """As the build of this digest chooses, which predicts the same beside us."""
        self._sampler.choose_as(digest)

    def wanted(self, prediction_id: str, rows: int) -> frozenset[str]:
        """The inputs that `observe` will look at, which may then be all that the prediction has; from any thread."""
        whole = self._kept is not None or self._sampler.may_choose(prediction_id, rows)
        return self._inputs if whole else self._profiled

    def observe(self, prediction: Prediction) -> None:
        """Rows of one request, chosen now where they are few."""
        if prediction.rows == 1:
            events = (prediction.event_s,) if prediction.event_s else ()
            self._take_rows([prediction.id], prediction.inputs, prediction.outputs, events)
        elif prediction.rows <= CHUNK_ROWS:
            self._take(prediction, 0, prediction.rows)
        elif len(self._waiting) < MAX_WAITING:
            self._waiting.append(self._chunks(prediction))
            if len(self._waiting) == 1:
                asyncio.get_running_loop().call_soon(self._take_later)
        else:
            self._drop("busy")

    def observe_together(self, together: Together) -> None:
        """The same for requests that ran together."""
        if sum(together.rows) > len(together.ids):
            for prediction in together.apart():
                self.observe(prediction)
        else:
            self._take_rows(together.ids, together.inputs, together.outputs, together.events)

    async def asked(self, order: Asked) -> AskedDone:
        """Sends the rows of the ring that are asked for, the newest first, as far as the policy lets it."""
        kept, question = self._kept, order.asked
        if self.unfit:
            return AskedDone("refused", "policy-unfit", self.unfit)
        if kept is None and self.policy.ring_rows:
            return AskedDone("refused", "ring-unavailable", "the ring could not be made; the module's log says why")
        if kept is None:
            text = f"the signed policy of {self._manifest.name} keeps no predictions on this device (ring_rows)"
            return AskedDone("refused", "no-ring", text)
        strata = self._sampler.strata
        if question.stratum and question.stratum not in (*strata.names, BASE):
            text = f"expected one of {', '.join(strata.names)}, got {question.stratum!r}"
            return AskedDone("refused", "unknown-stratum", text)
        return await self._answer(kept, question, order.id)

    async def _answer(self, kept: Kept, question: AskSamples, request: str) -> AskedDone:
        sent = found = 0
        ends = time.monotonic() + ASK_S
        for place, at, rows in kept.find(question, self._sampler.strata):
            found += 1
            if self._quota.used_up(time.monotonic()):
                return AskedDone("done", "quota", "the quota of bytes per day is used up", sent, found)
            choice = Choice(0, ASKED, 1.0)
            if self._give(rows.id, choice, rows.inputs, rows.outputs, at=at, request=request, place=place):
                sent += 1
            if found >= question.limit:
                break
            if time.monotonic() > ends:
                return AskedDone("done", "deadline", f"looked for {ASK_S:g} s, not at all rows", sent, found)
            await asyncio.sleep(0)
        lost = "" if sent == found else "dropped"
        return AskedDone("done", lost, "some could not be sent" if lost else "", sent, found)

    def _take_later(self) -> None:
        if self._waiting:  # else `stop` was here first
            self._take_next()
        if self._waiting:
            asyncio.get_running_loop().call_soon(self._take_later)

    def _take_next(self) -> None:
        """One chunk of the request that waits longest."""
        try:
            next(self._waiting[0])
        except StopIteration:
            self._waiting.popleft()
        except Exception:
            self._waiting.popleft()
            self._drop("failed")
            log.exception("rows of %s could not be sampled", self._manifest.name)

    def _chunks(self, prediction: Prediction) -> Iterator[None]:
        for start in range(0, prediction.rows, CHUNK_ROWS):
            self._take(prediction, start, min(prediction.rows, start + CHUNK_ROWS))
            yield

    def _take(self, prediction: Prediction, start: int, stop: int) -> None:
        rows = prediction.rows
        ids = [row_id(prediction.id, row, rows) for row in range(start, stop)]
        left, right = (self._part(side, rows, start, stop) for side in (prediction.inputs, prediction.outputs))
        events = (prediction.event_s,) * len(ids) if prediction.event_s else ()
        self._take_rows(ids, left, right, events)

    def _part(self, arrays: Arrays, rows: int, start: int, stop: int) -> Arrays:
        if (start, stop) == (0, rows):
            return arrays
        return {name: self._rows_of(name, array, rows, start, stop) for name, array in arrays.items()}

    def _rows_of(self, name: str, array: Array, rows: int, start: int, stop: int) -> Array:
        """A tensor without rows of its own belongs to every row."""
        return array[start:stop] if name in self._batched and array.shape[0] == rows else array

    def _take_rows(self, ids: list[str], inputs: Arrays, outputs: Arrays, events: Sequence[float]) -> None:
        """`ids` are those of the rows, which lie one below the other; `events` their times, or none."""
        count = len(ids)
        first = self._keep(ids, inputs, outputs) if self._kept is not None else 0
        rows = Rows(inputs, outputs, count, int(self._beside))
        choices = self._sampler.choose(ids, rows)
        self._counters.thinned_samples = self._sampler.thinned
        if not choices:
            return
        size = rows.size
        for choice in choices:
            if len(inputs) < len(self._inputs):  # the policy has changed since it was asked
                self._drop("late")
                continue
            left, right = (self._part(side, count, choice.row, choice.row + 1) for side in (inputs, outputs))
            place = first + choice.row if first else 0
            event_at = events[choice.row] if events else 0.0
            self._give(ids[choice.row], choice, left, right, place=place, counted=size, event_at=event_at)

    def _keep(self, ids: list[str], inputs: Arrays, outputs: Arrays) -> int:
        if self._kept is None or len(inputs) < len(self._inputs):
            return 0
        manifest = self._manifest
        left, right = (
            tuple(to_tensor(s.name, s.datatype, side[s.name]) for s in specs if s.name in side)
            for specs, side in ((manifest.inputs, inputs), (manifest.outputs, outputs))
        )
        return self._kept.append(self._clock(), tuple(ids), left, right)

    def _give(
        self,
        id_: str,
        choice: Choice,
        inputs: Arrays,
        outputs: Arrays,
        *,
        at: float | None = None,
        request: str = "",
        place: int = 0,
        counted: int = 0,
        event_at: float = 0.0,
    ) -> bool:
        """Makes the sample and sends it. `counted` are the bytes that the quota has been told already."""
        try:
            made = self._maker.make(
                id_, choice, inputs, outputs, at=at, request=request, place=place, event_at=event_at
            )
            size = sum(map(len, (made.sample, *made.pieces)))
            self._quota.spend(size - counted, time.monotonic())
            if counted:  # what samples take beside the values: names, ids, or less where much is taken out
                self._beside += (size - counted) * LEARNING
            if not self._send(SampleTaken(made.sample)) or not all(map(self._send, map(BlobTaken, made.pieces))):
                raise NotSent("busy")
        except NotSent as error:
            self._drop(error.why)
            return False
        self._counters.sampled += 1
        return True

    def _drop(self, why: str) -> None:
        self._counters.dropped_samples += 1
        self._counters.dropped_why[why] = self._counters.dropped_why.get(why, 0) + 1

    async def _expire(self) -> None:
        while True:
            await asyncio.sleep(EXPIRE_EVERY_S)
            if self._kept is not None:
                self._kept.expire(self._clock())


def _bound(policy: SamplingPolicy) -> int | None:
    return policy.quota_bytes_per_day or None
