"""Is the new module healthy? What it has been seen doing, held against its manifest and what was before it. Pure.

Time comes in as seconds since probation began. Called by `agent.update.steps` about once a second.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from agent.runtimes.past import Before
from agent.sandbox.protocol import Stats
from agent.update.compare import AS_USUAL, MEDIAN, TAIL, Factors, more_errors, slower
from modules.manifest import Health

# Until the end, shares are of at least this many predictions: one early error is no verdict.
MIN_PREDICTIONS = 100


class Verdict(enum.Enum):
    WAITING = "waiting"
    HEALTHY = "healthy"
    UNHEALTHY = "unhealthy"


@dataclass(frozen=True)
class Seen:
    """What one module did since it took over. `crashes` counts workers that ended; `last_crash` says how."""

    stats: Stats
    crashes: int = 0
    last_crash: str = ""


@dataclass(frozen=True)
class Judgement:
    verdict: Verdict
    key: str = ""
    text: str = ""


def judge(
    name: str, health: Health, seen: Seen, elapsed_s: float, before: Before | None = None, factors: Factors = AS_USUAL
) -> Judgement:
    """HEALTHY only after both the time and the number of predictions; UNHEALTHY at the first broken promise, or where
    it does worse than what was `before` it.
    """
    if seen.crashes:
        return _unhealthy(name, "crashed", f"the worker ended {seen.crashes} times, last: {seen.last_crash}")
    enough = elapsed_s >= health.probation_s and seen.stats.requests >= health.probation_inferences
    broken = _errors(name, health, seen.stats, enough) or _latency(name, health, seen.stats, enough)
    if broken is not None:
        return broken
    if before is not None and (why := more_errors(before, seen.stats, factors.errors)):
        return _unhealthy(name, "more-errors", why)
    late = elapsed_s >= health.probation_deadline_s
    if enough and before is not None:  # only now: the first minutes of a worker are not its best
        if why := slower(before, seen.stats, factors.latency, MEDIAN):
            return _unhealthy(name, "slower", why)
        if why := slower(before, seen.stats, factors.latency, TAIL):
            # A device that is busy just now has long tails, too: time tells the one from the other.
            return _unhealthy(name, "slower", why) if late else Judgement(Verdict.WAITING)
    if enough:
        return Judgement(Verdict.HEALTHY)
    if late:
        wanted, got = health.probation_inferences, seen.stats.requests
        return _unhealthy(name, "probation-deadline", f"expected {wanted} predictions in time, got {got}")
    return Judgement(Verdict.WAITING)


def _errors(name: str, health: Health, stats: Stats, enough: bool) -> Judgement | None:
    predictions = stats.requests if enough else max(stats.requests, MIN_PREDICTIONS)
    if stats.errors <= health.max_error_rate * predictions:
        return None
    text = f"expected at most {health.max_error_rate:g} of requests to fail, got {stats.errors} of {stats.requests}"
    return _unhealthy(name, "error-rate", text)


def _latency(name: str, health: Health, stats: Stats, enough: bool) -> Judgement | None:
    bound, got = health.latency_bound_ms, stats.p99_us / 1000.0
    if not bound or got <= bound or not stats.requests or not (enough or stats.requests >= MIN_PREDICTIONS):
        return None
    return _unhealthy(name, "latency", f"expected a 99th percentile of at most {bound:g} ms, got {got:.3g} ms")


def _unhealthy(name: str, key: str, text: str) -> Judgement:
    return Judgement(Verdict.UNHEALTHY, key, f"module {name}: {text}")
