"""`/score`: the route of Azure ML's inference server: a script's `run` gets the body as it is.

A Handler around the worker's own, for a module whose script has `run`. Goes through the predictor like every
prediction: one at a time, with its deadline. Where the body's and the answer's values fit the module's tensors, the
prediction is profiled and sampled like others; where they do not, it is only counted. Called by the session.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

import msgspec

from agent.backends import Array
from agent.backends.script_answers import ScoreAnswer, as_array
from agent.backends.script_run import ScoreCall
from agent.endpoint.counters import Counters
from agent.endpoint.encoding import unpacked
from agent.endpoint.exchange import RETRY, Handler, Later, Refused, Reply, Request
from agent.endpoint.failures import as_refused
from agent.endpoint.recorder import Prediction, Recorder
from modules.entry import ONLY_INPUT, EntryError, run_result
from modules.errors import MALFORMED
from modules.manifest import Manifest

log = logging.getLogger(__name__)

TARGET = b"/score"
_METHODS = (b"GET", b"POST")
RunHere = Callable[[Mapping[str, Array], int], dict[str, Array]]


class Score:
    """`run_here` is the predictor's, for threads of callers' own."""

    def __init__(
        self,
        inner: Handler,
        run_here: RunHere,
        recorder: Recorder,
        counters: Counters,
        manifest: Manifest,
        threads: int,
    ) -> None:
        self._inner = inner
        self._run_here = run_here
        self._recorder = recorder
        self._counters = counters
        self._manifest = manifest
        self._capacity = manifest.resources.max_queue + threads
        self._waiting = 0
        self._life, self._made = os.urandom(8).hex(), 0  # of the ids of predictions
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="score")

    def handle(self, request: Request) -> Reply | Later | Awaitable[Reply]:
        if request.target != TARGET:
            return self._inner.handle(request)
        if request.method == b"OPTIONS":
            return Reply(200, b"")
        if request.method not in _METHODS:
            return self.refused(Refused(405, "expected POST or GET", b"Allow: GET, POST, OPTIONS\r\n"))
        if self._waiting >= self._capacity:
            text = f"expected at most {self._capacity} requests at once, got more: try again"
            return self.refused(Refused(503, text, RETRY))
        return self._scored(request)

    def refused(self, error: Refused) -> Reply:
        return self._inner.refused(error)

    def close(self) -> None:
        """Waits for nothing: a run that never ends must not keep the worker."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _scored(self, request: Request) -> Reply:
        self._waiting += 1
        try:
            call = _call(request, self._manifest.resources.max_request_bytes)
            loop = asyncio.get_running_loop()
            answer, prediction = await loop.run_in_executor(self._pool, self._ran, call, request.due_ns)
            self._recorder.count(prediction.rows, (time.perf_counter_ns() - request.arrived_ns) // 1000)
            prediction.event_s = request.event_s
            return _reply(answer, lambda: self._watch(prediction))
        except Exception as error:
            return self.refused(as_refused(error))
        finally:
            self._waiting -= 1

    def _ran(self, call: ScoreCall, due_ns: int) -> tuple[ScoreAnswer, Prediction]:
        """In a thread of ours. Raises BackendError and Refused."""
        if due_ns and time.perf_counter_ns() > due_ns:
            raise Refused(504, "the client's deadline was over before the request's turn: it was not run")
        self._run_here(call, 1)
        answer = call.answer
        assert isinstance(answer, ScoreAnswer)  # noqa: S101 - the script's backend raises otherwise
        return answer, self._prediction(call, answer)

    def _prediction(self, call: ScoreCall, answer: ScoreAnswer) -> Prediction:
        """Without tensors where the values are not the module's."""
        outputs = [spec.name for spec in self._manifest.outputs]
        try:
            body = _named(msgspec.json.decode(call.body), [spec.name for spec in self._manifest.inputs])
            values = run_result(answer.body, outputs)
            inputs = {spec.name: as_array(spec, body[spec.name]) for spec in self._manifest.inputs}
            results = {spec.name: as_array(spec, values[spec.name]) for spec in self._manifest.outputs}
        except (*MALFORMED, EntryError, KeyError, TypeError, ValueError, OverflowError, RecursionError):
            return Prediction("", 1, {}, {})
        batched = next((spec.name for spec in self._manifest.inputs if spec.shape and spec.shape[0] == -1), "")
        return Prediction("", len(inputs[batched]) if batched else 1, inputs, results)

    def _watch(self, prediction: Prediction) -> None:
        self._made += 1
        prediction.id = f"{self._life}{self._made:x}"
        self._recorder.observe(prediction)


def _call(request: Request, most: int) -> ScoreCall:
    """Raises Refused."""
    body = unpacked(request.body, request.encoding, most) if request.encoding else request.body
    headers = tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in request.named)
    return ScoreCall(body, request.method.decode("latin-1"), request.query.decode("latin-1"), headers)


def _named(body: object, names: list[str]) -> Mapping[str, object]:
    """Values by input: under its name, or the only one's under "data"."""
    if not isinstance(body, dict):
        raise TypeError("expected an object")
    if len(names) == 1 and names[0] not in body:
        return {names[0]: body[ONLY_INPUT]}
    return body


def _reply(answer: ScoreAnswer, after: Callable[[], None]) -> Reply:
    headers = b"".join(f"{name}: {value}\r\n".encode("latin-1", "replace") for name, value in answer.headers)
    return Reply(
        answer.status, answer.body, headers=headers, after=after, kind=answer.kind.encode("latin-1", "replace")
    )
