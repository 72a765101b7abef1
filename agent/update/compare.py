"""Is the new module as good as the one before it? Errors and latencies of both, held against each other. Pure.

A difference counts only where chance does not explain it: the bound on the chance is Chernoff's, and one in a thousand
is too little. What was before is taken over its worker's life and over its last minutes, and the new one has to be
worse than both: a device that is busy just now slows both of them. Called by `agent.update.probation`.
Source: Hoeffding 1963, theorem 1 (the relative entropy bound on the binomial tail); Przyborowski and Wilenski 1940
(two Poisson rates, given their sum, are one binomial).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import msgspec

from agent.latency import above, percentile
from agent.runtimes.past import Before, Rates
from agent.sandbox.protocol import Stats

CHANCE = 1e-3
MIN_ERRORS = 3  # of the new module: one or two are no rate


@dataclass(frozen=True)
class Percentile:
    """One that is compared: `enough` predictions of both, and how much more nobody minds, because it comes and goes."""

    share: float
    enough: int
    least_ms: float


MEDIAN, TAIL = Percentile(0.5, 50, 2.0), Percentile(0.99, 500, 20.0)


class Factors(msgspec.Struct, frozen=True):
    """How many times worse than before is still well; 0 does not compare."""

    errors: float = 2.0
    latency: float = 2.0


AS_USUAL = Factors()


def more_errors(before: Before, stats: Stats, factor: float) -> str:
    """Why the new module fails more often than the one before; empty where it does not, or nobody can tell."""
    if not factor or stats.errors < MIN_ERRORS:
        return ""
    if not all(_fails_more(then, stats, factor) for then in (before.lived, before.lately)):
        return ""
    then = max(before.lived, before.lately, key=lambda one: one.errors / max(one.requests, 1))
    return (
        f"{stats.errors} of {stats.requests} requests failed, of version {before.version} before it "
        f"{then.errors} of {then.requests}; expected at most {factor:g} times the share"
    )


def slower(before: Before, stats: Stats, factor: float, at: Percentile) -> str:
    """Why the new module is slower than the one before; empty where it is not, or nobody can tell."""
    known = [percentile(r.latency, at.share) for r in (before.lived, before.lately) if r.predictions >= at.enough]
    made = sum(stats.latency)
    if not factor or not known or made < at.enough:
        return ""
    was, now = max(known), percentile(stats.latency, at.share)
    bound = max(factor * was, was + at.least_ms * 1000.0)
    if now <= bound or not surely_more(above(stats.latency, bound), made, 1.0 - at.share):
        return ""
    return (
        f"percentile {100 * at.share:g} of latency is {now / 1000:.3g} ms over {made} predictions, of version "
        f"{before.version} before it {was / 1000:.3g} ms; expected at most {factor:g} times that"
    )


def _fails_more(then: Rates, stats: Stats, factor: float) -> bool:
    """Given all errors of both, the new module's are a binomial share of them; larger than `factor` explains?"""
    weight, old = factor * stats.requests, then.requests
    return old > 0 and surely_more(stats.errors, stats.errors + then.errors, weight / (weight + old))


def surely_more(count: int, of: int, share: float) -> bool:
    """Whether `count` out of `of` is more than a true share of at most `share` gives once in 1/CHANCE."""
    got = count / of if of else 0.0
    return got > share and of * _divergence(got, share) > -math.log(CHANCE)


def _divergence(got: float, share: float) -> float:
    """Relative entropy, in nats, of two coins; `got` > `share`."""
    if share <= 0.0:
        return math.inf
    rest = (1 - got) * math.log((1 - got) / (1 - share)) if got < 1.0 else 0.0
    return got * math.log(got / share) + rest
