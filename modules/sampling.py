"""What comes back of predictions: how often, which ones more often, how many bytes, and what is taken out before.

Part of the manifest (a module's default) and of the director's word for one device. Frozen values; fields that agents
of before version 0.2 do not know are written only where they are set, so that a policy which asks for nothing new keeps
its bytes. Pure. Applied by `agent.sampling`, changed by `cloud_hub.asking`.
"""

from __future__ import annotations

import math
import re
from typing import Literal

import msgspec

from modules.errors import ManifestError
from modules.privacy import Privacy
from modules.runtime import NEWER_AGENT

MAX_STRATA = 16
MAX_REDACTED = 256
MAX_RING_ROWS = 200_000  # each takes some 300 bytes of the worker's memory, too
MAX_RING_BYTES = 4 * 2**30
MAX_NAME = 200
STRATUM = r"[a-z][a-z0-9_]{0,31}"
# Strata that are not declared: the agent's own, and what an operator has asked for.
FIRST, LOW_CONFIDENCE, BASE, ASKED = "first", "low_confidence", "base", "asked"
OWN_STRATA = frozenset({FIRST, LOW_CONFIDENCE, BASE, ASKED})

When = Literal["low_confidence", "low_margin", "out_of_range", "missing", "between", "equals"]
Action = Literal["drop", "hash", "coarsen", "blur"]
Region = tuple[int, int, int, int]


class Stratum(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Predictions of which `rate` is kept, where that is more than what else would be.

    `when` says which: the largest score is less than `below` (low_confidence); the two largest are less than `below`
    apart (low_margin); a value lies outside what the training sample held (out_of_range), or is none (missing); a
    value v has at_least <= v < below (between), with one of the two left out where there is no such end; or its
    category is `equals`. Value and category are those of `feature`: a name in the reference profile, or a tensor, or
    `tensor[place]`. Without one, out_of_range and missing look at all inputs, and equals at the class of the scores.
    """

    name: str
    rate: float
    when: When
    feature: str = ""
    at_least: float | None = None
    below: float | None = None
    equals: str = ""

    def __post_init__(self) -> None:
        where = f"sampling.strata {self.name[:40]!r}"
        if not re.fullmatch(STRATUM, self.name) or self.name in OWN_STRATA:
            taken = ", ".join(sorted(OWN_STRATA))
            raise ManifestError(f"{where}: expected a name of its own like {STRATUM}, and none of {taken}")
        _check_share(f"{where}.rate", self.rate)
        if len(self.feature) > MAX_NAME or len(self.equals) > MAX_NAME:
            raise ManifestError(f"{where}: expected names of at most {MAX_NAME} characters")
        for end in (self.at_least, self.below):
            if end is not None and not math.isfinite(end):
                raise ManifestError(f"{where}: expected numbers, got {end}")
        if wrong := self._wrong():
            raise ManifestError(f"{where}: {wrong}")

    def _wrong(self) -> str:
        ends = (self.at_least is not None, self.below is not None)
        if self.when in ("low_confidence", "low_margin"):
            fits = ends == (False, True) and not self.feature
            return "" if fits and not self.equals else f"expected only below with {self.when}"
        if self.when == "between":
            if not self.feature or not any(ends) or self.equals:
                return "expected a feature, and at_least or below, with between"
            empty = self.at_least is not None and self.below is not None and self.at_least >= self.below
            return "expected at_least less than below" if empty else ""
        if any(ends):
            return f"expected neither at_least nor below with {self.when}"
        if self.when == "equals":
            return "" if self.equals else "expected a category with equals"
        return f"expected no category with {self.when}" if self.equals else ""


class Redaction(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What is done to a tensor, or to one of its features, before anything leaves the device.

    drop: not sent (a tensor), or sent as missing (a feature). hash: a keyed hash in the place of each value, the same
    for the same value on one device and under one salt. coarsen: the lower end of the step of length `step` that the
    value lies in, or without one of its bin in the reference profile. blur: `region` of an image (top, left, height,
    width in pixels; without one the whole) in squares of `step` pixels that have one colour each, without `step` in
    one square.
    """

    action: Action
    step: float = 0.0
    region: Region | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.step) and self.step >= 0.0):
            raise ManifestError(f"sampling.redact: expected a step of at least 0, got {self.step}")
        if self.step and self.action not in ("coarsen", "blur"):
            raise ManifestError(f"sampling.redact: expected no step with {self.action}")
        if self.action == "blur" and self.step != int(self.step):
            raise ManifestError(f"sampling.redact: expected whole pixels as a step of blur, got {self.step}")
        if self.region is not None:
            _check_region(self.action, self.region)


