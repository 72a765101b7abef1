"""What a worker tells about its predictions: windows of every row, samples of a few. Off the path of the answer.

Windows are `agent.watching`'s, samples `agent.sampling.taking`'s. Nothing here raises into inference: a failure is
logged once and counted as a dropped sample. Made by `agent.sandbox.session`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from agent.endpoint.counters import Counters
from agent.endpoint.recorder import Prediction, Together
from agent.sampling.taking import Taking
from agent.sandbox.given import Given
from agent.sandbox.protocol import BlobTaken, SampleTaken, WindowClosed
from agent.watching.clock import steady_s
from agent.watching.windows import Subject, Windows
from modules.manifest import Manifest, SamplingPolicy
from modules.windows import ReferenceProfile, Window, encode_window

log = logging.getLogger(__name__)

Send = Callable[[WindowClosed | SampleTaken | BlobTaken], bool]


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
        given: Given = Given(),  # noqa: B008 - frozen
        steady: Callable[[], float] = steady_s,
    ) -> None:
        self._manifest = manifest
        subject = Subject(manifest, digest, reference, reference_digest)
        self._windows = Windows(subject, policy, counters, clock, steady, self._send_window, self._note_failure)
        self.taking = Taking(manifest, digest, reference, policy, counters, clock, send, given)
        self._counters = counters
        self._send = send
        self._failed = False

    def start(self) -> None:
        """Closes windows on time from now on."""
        self._windows.start()
        self.taking.start()

    async def stop(self) -> None:
        """Looks at what waits, and sends the last windows."""
        await self.taking.stop()
        await self._windows.stop()

    def set_policy(self, policy: SamplingPolicy) -> None:
        self.taking.set_policy(policy)
        self._windows.set_policy(policy)

    def wanted(self, prediction_id: str, rows: int) -> frozenset[str]:
        """The inputs that `observe` will look at, which may then be all that the prediction has; from any thread."""
        return self.taking.wanted(prediction_id, rows)

    def observe(self, prediction: Prediction) -> None:
        """Counts every row now; samples of large requests are chosen a little later."""
        try:
            self._windows.add(prediction.rows, prediction.inputs, prediction.outputs, prediction.event_s)
        except Exception as error:
            self._note_failure(error)
        if not prediction.inputs:  # a script was asked in a form of its own
            return
        try:
            self.taking.observe(prediction)
        except Exception as error:
            self._note_failure(error)

    def observe_together(self, together: Together) -> None:
        """The same for requests that ran together, in one go: most of them are not sampled."""
        try:
            self._count_together(together)
        except Exception as error:
            self._note_failure(error)
        try:
            self.taking.observe_together(together)
        except Exception as error:
            self._note_failure(error)

    def _count_together(self, together: Together) -> None:
        if not together.events:
            self._windows.add(sum(together.rows), together.inputs, together.outputs)
            return
        for prediction in together.apart():
            self._windows.add(prediction.rows, prediction.inputs, prediction.outputs, prediction.event_s)

    def _send_window(self, window: Window) -> bool:
        return self._send(WindowClosed(encode_window(window)))

    def _note_failure(self, error: Exception) -> None:
        self._counters.dropped_samples += 1
        if not self._failed:
            self._failed = True
            text = "watching %s failed; its predictions go on, further failures are only counted"
            log.error(text, self._manifest.name, exc_info=error)
