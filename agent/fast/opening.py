"""Puts the shared-memory path of one worker together. Called by `agent.sandbox.session`, its composition root."""

from __future__ import annotations

import socket
from collections.abc import Callable

from agent.backends import Backend
from agent.endpoint.counters import Counters
from agent.endpoint.exchange import Guard
from agent.endpoint.predictor import Predictor
from agent.endpoint.recorder import Recorder
from agent.fast.seat import Service
from agent.fast.server import FastEndpoint
from agent.sandbox.given import Given
from modules.manifest import Manifest

MIN_AREA_BYTES = 4 * 1024 * 1024


def open_fast(
    given: Given,
    manifest: Manifest,
    backend: Backend,
    predictor: Predictor,
    counters: Counters,
    recorder: Recorder,
    wanted: Callable[[str, int], frozenset[str]],
    not_missing: frozenset[str],
) -> FastEndpoint | None:
    """None where the device gave no socket for it. An area holds a largest request and as much of outputs."""
    if given.fast < 0:
        return None
    service = Service(
        manifest=manifest,
        backend=backend,
        predictor=predictor,
        recorder=recorder,
        wanted=wanted,
        not_missing=not_missing,
        refused=counters.answered,
        area_bytes=max(MIN_AREA_BYTES, 2 * manifest.resources.max_request_bytes),
        follow=not manifest.runtime.scripted,  # threads that a script starts would stay where we went
    )
    guard = Guard(peers=frozenset(given.peers))
    return FastEndpoint(service, guard, socket.socket(fileno=given.fast))
