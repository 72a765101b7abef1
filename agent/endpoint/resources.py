"""The resources of the Open Inference Protocol and of Triton's extensions. A Handler for the connections.

Routes, calls the parser, the predictor and the renderer, and turns every failure into one JSON body. Policy (what a
good request is) stands in `oip`; what happens to a prediction afterwards is the recorder's; what GET answers in
`documents`, `statistics` and `metrics`.
"""

from __future__ import annotations

import functools
import logging
import os
import time
from collections.abc import Callable, Mapping
from urllib.parse import unquote_to_bytes

import msgspec

from agent.backends import Array
from agent.endpoint.counters import Counters
from agent.endpoint.documents import Documents
from agent.endpoint.encoding import packed, unpacked
from agent.endpoint.exchange import TEXT, Refused, Reply, Request
from agent.endpoint.failures import as_refused
from agent.endpoint.jobs import Job
from agent.endpoint.metrics import metrics
from agent.endpoint.oip import Parser
from agent.endpoint.predictor import Predictor
from agent.endpoint.recorder import Prediction, Recorder, Together
from agent.endpoint.regions import Registration
from agent.endpoint.rendering import Renderer
from agent.endpoint.statistics import statistics
from modules.errors import MALFORMED
from modules.manifest import Manifest

log = logging.getLogger(__name__)

_Answer = Callable[[Request], Reply]