class SamplingPolicy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The share of predictions that comes back whole, the strata above it, and the length of a window in seconds.

    A prediction is kept with the largest rate of the strata that it fits. `quota_bytes_per_day` bounds what samples
    take: as it is used up, all rates fall together, and each sample says the rate that it was kept with. `redact` is by
    tensor, or by feature as in `Stratum`. The device keeps its last predictions in a ring, from which the hub may ask
    for some: at most `ring_rows` of them, in `ring_bytes`, for `ring_s` seconds; where nothing is said of rows there is
    none, and nothing may be asked for. A tensor larger than `blob_bytes` comes apart from its sample, and later.
    `grace_s`: how long a window stays open for late rows after its end. With `privacy` only windows leave the device,
    with noise in their counts, and no samples. Agents of before version 0.2 refuse a policy
    that says any of these.
    """

    rate: float = 0.01
    low_confidence: float = 0.0
    low_confidence_rate: float = 0.0
    first: int = 0
    window_s: float = 300.0
    salt: str = ""
    grace_s: float | msgspec.UnsetType = msgspec.UNSET
    strata: tuple[Stratum, ...] | msgspec.UnsetType = msgspec.UNSET
    quota_bytes_per_day: int | msgspec.UnsetType = msgspec.UNSET
    redact: dict[str, Redaction] | msgspec.UnsetType = msgspec.UNSET
    ring_rows: int | msgspec.UnsetType = msgspec.UNSET
    ring_bytes: int | msgspec.UnsetType = msgspec.UNSET
    ring_s: float | msgspec.UnsetType = msgspec.UNSET
    blob_bytes: int | msgspec.UnsetType = msgspec.UNSET
    privacy: Privacy | msgspec.UnsetType = msgspec.UNSET

    def __post_init__(self) -> None:
        _check_share("sampling.rate", self.rate)
        _check_share("sampling.low_confidence_rate", self.low_confidence_rate)
        if not 0.05 <= self.window_s <= 86_400:
            raise ManifestError(f"sampling.window_s: expected 0.05 to 86400 seconds, got {self.window_s}")
        for name, least, most in (
            ("grace_s", 0.0, self.window_s),
            ("quota_bytes_per_day", 1024, 2**50),
            ("ring_rows", 0, MAX_RING_ROWS),
            ("ring_bytes", 4096, MAX_RING_BYTES),
            ("ring_s", 1.0, 400 * 86_400.0),
            ("blob_bytes", 1024, 2**40),
        ):
            value = getattr(self, name)
            if value is not msgspec.UNSET and not least <= value <= most:
                raise ManifestError(f"sampling.{name}: expected {least:g} to {most:g}, got {value}")
        self._check_strata()
        self._check_redact()
        self._check_privacy()

    def _check_strata(self) -> None:
        strata = self.strata or ()
        names = {stratum.name for stratum in strata}
        if len(strata) > MAX_STRATA or len(names) != len(strata):
            raise ManifestError(
                f"sampling.strata: expected at most {MAX_STRATA} with names that differ, got {len(strata)}"
            )

    def _check_redact(self) -> None:
        redact = self.redact or {}
        if len(redact) > MAX_REDACTED or any(not 0 < len(name) <= MAX_NAME for name in redact):
            raise ManifestError(f"sampling.redact: expected at most {MAX_REDACTED} names of 1 to {MAX_NAME} characters")

    def _check_privacy(self) -> None:
        """One sample tells more of a row than all the noise in the windows hides."""
        if self.privacy and (self.rate or self.low_confidence_rate or self.first or self.strata or self.ring_rows):
            raise ManifestError(
                "sampling.privacy: expected no samples beside private windows: "
                "rate 0, low_confidence_rate 0, first 0, no strata and no ring"
            )

    @property
    def agent_version(self) -> str:
        """The lowest that understands this, empty where all do."""
        says = any(getattr(self, name) is not msgspec.UNSET for name in _NEWER)
        return NEWER_AGENT if says else ""


_OLD = frozenset({"rate", "low_confidence", "low_confidence_rate", "first", "window_s", "salt"})
_NEWER = tuple(name for name in SamplingPolicy.__struct_fields__ if name not in _OLD)


def _check_share(name: str, share: float) -> None:
    if not 0.0 <= share <= 1.0:
        raise ManifestError(f"{name}: expected a share from 0 to 1, got {share}")


def _check_region(action: Action, region: Region) -> None:
    if action != "blur":
        raise ManifestError(f"sampling.redact: expected no region with {action}")
    top, left, height, width = region
    if min(top, left) < 0 or min(height, width) < 1 or max(region) > 2**20:
        raise ManifestError(f"sampling.redact: expected a region of top, left, height and width, got {list(region)}")
