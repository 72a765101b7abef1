"""The windows of one worker: counts rows into periods, closes these on time, and makes of each what is sent.

Errors, refusals, latencies and the clock's jumps belong to the window that was current when they happened. Called by
`agent.sandbox.watch`; nothing of what is known to go wrong raises.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from agent.endpoint.counters import Counters
from agent.watching.clock import ClockWatch
from agent.watching.periods import Period, Periods
from agent.watching.private import Private
from agent.watching.profiler import Counted, Profiler
from agent.watching.tensors import Arrays
from modules.manifest import Manifest, SamplingPolicy
from modules.windows import LATENCY_BINS, ReferenceProfile, Window, pack_counts

log = logging.getLogger(__name__)

MAX_NAP_S = 5.0  # the wall clock may be set while we wait for it
LEAST_NAP_S = 0.001


@dataclass(frozen=True)
class Subject:
    """What is counted: a module, by its manifest and the digest of it, and its reference profile, where it has one."""

    manifest: Manifest
    digest: str
    reference: ReferenceProfile | None
    reference_digest: str


class Windows:
    """`send` says whether a window was taken; `failed` hears of what went wrong, and goes on."""

    def __init__(
        self,
        subject: Subject,
        policy: SamplingPolicy,
        counters: Counters,
        clock: Callable[[], float],
        steady: Callable[[], float],
        send: Callable[[Window], bool],
        failed: Callable[[Exception], None],
    ) -> None:
        self._subject = subject
        self._policy = policy
        self._private = Private(subject.reference)
        self._private.promise(policy)
        self._counters = counters
        self._clock = clock
        self._steady = steady
        self._send = send
        self._failed = failed
        self._watch = ClockWatch(clock, steady)
        self._periods = Periods(self._profiler, policy, steady, clock())
        self._operation = _Operation(counters)
        self._left: dict[Period, _Seen] = {}
        self._jumps, self._jump_s = 0, 0.0
        self._life, self._made = secrets.token_urlsafe(9), 0
        self._timer: asyncio.Task[None] | None = None

    def add(self, rows: int, inputs: Arrays, outputs: Arrays, event_s: float = 0.0) -> None:
        """Rows of one prediction, or of some with the same event time (0: none)."""
        if not event_s:
            self._periods.current.add(rows, inputs, outputs)
        elif not self._periods.add_at(event_s, self._clock(), rows, inputs, outputs):
            self._counters.odd_times += rows

    def start(self) -> None:
        """Closes windows on time from now on."""
        self._timer = asyncio.create_task(self._close_on_time(), name="window-timer")

    async def stop(self) -> None:
        """Sends all that is open."""
        if self._timer is not None:
            self._timer.cancel()
            await asyncio.wait([self._timer], timeout=1.0)
        self._close_all()

    def set_policy(self, policy: SamplingPolicy) -> None:
        before, self._policy = self._policy, policy
        if any(getattr(before, name) != getattr(policy, name) for name in ("window_s", "grace_s", "privacy")):
            self._close_all()
        # Only now: what was counted under a promise leaves under it.
        self._private.promise(policy)

    def look(self) -> None:
        """Closes what is to be closed by now."""
        jump = self._watch.jumped()
        if jump:
            self._jumps += 1
            self._jump_s = max(self._jump_s, jump, key=abs)
            self._close_all(jumped=True)
        now = self._clock()
        left = self._periods.turn(now)
        if left is not None:
            self._left[left] = self._seen()
        self._close(self._periods.take_ripe(now), now)

    async def _close_on_time(self) -> None:
        while True:
            nap_s = MAX_NAP_S
            try:
                self.look()
                nap_s = min(MAX_NAP_S, max(LEAST_NAP_S, self._periods.due - self._clock()))
            except Exception as error:
                self._failed(error)
            await asyncio.sleep(nap_s)

    def _close_all(self, *, jumped: bool = False) -> None:
        now = self._clock()
        everything = self._periods.take_all()
        current = everything[-1]
        self._left[current] = self._seen()
        self._periods.begin(self._policy, now)
        self._close(everything, now, current if jumped else None)

    def _close(self, periods: Sequence[Period], now: float, moved: Period | None = None) -> None:
        """`moved` is the period in which the clock was set: it ended now by the new time, whatever the old one said."""
        for period in periods:
            start, end = _times(period, now)
            if period is moved:
                start, end = now - min(self._steady() - period.opened, period.length), now
            try:
                self._tell(period, start, end)
            except Exception as error:
                self._failed(error)

    def _tell(self, period: Period, start: float, end: float) -> None:
        seen = self._left.pop(period, _NOTHING)
        if not (period.rows or seen.errors or seen.refused):
            self._forget(period, seen)
            return
        counted = self._counted(period)
        self._made += 1
        subject = self._subject
        window = Window(
            module=subject.manifest.name,
            manifest_sha256=subject.digest,
            reference_sha256=subject.reference_digest,
            start=start,
            end=end,
            rows=period.rows,
            errors=seen.errors,
            refused=seen.refused,
            counts=pack_counts(counted.cells),
            moments=counted.moments,
            latency=pack_counts(seen.latency),
            id=f"{self._life}{self._made:x}",
            late=period.rows if period.is_late else 0,
            joint=counted.joint,
            still=counted.still,
            clock_jumps=seen.clock_jumps,
            clock_jump_s=seen.clock_jump_s,
        )
        if not self._send(self._private.made(window, counted.cells)):
            log.error("a window of %d rows of %s could not be sent and is lost", window.rows, window.module)

    def _counted(self, period: Period) -> Counted:
        """What could not be counted is missing from the cells, not from the rows."""
        if period.profiler is None:
            return Counted()
        try:
            period.profiler.flush()
        except Exception as error:
            self._failed(error)
        counted = period.profiler.close()
        self._periods.give_back(period.profiler)
        return counted

    def _forget(self, period: Period, seen: _Seen) -> None:
        """Nothing happened in it but jumps of the clock, of which the next window tells."""
        if period.profiler is not None:
            self._periods.give_back(period.profiler)
        self._jumps += seen.clock_jumps
        self._jump_s = max(self._jump_s, seen.clock_jump_s, key=abs)

    def _seen(self) -> _Seen:
        errors, refused, latency = self._operation.take()
        seen = _Seen(errors, refused, latency, self._jumps, self._jump_s)
        self._jumps, self._jump_s = 0, 0.0
        return seen

    def _profiler(self) -> Profiler | None:
        reference = self._subject.reference
        return None if reference is None else Profiler(reference, self._subject.manifest)


@dataclass(frozen=True)
class _Seen:
    """What a window tells beside its rows."""

    errors: int = 0
    refused: int = 0
    latency: tuple[int, ...] = ()
    clock_jumps: int = 0
    clock_jump_s: float = 0.0


class _Operation:
    """What the counters have gained since it was taken last."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self._before = self._now()

    def take(self) -> tuple[int, int, tuple[int, ...]]:
        before, self._before = self._before, self._now()
        errors, refused, latency = self._before
        gained = tuple(b - a for a, b in zip(before[2], latency, strict=True))
        return errors - before[0], refused - before[1], gained

    def _now(self) -> tuple[int, int, tuple[int, ...]]:
        return self._counters.errors, self._counters.refused, self._counters.latency.octaves()


_NOTHING = _Seen(latency=(0,) * LATENCY_BINS)


def _times(period: Period, now: float) -> tuple[float, float]:
    """A window that is closed before its end ends now."""
    return period.start, now if period.start <= now < period.end else period.end
