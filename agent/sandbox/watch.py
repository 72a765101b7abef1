"""What a worker tells about its predictions: windows of every row, samples of a few. Off the path of the answer.

Owns the profiler, the sampler and the timer of the window. Nothing here raises into inference: a failure is logged
once and counted as a dropped sample. Made by `agent.sandbox.worker`.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from collections.abc import Callable, Iterator

from agent.endpoint.batches import cut
from agent.endpoint.counters import Counters
from agent.endpoint.recorder import Prediction, Together
from agent.sampling import Sampler, scores_output
from agent.sandbox.protocol import SampleTaken, WindowClosed
from agent.sandbox.windows import Profiler
from modules.errors import ModuleError
from modules.manifest import Manifest, SamplingPolicy
from modules.messages import Sample, encode
from modules.windows import ReferenceProfile, Window, encode_window, pack_counts

log = logging.getLogger(__name__)

MAX_WAITING = 16  # large requests whose rows have not all been looked at
CHUNK_ROWS = 128  # rows looked at before the loop gets its turn again
MAX_NAP_S = 5.0  # the wall clock may be set while we wait for it

_ROUNDING = 1e-6  # of a window: a multiple of its length may be a little less than itself in floating point

Send = Callable[[WindowClosed | SampleTaken], bool]


class Watch:
    """Watches the predictions of one module. `send` says whether the notice was taken."""

    def __init__(
        self,
        manifest: Manifest,
        digest: str,
        reference: ReferenceProfile | None,
        reference_digest: str,
        policy: SamplingPolicy,
        counters: Counters,
        clock: Callable[[], float],
        send: Send,
    ) -> None:
        self._manifest = manifest
        self._digests = (digest, reference_digest)
        self._profiler = None if reference is None else Profiler(reference, manifest)
        self._sampler = Sampler(manifest, digest, scores_output(manifest, reference), policy, clock)
        self._inputs = frozenset(spec.name for spec in manifest.inputs)
        self._profiled = frozenset(f.tensor for f in reference.inputs) if reference is not None else frozenset()
        self._counters = counters
        self._clock = clock
        self._send = send
        self._waiting: deque[Iterator[None]] = deque()
        self._failed = False
        self._opened = clock()
        self._before = self._totals()
        self._timer: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Closes windows on time from now on."""
        self._timer = asyncio.create_task(self._close_on_time(), name="window-timer")

    async def stop(self) -> None:
        """Looks at what waits, and sends the last window."""
        if self._timer is not None:
            self._timer.cancel()
            await asyncio.wait([self._timer], timeout=1.0)
        while self._waiting:
            self._take_next()
        self.close_window()

    def set_policy(self, policy: SamplingPolicy) -> None:
        self._sampler.policy = policy

    def wanted(self, prediction_id: str, rows: int) -> frozenset[str]:
        """The inputs that `observe` will look at, which may then be all that the prediction has; from any thread."""
        return self._inputs if self._sampler.may_choose(prediction_id, rows) else self._profiled

    def observe(self, prediction: Prediction) -> None:
        """Counts every row now; samples of large requests are chosen a little later."""
        try:
            if self._profiler is not None:
                self._profiler.add(prediction.rows, prediction.inputs, prediction.outputs)
            self._sample(prediction)
        except Exception as error:
            self._note_failure(error)

    def observe_together(self, together: Together) -> None:
        """The same for requests that ran together, in one go: most of them are not sampled."""
        try:
            rows = sum(together.rows)
            if self._profiler is not None:
                self._profiler.add(rows, together.inputs, together.outputs)
            if rows > len(together.ids):
                for prediction in together.apart():
                    self._sample(prediction)
            else:
                self._sample_single_rows(together)
        except Exception as error:
            self._note_failure(error)

    def _sample(self, prediction: Prediction) -> None:
        if prediction.rows <= CHUNK_ROWS:
            self._take(prediction, 0, prediction.rows)
        elif len(self._waiting) < MAX_WAITING:
            self._waiting.append(self._chunks(prediction))
            if len(self._waiting) == 1:
                asyncio.get_running_loop().call_soon(self._take_later)
        else:
            self._counters.dropped_samples += 1

    def _sample_single_rows(self, together: Together) -> None:
        sampler = self._sampler
        low = sampler.low(together.outputs)
        for row, id_ in enumerate(together.ids):
            choice = sampler.choose(id_, 0, 1, None if low is None else low[row : row + 1])
            if choice is not None:
                inputs, outputs = (cut(side, row, row + 1) for side in (together.inputs, together.outputs))
                self._send_sample(sampler.sample(id_, 1, choice, inputs, outputs))

    def close_window(self) -> None:
        """Sends what was counted since the last one, if anything was."""
        now = self._clock()
        rows, errors, refused, latency = self._totals()
        before = self._before
        start, self._opened = self._opened, now
        self._before = (rows, errors, refused, latency)
        if (rows, errors, refused) == before[:3]:
            return
        cells, moments = self._profiler.close() if self._profiler is not None else ([], b"")
        window = Window(
            module=self._manifest.name,
            manifest_sha256=self._digests[0],
            reference_sha256=self._digests[1],
            start=start,
            end=max(start, now),
            rows=rows - before[0],
            errors=errors - before[1],
            refused=refused - before[2],
            counts=pack_counts(cells),
            moments=moments,
            latency=pack_counts(b - a for a, b in zip(before[3], latency, strict=True)),
        )
        if not self._send(WindowClosed(encode_window(window))):
            log.error("a window of %d rows of %s could not be sent and is lost", window.rows, window.module)

    async def _close_on_time(self) -> None:
        """At every multiple of the window's length in wall time, also when the clock is set meanwhile."""
        while True:
            length = self._sampler.policy.window_s  # which may be set while we wait, too
            boundary = (math.floor(self._opened / length + _ROUNDING) + 1) * length
            now = self._clock()
            if self._opened <= now < boundary:
                await asyncio.sleep(min(boundary - now, MAX_NAP_S))
                continue
            try:
                self.close_window()
            except Exception as error:
                self._note_failure(error)
                await asyncio.sleep(MAX_NAP_S)

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
        except Exception as error:
            self._waiting.popleft()
            self._note_failure(error)

    def _chunks(self, prediction: Prediction) -> Iterator[None]:
        for start in range(0, prediction.rows, CHUNK_ROWS):
            self._take(prediction, start, min(prediction.rows, start + CHUNK_ROWS))
            yield

    def _take(self, prediction: Prediction, start: int, stop: int) -> None:
        sampler, id_, rows = self._sampler, prediction.id, prediction.rows
        low = sampler.low(prediction.outputs)
        for row in range(start, stop):
            choice = sampler.choose(id_, row, rows, low)
            if choice is None:
                continue
            if len(prediction.inputs) < len(self._inputs):  # the policy has changed since it was asked
                self._counters.dropped_samples += 1
                continue
            self._send_sample(sampler.sample(id_, rows, choice, prediction.inputs, prediction.outputs))

    def _send_sample(self, sample: Sample) -> None:
        try:
            taken = self._send(SampleTaken(encode(sample)))
        except ModuleError:  # larger than a message may be
            taken = False
        if taken:
            self._counters.sampled += 1
        else:
            self._counters.dropped_samples += 1

    def _totals(self) -> tuple[int, int, int, tuple[int, ...]]:
        counters = self._counters
        return counters.rows, counters.errors, counters.refused, counters.latency.octaves()

    def _note_failure(self, error: Exception) -> None:
        self._counters.dropped_samples += 1
        if not self._failed:
            self._failed = True
            text = "watching %s failed; its predictions go on, further failures are only counted"
            log.error(text, self._manifest.name, exc_info=error)
