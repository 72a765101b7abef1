"""One client of the shared-memory path and the thread that serves it: receive, run, write, answer.

A thread of its own, because waking the event loop for each request would cost more than a small model's run. Every
wait ends: the socket has time limits of its own, and its other end closes when the client dies. Made by `server`.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import mmap
import os
import socket
import struct
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from agent.backends import Array, Backend, BackendError, Binds
from agent.endpoint.exchange import Refused
from agent.endpoint.oip import refuse_nan
from agent.endpoint.predictor import Predictor
from agent.endpoint.recorder import Prediction, Recorder
from agent.fast import wire
from agent.fast.area import receive_area
from agent.fast.bound import BoundPlan, bind
from agent.fast.plan import MoreRoom, Plan
from agent.fast.wire import GROW, HEAD, MAX_MESSAGE, PREDICT, TAKEN, TIMED, WireError
from modules.manifest import Manifest

log = logging.getLogger(__name__)

AREA_S = 10.0  # from the welcome to the client's area
IDLE_S = 300.0
SEND_S = 10.0
MAX_PLANS = 64  # forms of requests that are remembered per client
_PREDICT = PREDICT[0]
_TIME = struct.Struct("ll")


@dataclass(frozen=True)
class Service:
    """What all seats share. `wanted` names the inputs that the watch will look at, given id and rows, from any thread;
    `not_missing` those in which NaN is refused. `refused` counts, on the loop's thread. `follow`: whether a thread goes
    to the processor that its client is on.
    """

    manifest: Manifest
    backend: Backend
    predictor: Predictor
    recorder: Recorder
    wanted: Callable[[str, int], frozenset[str]]
    not_missing: frozenset[str]
    refused: Callable[[int], None]
    area_bytes: int
    follow: bool
    cpus: frozenset[int] = field(default_factory=lambda: frozenset(os.sched_getaffinity(0)))
    life: str = field(default_factory=lambda: os.urandom(8).hex())
    numbers: itertools.count[int] = field(default_factory=itertools.count)


class Seat:
    """`serve` runs in the thread; the other methods are for the loop's. `busy`: a request is under way."""

    def __init__(self, sock: socket.socket, service: Service, loop: asyncio.AbstractEventLoop) -> None:
        self.busy = False
        self._sock = sock
        self._loop = loop
        self._service = service
        self._area: mmap.mmap | None = None
        self._plans: dict[bytes, Plan] = {}
        self._bound: dict[bytes, BoundPlan] = {}
        self._life = service.life.encode()
        self._run_here = service.predictor.run_here
        self._leave = service.recorder.leave
        self._told = -1  # the processor that the client said last

    def serve(self) -> None:
        """Until the client leaves, is idle for too long, says what is no message, or `finish`."""
        try:
            _limit(self._sock, AREA_S)
            self._sock.send(wire.welcome(self._service.manifest, self._service.area_bytes, self._service.cpus))
            self._take_area()
            _limit(self._sock, IDLE_S)
            while message := self._sock.recv(MAX_MESSAGE):
                self.busy = True
                if message[0] == _PREDICT:
                    self._predict(message)
                else:
                    self._take_other(message)
                self.busy = False
        except (OSError, BlockingIOError):
            pass  # it left, or said nothing for too long: it will come again
        except WireError as error:
            self._refuse(Refused(400, str(error)))
        finally:
            self._sock.close()
            self._forget()
            self._area = None

    def finish(self) -> None:
        """No further request: what was sent already is answered, then the client hears that the connection ended."""
        _shut(self._sock, socket.SHUT_RD)

    def cut(self) -> None:
        _shut(self._sock, socket.SHUT_RDWR)

    def _take_area(self) -> None:
        self._forget()
        self._area = None
        try:
            self._area = receive_area(self._sock, self._service.area_bytes)
        except Refused as error:
            self._refuse(error)
            raise ConnectionAbortedError(str(error)) from error
        self._sock.send(TAKEN)

    def _take_other(self, message: bytes) -> None:
        if message[:1] == b"E" and message[TIMED.size : TIMED.size + 1] == PREDICT:
            self._predict(message[TIMED.size :], TIMED.unpack_from(message)[1])
            return
        if message != GROW:
            raise WireError(f"expected a request, got {len(message)} bytes of kind {message[:1]!r}")
        self._take_area()

    def _predict(self, message: bytes, event_s: float = 0.0) -> None:
        started = time.perf_counter_ns()
        if len(message) < HEAD.size or len(message) == MAX_MESSAGE:
            raise WireError(f"expected a request of {HEAD.size} to {MAX_MESSAGE - 1} bytes, got {len(message)}")
        _, cpu, length = HEAD.unpack_from(message)
        id_ = message[HEAD.size : HEAD.size + length] or self._next_id()
        body = message[HEAD.size + length :]
        bound = self._bound.get(body)
        if cpu != self._told:
            self._go_to(cpu)
        try:
            if bound is None or not self._run_bound(bound, body, id_, started, event_s):
                self._run(body, id_, started, event_s)
        except MoreRoom as error:
            self._sock.send(wire.more(error.size))
        except (Refused, BackendError, UnicodeDecodeError) as error:
            self._refuse(_as_refused(error))
        except (WireError, OSError):
            raise
        except Exception as error:
            log.exception("a request over shared memory failed for a reason of our own")
            self._refuse(Refused(500, f"the worker failed on this request: {type(error).__name__}"))

    def _run_bound(self, bound: BoundPlan, body: bytes, id_: bytes, started: int, event_s: float) -> bool:
        """Whether that was possible; else it is run as any other, and tells why not. Raises Refused, OSError."""
        if bound.may_be_missing() or not id_.isascii():
            return False
        try:
            self._run_here(bound.inputs, bound.rows, bound.run)
        except BackendError:  # such as outputs of another shape this time
            del self._bound[body]
            return False
        seen = bound.seen(id_, event_s)  # before the client may write again
        took_us = (time.perf_counter_ns() - started) // 1000
        self._sock.send(wire.done(id_, bound.layout))
        self._leave(seen, took_us)
        return True

    def _run(self, body: bytes, id_: bytes, started: int, event_s: float) -> None:
        """Raises Refused, BackendError, MoreRoom, WireError, UnicodeDecodeError, OSError."""
        service, text = self._service, id_.decode()
        plan = self._plan(body)
        inputs = plan.inputs()
        for name in service.not_missing:
            refuse_nan(name, inputs[name])
        outputs = service.predictor.run_here(inputs, plan.rows)
        where = plan.write(outputs)
        kept = inputs if not plan.in_place else self._kept(inputs, plan, text)  # before the client may write again
        took_us = (time.perf_counter_ns() - started) // 1000
        self._sock.send(wire.done(id_, where))
        service.recorder.leave(Prediction(text, plan.rows, kept, outputs, event_s), took_us)
        self._bind(plan, body)

    def _bind(self, plan: Plan, body: bytes) -> None:
        """Once per form of request: the next of this form is run in the area itself, where that can be."""
        service = self._service
        if plan.tried or not isinstance(service.backend, Binds) or self._area is None:
            return
        plan.tried = True
        bound = bind(plan, service.manifest, self._area, service.backend, service.not_missing)
        if bound is not None:
            self._bound[body] = bound

    def _next_id(self) -> bytes:
        return b"%b%x" % (self._life, next(self._service.numbers))

    def _plan(self, body: bytes) -> Plan:
        plan = self._plans.get(body)
        if plan is None:
            assert self._area is not None  # noqa: S101 - taken before the first request
            plan = Plan(self._service.manifest, self._area, body)
            if len(self._plans) >= MAX_PLANS:
                self._forget()
            self._plans[body] = plan
        return plan

    def _kept(self, inputs: Mapping[str, Array], plan: Plan, id_: str) -> dict[str, Array]:
        """What the watch may look at later: views are copied where it will, and left out where it will not."""
        wanted = self._service.wanted(id_, plan.rows)
        return {
            name: array.copy() if name in plan.in_place else array
            for name, array in inputs.items()
            if name in wanted or name not in plan.in_place
        }

    def _go_to(self, cpu: int) -> None:
        """To the processor that the client is on, and away again when it does not say one."""
        self._told = cpu
        if self._service.follow:
            os.sched_setaffinity(0, {cpu} if cpu in self._service.cpus else self._service.cpus)

    def _forget(self) -> None:
        self._plans.clear()
        self._bound.clear()

    def _refuse(self, error: Refused) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended, and the process does
            self._loop.call_soon_threadsafe(self._service.refused, error.status)
        try:
            self._sock.send(wire.refused(error.status, str(error)))
        except OSError as gone:
            log.debug("a client left before it heard that it was refused: %s", gone)


def _as_refused(error: Exception) -> Refused:
    if isinstance(error, Refused):
        return error
    if isinstance(error, BackendError):
        return Refused(400 if error.key == "bad-input" else 500, str(error))
    return Refused(400, "id: expected UTF-8 text")


def _limit(sock: socket.socket, idle_s: float) -> None:
    """By the kernel: a time limit of Python's would be one more system call for each message."""
    for option, seconds in ((socket.SO_RCVTIMEO, idle_s), (socket.SO_SNDTIMEO, SEND_S)):
        sock.setsockopt(socket.SOL_SOCKET, option, _TIME.pack(int(seconds), 0))


def _shut(sock: socket.socket, how: int) -> None:
    try:
        sock.shutdown(how)
    except OSError as error:
        log.debug("a client was gone already: %s", error)
