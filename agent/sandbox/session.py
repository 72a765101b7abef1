"""One module in a worker: confined, loaded, tested, served, drained. Builds everything the worker consists of.

Imports the heavy libraries, so the worker imports this file only once its environment is set.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from agent.backends import Array, BackendError
from agent.backends.choice import open_backend, whole
from agent.backends.environment import use_libraries
from agent.backends.place import Place
from agent.candidates.beside import Beside
from agent.candidates.intake import Intake
from agent.endpoint.batches import built_for_shapes, has_rows
from agent.endpoint.codec import DTYPES
from agent.endpoint.counters import Counters
from agent.endpoint.documents import OPEN
from agent.endpoint.exchange import Guard, Handler, Limits
from agent.endpoint.http import Endpoint
from agent.endpoint.oip import Parser, never_missing
from agent.endpoint.predictor import Predictor
from agent.endpoint.recorder import Prediction, Recorder, Together
from agent.endpoint.regions import Regions
from agent.endpoint.resources import Resources
from agent.endpoint.score import Score
from agent.fast.opening import open_fast
from agent.formats import check_formats
from agent.sampling.sampler import scores_output
from agent.sandbox.blackbox import Recorded
from agent.sandbox.confine import ConfineError, confine
from agent.sandbox.given import Given
from agent.sandbox.level import level_of, separated
from agent.sandbox.protocol import Asked, AskedDone, BlobTaken, Passed, Ready, SampleTaken, Start, Stats, WindowClosed
from agent.sandbox.room import Room, room_for, with_places
from agent.sandbox.self_test import check_golden, golden_inputs
from agent.sandbox.share import settle, threads
from agent.sandbox.watch import Watch
from firmware_profiles.confinement import Confinement
from modules.entry import CONFIG
from modules.manifest import Health, Manifest, SamplingPolicy, decode_manifest, manifest_digest
from modules.tensors import TensorSpec, decode_golden
from modules.windows import Numeric, ReferenceProfile, decode_reference

log = logging.getLogger(__name__)

if TYPE_CHECKING:
    from agent.sources.opened import Sources

MAX_HELD_REQUESTS = 8  # how many of the largest requests may be in memory at once
MIN_HELD_BYTES = 64 * 1024 * 1024


class Session:
    """The module that this worker runs. `ready` is what to answer to Start."""

    def __init__(self, order: Start, send: Callable[[WindowClosed | SampleTaken | BlobTaken], bool]) -> None:
        """Raises AgentError and ModuleError."""
        started = time.perf_counter()
        manifest = decode_manifest(order.manifest)
        check_formats(manifest)
        os.environ[CONFIG] = order.config.decode()
        backend = open_backend(manifest)  # imports what it needs, while it still may
        _load_source_libraries(manifest)
        if order.given.black_box >= 0:
            backend = Recorded(backend, order.given.black_box)
        settle(order.given)
        words, level = _confined(order, manifest)
        self._configured = order.config not in (b"", b"{}")
        self._slot = _reachable(Path(order.slot))
        if manifest.runtime.environment:
            use_libraries(self._slot / manifest.runtime.environment)
        backend.load(whole(manifest), _place(self._slot, manifest, order))
        reference, reference_digest = _reference(self._slot, manifest)
        self.counters = Counters()
        self._manifest = manifest
        self._backend = backend
        resources = manifest.resources
        self._predictor = Predictor(
            backend, self.counters, resources.max_queue, resources.request_deadline_s,
            batch_rows=manifest.runtime.batch_rows if has_rows(manifest) else 1,
        )  # fmt: skip
        self.watch = Watch(
            manifest, manifest_digest(order.manifest), reference, reference_digest, order.sampling, self.counters,
            time.time, send, order.given,
        )  # fmt: skip
        self._recorder = Recorder(self.counters, self._observe, self._observe_together)
        complete = never_missing(manifest, _complete_tensors(reference))
        self._parser = Parser(manifest, complete, Regions(allowed=order.given.shares_memory))
        self._beside = self._open_beside(order.given)
        self._score: Score | None = None
        self._endpoint = Endpoint(self._handler(), _limits(manifest), guard=_guard(order.given))
        self._fast = open_fast(
            order.given, manifest, backend, self._predictor, self.counters, self._recorder, self._wanted, complete
        )
        self._sources = self._open_sources(order, complete)
        self._intake = self._open_intake(order.given, scores_output(manifest, reference))
        self._sockets = [socket.socket(fileno=fd) for fd in order.listen]
        self._warm_up()
        ran = backend.execution()
        load_ms = (time.perf_counter() - started) * 1000
        self.ready = Ready(words, "; ".join(map(str, ran)), load_ms, level, ran)

    def self_test(self) -> Passed:
        """Raises AgentError (golden-mismatch, run-failed) and TensorError."""
        health = self._manifest.health
        if not health.golden:
            return Passed(0, 0.0)
        golden = decode_golden((self._slot / health.golden).read_bytes())
        worst = check_golden(golden, self._backend.run, health.rtol, health.atol, self._configured)
        if golden.cases:
            inputs = golden_inputs(golden.cases[0])
            self._predictor.warm_up(inputs, _rows(self._manifest, inputs))
            self._prove(inputs, health)
        return Passed(len(golden.cases), worst)

    def _prove(self, golden: dict[str, Array], health: Health) -> None:
        """Two golden rows, and one of zeros behind them, where requests may be run together."""
        if has_rows(self._manifest) and not built_for_shapes(self._backend.execution(), self._manifest):
            try:
                rows = {s.name: np.concatenate([golden[s.name][:2], _zeros(s)]) for s in self._manifest.inputs}
                self._predictor.prove(rows, _rows(self._manifest, rows), health.rtol, health.atol)
            except (BackendError, ValueError) as error:  # sizes that a row of zeros does not have, or cannot take
                log.info("requests are not run together: %s", error)

    async def serve(self) -> None:
        self.watch.start()
        self._recorder.start()
        await self._endpoint.start(self._sockets)
        if self._fast is not None:
            self._fast.start()
        if self._sources is not None:
            self._sources.start()
        for one in (self._beside, self._intake):
            if one is not None:
                one.start()

    async def drain(self, deadline_s: float) -> int:
        """How many connections were cut."""
        others = [one.drain(deadline_s) for one in (self._fast, self._sources, self._intake) if one is not None]
        cut = sum(await asyncio.gather(self._endpoint.drain(deadline_s), *others))
        await self._recorder.stop()
        if self._beside is not None:
            await self._beside.stop()
        await self.watch.stop()
        return cut

    def set_policy(self, policy: SamplingPolicy) -> None:
        self.watch.set_policy(policy)

    async def asked(self, order: Asked) -> AskedDone:
        """Samples of the ring, sent before this returns."""
        return await self.watch.taking.asked(order)

    def hold(self, requests: bool, sources: bool) -> None:
        """What waits for cooler times; false lets it go on."""
        self._predictor.held = requests
        if self._sources is not None:
            self._sources.hold(sources)

    def stats(self) -> Stats:
        other = self._beside or self._intake
        counts = dict(other.counts) if other is not None else {}
        stats = msgspec.structs.replace(self.counters.stats(), sampling=self.watch.taking.unfit, beside=counts)
        return msgspec.structs.replace(stats, sources=self._sources.seen()) if self._sources is not None else stats

    def close(self) -> None:
        if self._score is not None:
            self._score.close()
        self._predictor.close()
        self._backend.close()

    def _open_sources(self, order: Start, complete: frozenset[str]) -> Sources | None:
        if not self._manifest.runtime.sources or order.given.candidate:
            return None
        from agent.sources.opened import open_sources

        predictor, recorder = self._predictor, self._recorder
        made = open_sources(order.given, self._manifest, self._slot, predictor, recorder, self.counters, complete)
        self.counters.sources = made.seen
        return made

    def _open_beside(self, given: Given) -> Beside | None:
        if given.tap < 0 or given.candidate:
            return None
        submit, typical_us = self._predictor.submit, self._predictor.typical_us
        return Beside(self._manifest, given.tap, self._parser.regions, submit, typical_us)

    def _open_intake(self, given: Given, scores: str) -> Intake | None:
        """Last, because from then on the predictor's answers are the intake's."""
        if given.tap < 0 or not given.candidate:
            return None
        met = self.watch.taking.choose_as
        return Intake(
            self._manifest, given.tap, self._parser, self._predictor, self.counters, self._recorder, scores,
            lambda terms: met(terms.manifest_sha256),
        )  # fmt: skip

    def _observe(self, prediction: Prediction) -> None:
        self.watch.observe(prediction)
        if self._beside is not None:
            self._beside.observe(prediction)

    def _observe_together(self, together: Together) -> None:
        self.watch.observe_together(together)
        if self._beside is not None:
            self._beside.observe_together(together)

    def _wanted(self, prediction_id: str, rows: int) -> frozenset[str]:
        """The inputs that somebody will look at; from any thread."""
        if self._beside is not None and self._beside.wants(prediction_id):
            return frozenset(spec.name for spec in self._manifest.inputs)
        return self.watch.wanted(prediction_id, rows)

    def _handler(self) -> Handler:
        """With `/score` beside the protocol where a script takes requests as they come."""
        route = self._beside.route if self._beside is not None else None
        resources = Resources(
            self._manifest, self._parser, self._predictor, self.counters, self._recorder, route
        )  # fmt: skip
        if not getattr(self._backend, "scores", False):
            return resources
        here = self._predictor.run_here
        self._score = Score(resources, here, self._recorder, self.counters, self._manifest, self._backend.parallel)
        return self._score

    def _warm_up(self) -> None:
        """One row of zeros, to learn how long a run takes. A model that cannot take zeros tells it by its golden; a
        script is not called with what nobody asked for.
        """
        if self._manifest.runtime.answers_by_script:
            return
        inputs = {spec.name: _zeros(spec) for spec in self._manifest.inputs}
        with contextlib.suppress(BackendError):
            self._predictor.warm_up(inputs, 1)


def _load_source_libraries(manifest: Manifest) -> None:
    """Most modules have no sources and need none of this in memory. Raises BackendError."""
    if manifest.runtime.sources:
        from agent.sources.opened import load_libraries

        load_libraries(manifest.runtime.sources)


def _confined(order: Start, manifest: Manifest) -> tuple[str, Confinement]:
    """What was done, and the level that makes. Raises ConfineError when that is not enough: nothing is loaded then."""
    words, level = "none", Confinement.NONE
    if order.confine:
        root, apart = os.geteuid() == 0, separated(order.outside)
        room, memory_mib = _room(order, manifest), manifest.resources.memory_mib
        done = confine(Path(order.slot), order.uid, memory_mib, room=room).split("+")
        words, level = "+".join([*done, *apart, *order.around]), level_of([*done, *apart], root)
    for who, wanted in (("the module", manifest.requires.confinement), ("this device", order.floor)):
        if not level.reaches(wanted):
            raise ConfineError(
                f"confinement: {who} requires at least {wanted.value}, got {level.value} ({words}); nothing was loaded"
            )
    return words, level


def _room(order: Start, manifest: Manifest) -> Room:
    cache = Path(order.given.cache) if order.given.cache else None
    given = order.given
    room = room_for(manifest.requires.accelerators, cache, given.cache_bytes, shares_memory=given.shares_memory)
    return with_places(room, given.places)


def _place(slot: Path, manifest: Manifest, order: Start) -> Place:
    """What the backend may use."""
    given = order.given
    cores = len(os.sched_getaffinity(0))
    return Place(
        slot=slot,
        signed=frozenset(entry.path for entry in manifest.files),
        threads=threads(manifest.resources, cores, bool(given.cpus)),
        parallel=manifest.runtime.instances,
        providers=given.providers,
        cache=Path(given.cache) if given.cache else None,
        gpu_memory_mib=given.gpu_memory_mib,
        circuit=given.circuit,
    )


def _reachable(slot: Path) -> Path:
    """The slot by its path, or as the current folder where a folder above it is closed to our user."""
    return slot if os.access(slot, os.R_OK | os.X_OK) else Path()


def _reference(slot: Path, manifest: Manifest) -> tuple[ReferenceProfile | None, str]:
    if not manifest.reference:
        return None, ""
    data = (slot / manifest.reference).read_bytes()
    return decode_reference(data), manifest.file(manifest.reference).sha256


def _complete_tensors(reference: ReferenceProfile | None) -> frozenset[str]:
    """The input tensors with features none of which was ever missing in training."""
    if reference is None:
        return frozenset()
    named = {feature.tensor for feature in reference.inputs if isinstance(feature, Numeric)}
    return frozenset(named - {feature.tensor for feature in reference.inputs if feature.counts[-1] > 0})


def _guard(given: Given) -> Guard:
    return Guard(given.token.encode(), frozenset(given.peers), OPEN)


def _limits(manifest: Manifest) -> Limits:
    largest = manifest.resources.max_request_bytes
    return Limits(body_bytes=largest, held_bytes=max(MIN_HELD_BYTES, largest * MAX_HELD_REQUESTS))


def _rows(manifest: Manifest, inputs: dict[str, Array]) -> int:
    batched = next((spec.name for spec in manifest.inputs if spec.shape and spec.shape[0] == -1), "")
    return inputs[batched].shape[0] if batched in inputs else 1


def _zeros(spec: TensorSpec) -> Array:
    shape = tuple(1 if size == -1 else size for size in spec.shape)
    if spec.datatype == "BYTES":
        return np.full(shape, b"", dtype=object)
    return np.zeros(shape, DTYPES[spec.datatype])
