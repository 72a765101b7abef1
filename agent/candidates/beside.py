"""The serving worker's part of a candidate: gives it what was predicted (shadow), or a share of the requests (arm).

Off the path of the answer as a shadow: after the answer was written, with a bound on what waits, and what finds no
room is counted and forgotten. As an arm a request is asked of the candidate, and whatever keeps it from answering in
time, the serving version answers. Worker side; made by `agent.sandbox.session`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Mapping

import msgspec

from agent.backends import Array
from agent.candidates.feed import Feed
from agent.candidates.frames import Answered, Fed, arrays, parts
from agent.candidates.hearing import Hearing
from agent.candidates.terms import Terms
from agent.endpoint.encoding import packed
from agent.endpoint.exchange import Refused, Request
from agent.endpoint.jobs import Job
from agent.endpoint.recorder import Prediction, Together
from agent.endpoint.regions import Regions
from agent.endpoint.rendering import Renderer
from modules.arms import chosen
from modules.errors import TensorError
from modules.manifest import Manifest

log = logging.getLogger(__name__)

KEY_HEADER = b"mooring-arm-key"
MAX_COMPARED_BYTES = 64 * 1024  # of the outputs of one prediction, that go along to be compared
# How long a request waits for the candidate: as long as many runs of our own, and never most of what there is.
RUNS, LEAST_WAIT_S, PART = 20, 0.25, 0.5
FAILURES, REST_S = 3, 5.0  # in a row, after which the candidate is asked nothing for a while


class Beside:
    """`submit` is how the serving version answers a request by itself. `counts` is what happened, by word."""

    def __init__(
        self,
        manifest: Manifest,
        tap: int,
        regions: Regions,
        submit: Callable[[Job], None],
        typical_us: Callable[[int], float],
    ) -> None:
        self.counts: Counter[str] = Counter()
        self._manifest = manifest
        self._regions = regions
        self._submit = submit
        self._typical_us = typical_us
        self._outputs = manifest.outputs
        self._hearing = Hearing(tap, self._heard)
        self._feed: Feed | None = None
        self._renderer: Renderer | None = None
        self._opening: set[asyncio.Task[None]] = set()
        self._life, self._made = os.urandom(8).hex(), 0
        self._failures = 0
        self._rests_until = 0.0

    def start(self) -> None:
        self._hearing.start()

    async def stop(self) -> None:
        self._hearing.stop()
        for task in self._opening:
            task.cancel()
        if self._opening:
            await asyncio.wait(self._opening, timeout=1.0)
        if self._feed is not None:
            self._feed.leave()

    # Shadow

    def wants(self, prediction_id: str) -> bool:
        """Whether `observe` will give this one to a shadow, and so needs all of its inputs; from any thread."""
        feed = self._feed
        return feed is not None and feed.terms.way == "shadow" and _is_in(feed.terms, prediction_id)

    def observe(self, prediction: Prediction) -> None:
        """On the loop's thread, after the answer. Raises nothing."""
        if self._feed is not None and self.wants(prediction.id):
            self._give(self._feed, prediction)

    def observe_together(self, together: Together) -> None:
        """The same for requests that ran together."""
        feed = self._feed
        if feed is None or feed.terms.way != "shadow" or feed.terms.share <= 0.0:
            return
        for prediction in together.apart():
            self.observe(prediction)

    def _give(self, feed: Feed, prediction: Prediction) -> None:
        self.counts["offered"] += 1
        if len(prediction.inputs) < len(self._manifest.inputs):  # asked in a form of its own, or before it was wanted
            self.counts["missed-form"] += 1
            return
        try:
            if feed.frames.unsent:  # it is behind already: not even the bytes are made
                why = "busy"
            else:
                inputs = parts(self._manifest.inputs, prediction.inputs)
                outputs = parts(self._outputs, prediction.outputs) if _is_small(prediction.outputs) else []
                why = feed.give(Fed(0, prediction.id, inputs, outputs, prediction.event_s))
        except Exception as error:
            why = "failed"
            if not self.counts["missed-failed"]:
                log.error("a prediction is not given to the shadow; others are only counted", exc_info=error)
        self.counts[f"missed-{why}" if why else "fed"] += 1

    # Arm

    def route(self, job: Job) -> bool:
        """Whether the candidate was asked: then the job is answered by it, or else by `submit`, later."""
        feed = self._feed
        if feed is None or feed.terms.way != "arm" or not feed.ready:
            return False
        call = job.call
        call.id = call.id or self._fresh_id()  # what the hash is of, unless the caller gives a key
        if not _is_in(feed.terms, _key(job.request) or call.id):
            return False
        why = "resting" if time.monotonic() < self._rests_until else self._ask(feed, job)
        if why:
            self.counts[f"kept-{why}"] += 1
        return not why

    def _ask(self, feed: Feed, job: Job) -> str:
        """Empty where it was asked, or else why not."""
        try:
            inputs = parts(self._manifest.inputs, job.call.inputs)
        except Refused:
            return "refused"  # by our own words
        fed = Fed(0, job.call.id, inputs, [], job.event_s)
        why = feed.ask(fed, self._wait_s(job), lambda answered: self._told(feed, job, answered))
        if not why:
            job.started_ns = time.perf_counter_ns()
        return why

    def _wait_s(self, job: Job) -> float:
        usual_s = max(LEAST_WAIT_S, RUNS * self._typical_us(job.rows) / 1e6)
        left_s = self._manifest.resources.request_deadline_s
        if job.due_ns:
            left_s = min(left_s, (job.due_ns - time.perf_counter_ns()) / 1e9)
        return max(0.0, min(usual_s, PART * left_s))

    def _told(self, feed: Feed, job: Job, answered: Answered) -> None:
        why = answered.why or self._answer(feed, job, answered)
        if not why:
            self._failures = 0
            self.counts["answered"] += 1
            return
        self.counts[f"fell-back-{why}"] += 1
        self._failures += 1
        if self._failures >= FAILURES:
            self._rests_until, self._failures = time.monotonic() + REST_S, 0
        job.started_ns = 0
        self._submit(job)

    def _answer(self, feed: Feed, job: Job, answered: Answered) -> str:
        """Empty where the client has its answer."""
        try:
            outputs = arrays(self._outputs, answered.outputs)
            reply = self._renderer_of(feed).reply(job.call.id, job.call.outputs, outputs)
        except (TensorError, Refused, KeyError):
            return "unlike"
        reply.headers += b"Mooring-Candidate: %d\r\n" % feed.terms.version
        if job.request.accepts:
            packed(reply, job.request.accepts)
        job.tell(reply)
        return ""

    def _renderer_of(self, feed: Feed) -> Renderer:
        if self._renderer is None:
            self._renderer = Renderer(
                msgspec.structs.replace(self._manifest, version=feed.terms.version), self._regions
            )
        return self._renderer

    def _fresh_id(self) -> str:
        self._made += 1
        return f"{self._life}a{self._made:x}"

    # Who is beside us

    def _heard(self, terms: Terms, pipe: socket.socket | None) -> None:
        if pipe is None:
            if self._feed is not None:
                self._feed.terms = terms
            return
        task = asyncio.create_task(self._open(terms, pipe), name="candidate-feed")
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _open(self, terms: Terms, pipe: socket.socket) -> None:
        feed, before = Feed(terms, self._ended), self._feed
        try:
            await asyncio.get_running_loop().connect_accepted_socket(lambda: feed.frames, pipe)
        except OSError as error:
            pipe.close()
            log.warning("the candidate is not there any more: %s", error)
            return
        self._feed, self._renderer = feed, None
        self._failures, self._rests_until = 0, 0.0
        if before is not None:
            before.leave()

    def _ended(self, feed: Feed) -> None:
        if self._feed is feed:
            self._feed = None


def _is_in(terms: Terms, key: str) -> bool:
    return chosen(key, terms.salt, terms.share)


def _key(request: Request) -> str:
    """The caller's own, so that all requests of a person or a session go one way; empty where it gives none."""
    return next((value.decode("latin-1") for name, value in request.named if name.lower() == KEY_HEADER), "")


def _is_small(outputs: Mapping[str, Array]) -> bool:
    return sum(array.nbytes for array in outputs.values()) <= MAX_COMPARED_BYTES
