"""The resources of the Open Inference Protocol: health, metadata, infer. A Handler for the connections.

Routes, calls the parser, the predictor and the renderer, and turns every failure into one JSON body. Policy (what a
good request is) stands in `oip`; what happens to a prediction afterwards is the observer's.
"""

from __future__ import annotations

import functools
import logging
import os
import time
from collections.abc import Awaitable, Mapping
from urllib.parse import unquote_to_bytes

import msgspec

import agent
from agent.backends import Array, BackendError
from agent.endpoint.counters import Counters
from agent.endpoint.exchange import Refused, Reply, Request
from agent.endpoint.oip import Call, Parser, Renderer
from agent.endpoint.predictor import Predictor
from agent.endpoint.recorder import Prediction, Recorder
from modules.manifest import Manifest
from modules.tensors import TensorSpec

log = logging.getLogger(__name__)


class Resources:
    """Answers for one module. The recorder is told after the answer was written."""

    def __init__(
        self, manifest: Manifest, parser: Parser, predictor: Predictor, counters: Counters, recorder: Recorder
    ) -> None:
        self._parser = parser
        self._renderer = Renderer(manifest)
        self._predictor = predictor
        self._counters = counters
        self._recorder = recorder
        self._batched = next((s.name for s in manifest.inputs if s.shape and s.shape[0] == -1), "")
        self._life = os.urandom(8).hex()
        base = f"/v2/models/{manifest.name}"
        self._bases = (base, f"{base}/versions/{manifest.version}")
        self._infer_targets = frozenset(f"{path}/infer".encode() for path in self._bases)
        self._documents = _documents(manifest, self._bases)

    def handle(self, request: Request) -> Reply | Awaitable[Reply]:
        target = request.target
        if target not in self._infer_targets:
            target = b"/" + unquote_to_bytes(target).strip(b"/")
        if target not in self._infer_targets:
            return self._read(request.method, target)
        if request.method != b"POST":
            return self._failed(405, "expected POST, got " + _shown(request.method), b"Allow: POST\r\n")
        return self._infer(request)

    def refused(self, error: Refused) -> Reply:
        self._counters.answered(error.status)
        return self._failed(error.status, str(error), error.headers)

    def _read(self, method: bytes, target: bytes) -> Reply:
        document = self._documents.get(target)
        if document is None:
            if method == b"POST":
                self._counters.answered(404)
            return self._failed(404, f"expected {self._bases[0]} (or {self._bases[1]}), got {_shown(target)}")
        if method != b"GET":
            return self._failed(405, "expected GET, got " + _shown(method), b"Allow: GET\r\n")
        return Reply(200, document)

    def _infer(self, request: Request) -> Reply | Awaitable[Reply]:
        try:
            call = self._parser.parse(request.body, request.json_length)
            rows = call.inputs[self._batched].shape[0] if self._batched else 1
            if not self._predictor.is_quick(rows):
                return self._infer_later(request, call, rows)
            return self._predicted(request, call, rows, self._predictor.run_in_loop(call.inputs, rows))
        except Exception as error:
            return self._raised(error)

    async def _infer_later(self, request: Request, call: Call, rows: int) -> Reply:
        try:
            return self._predicted(request, call, rows, await self._predictor.run_in_pool(call.inputs, rows))
        except Exception as error:
            return self._raised(error)

    def _predicted(self, request: Request, call: Call, rows: int, outputs: Mapping[str, Array]) -> Reply:
        id_ = call.id or f"{self._life}{self._counters.requests:x}"
        body, json_length = self._renderer.render(id_, call.outputs, outputs)
        self._recorder.count(rows, (time.perf_counter_ns() - request.arrived_ns) // 1000)
        prediction = Prediction(id_, rows, call.inputs, outputs)
        return Reply(200, body, json_length, after=functools.partial(self._recorder.observe, prediction))

    def _raised(self, error: Exception) -> Reply:
        """The one place where an exception becomes a status."""
        if isinstance(error, Refused):
            return self.refused(error)
        if isinstance(error, BackendError):
            return self.refused(Refused(400 if error.key == "bad-input" else 500, str(error)))
        log.error("a request failed for a reason of our own", exc_info=error)
        return self.refused(Refused(500, f"the worker failed on this request: {type(error).__name__}"))

    def _failed(self, status: int, text: str, headers: bytes = b"") -> Reply:
        return Reply(status, msgspec.json.encode({"error": text}), headers=headers)


def _documents(manifest: Manifest, bases: tuple[str, ...]) -> dict[bytes, bytes]:
    """What GET answers; a module that does not answer is not ready, so all of it is constant."""
    server = {"name": "mooring", "version": agent.__version__, "extensions": ["binary_tensor_data"]}
    model = {
        "name": manifest.name,
        "versions": [str(manifest.version)],
        "platform": "script" if manifest.runtime.entry else manifest.runtime.backend,
        "inputs": [_described(spec) for spec in manifest.inputs],
        "outputs": [_described(spec) for spec in manifest.outputs],
    }
    documents: dict[str, object] = {
        "/v2": server,
        "/v2/health/live": {"live": True},
        "/v2/health/ready": {"ready": True},
    }
    for base in bases:
        documents[base] = model
        documents[f"{base}/ready"] = {"name": manifest.name, "ready": True}
    return {path.encode(): msgspec.json.encode(document) for path, document in documents.items()}


def _described(spec: TensorSpec) -> dict[str, object]:
    described: dict[str, object] = {"name": spec.name, "datatype": spec.datatype, "shape": spec.shape}
    if spec.labels:
        described["parameters"] = {"labels": spec.labels}
    return described


def _shown(data: bytes) -> str:
    return data[:120].decode("ascii", "backslashreplace")