class Resources:
    """Answers for one module. The recorder is told after the answer was written."""

    def __init__(
        self,
        manifest: Manifest,
        parser: Parser,
        predictor: Predictor,
        counters: Counters,
        recorder: Recorder,
        route: Callable[[Job], bool] | None = None,
    ) -> None:
        """`route` may take a request away, to be answered by somebody else."""
        self._manifest = manifest
        self._parser = parser
        self._regions = parser.regions
        self._renderer = Renderer(manifest, parser.regions)
        self._predictor = predictor
        self._counters = counters
        self._recorder = recorder
        self._elsewhere = route
        self._life = os.urandom(8).hex()
        self._made = 0  # ids
        self._limit = manifest.resources.max_request_bytes
        documents = Documents(manifest, parser.regions.allowed)
        self._bases = documents.bases
        self._infer_targets = frozenset(f"{path}/infer".encode() for path in self._bases)
        self._gets: dict[bytes, _Answer] = {
            path: functools.partial(_constant, document) for path, document in documents.constant().items()
        }
        self._posts: dict[bytes, _Answer] = {}
        self._route()
        predictor.serve(self)

    def _route(self) -> None:
        gets, posts = self._gets, self._posts
        for base in ("/v2/models", *self._bases):
            gets[f"{base}/stats".encode()] = self._statistics
        gets[b"/metrics"] = lambda _: Reply(200, metrics(self._manifest, self._counters).encode(), kind=TEXT)
        index = [{"name": self._manifest.name, "version": str(self._manifest.version), "state": "READY", "reason": ""}]
        posts[b"/v2/repository/index"] = functools.partial(_constant, msgspec.json.encode(index))
        for path in (b"/v2/logging", b"/v2/trace/setting", f"{self._bases[0]}/trace/setting".encode()):
            posts[path] = self._read_only

    # Handler

    def handle(self, request: Request) -> Reply | Job:
        target = request.target
        if target not in self._infer_targets:
            target = b"/" + unquote_to_bytes(target).strip(b"/")
        if target not in self._infer_targets:
            return self._other(request, target)
        if request.method != b"POST":
            return self._failed(405, "expected POST, got " + _shown(request.method), b"Allow: POST\r\n")
        return self._infer(request)

    def refused(self, error: Refused) -> Reply:
        self._counters.answered(error.status)
        return self._failed(error.status, str(error), error.headers)

    def _infer(self, request: Request) -> Reply | Job:
        try:
            body = unpacked(request.body, request.encoding, self._limit) if request.encoding else request.body
            call = self._parser.parse(body, request.json_length)
        except Exception as error:
            return self.refused(as_refused(error))
        job = Job(request, call)
        if self._elsewhere is None or not self._elsewhere(job):
            self._predictor.submit(job)
        return job if job.reply is None else job.reply

    # Desk

    def inputs(self, jobs: list[Job]) -> dict[str, Array]:
        return jobs[0].call.inputs if len(jobs) == 1 else self._parser.join([job.call for job in jobs])

    def answered(self, jobs: list[Job], inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
        ids = [job.call.id or self._fresh_id() for job in jobs]
        try:
            replies = self._renderer.replies([job.call for job in jobs], ids, outputs)
        except Exception as error:
            self._not_rendered(jobs, error, inputs, outputs)
            return
        if len(jobs) == 1:
            self._told(jobs[0], replies[0])
            prediction = Prediction(ids[0], jobs[0].rows, inputs, outputs, jobs[0].event_s)
            replies[0].after = functools.partial(self._recorder.observe, prediction)
            jobs[0].tell(replies[0])
            return
        for job, reply in zip(jobs, replies, strict=True):
            if not job.over:
                self._told(job, reply)
                job.tell(reply)
        events = [job.event_s for job in jobs]
        rows = [job.rows for job in jobs]
        self._recorder.observe_together(Together(ids, rows, inputs, outputs, events if any(events) else ()))

    def failed(self, job: Job, error: Exception) -> None:
        self._counters.failed_us += (time.perf_counter_ns() - job.request.arrived_ns) // 1000
        job.tell(self.refused(as_refused(error)))

    def _told(self, job: Job, reply: Reply) -> None:
        arrived = job.request.arrived_ns
        self._counters.queue_us += max(0, job.started_ns - arrived) // 1000
        self._recorder.count(job.rows, (time.perf_counter_ns() - arrived) // 1000)
        if job.request.accepts:
            packed(reply, job.request.accepts)

    def _not_rendered(
        self, jobs: list[Job], error: Exception, inputs: Mapping[str, Array], outputs: Mapping[str, Array]
    ) -> None:
        """An answer that one of them cannot be given, such as into a region that is too small."""
        if len(jobs) == 1:
            self.failed(jobs[0], error)
            return
        start = 0
        for job in jobs:
            stop = start + job.rows
            if not job.over:
                ours = [{name: array[start:stop] for name, array in side.items()} for side in (inputs, outputs)]
                self.answered([job], ours[0], ours[1])
            start = stop

    def _fresh_id(self) -> str:
        self._made += 1
        return f"{self._life}{self._made:x}"

    # Everything else

    def _other(self, request: Request, target: bytes) -> Reply:
        get = self._gets.get(target) or self._get_for(target)
        post = self._posts.get(target) or self._post_for(target)
        answer = get if request.method == b"GET" else post if request.method == b"POST" else None
        if answer is not None:
            try:
                return answer(request)
            except Exception as error:
                return self.refused(as_refused(error))
        if get is None and post is None:
            if request.method == b"POST":
                self._counters.answered(404)
            return self._failed(404, f"expected {self._bases[0]} (or {self._bases[1]}), got {_shown(target)}")
        allowed = b"GET" if get is not None else b"POST"
        got = _shown(request.method)
        return self._failed(405, f"expected {allowed.decode()}, got {got}", b"Allow: %b\r\n" % allowed)

    def _statistics(self, _: Request) -> Reply:
        return Reply(200, msgspec.json.encode({"model_stats": [statistics(self._manifest, self._counters)]}))

    def _read_only(self, _: Request) -> Reply:
        name = self._manifest.name
        raise Refused(403, f"expected nothing to be changed here: {name} and its settings are the director's")

    def _get_for(self, target: bytes) -> _Answer | None:
        """What regions there are."""
        kind, name, verb = _region(target)
        if verb != "status":
            return None
        if kind == "cuda" or not self._regions.allowed:
            return functools.partial(_constant, b"[]")
        return lambda _: Reply(200, msgspec.json.encode(self._regions.status(name)))

    def _post_for(self, target: bytes) -> _Answer | None:
        """Verbs with a name in the path."""
        if target.startswith(b"/v2/repository/models/") and target.endswith((b"/load", b"/unload")):
            return self._read_only
        kind, name, verb = _region(target)
        if verb == "register":
            return functools.partial(self._register, kind, name)
        if verb == "unregister":
            return functools.partial(self._unregister, kind, name)
        return None

    def _register(self, kind: str, name: str, request: Request) -> Reply:
        if kind == "cuda":
            raise Refused(400, "cudasharedmemory: expected tensors or system shared memory, we lack this extension")
        try:
            said = msgspec.json.decode(request.body, type=Registration)
        except MALFORMED as error:
            raise Refused(400, f"region {name}: expected key, offset and byte_size: {error}") from None
        self._regions.register(name, said)
        return Reply(200, b"")

    def _unregister(self, kind: str, name: str, _: Request) -> Reply:
        if kind == "system":
            self._regions.unregister(name)
        return Reply(200, b"")

    # Failures

    def _failed(self, status: int, text: str, headers: bytes = b"") -> Reply:
        return Reply(status, msgspec.json.encode({"error": text}), headers=headers)


def _constant(document: bytes, _: Request) -> Reply:
    return Reply(200, document)


def _region(target: bytes) -> tuple[str, str, str]:
    """Kind (system or cuda), the region's name (empty: all) and the verb; nothing where it is another target."""
    parts = target.decode("utf-8", "replace").split("/")
    kind = parts[2].removesuffix("sharedmemory") if len(parts) > 3 else ""
    if kind not in ("system", "cuda") or parts[1] != "v2":
        return "", "", ""
    if len(parts) == 4:
        return kind, "", parts[3]
    if len(parts) == 6 and parts[3] == "region":
        return kind, parts[4], parts[5]
    return "", "", ""


def _shown(data: bytes) -> str:
    return data[:120].decode("ascii", "backslashreplace")
