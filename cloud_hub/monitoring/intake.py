"""Entries of a device's outbox, parsed and checked: what may be counted and stored, and what is refused and why. Pure.

A refused entry is told and skipped; it must never hold up the stream behind it. Used by `ingest`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, TypeVar

import numpy as np

from cloud_hub.monitoring.looks import Tally, moment_ticks
from cloud_hub.monitoring.references import Watched
from modules.errors import ModuleError
from modules.messages import AgentEvent, Sample, decode_event, decode_sample
from modules.windows import LATENCY_BINS, Window, decode_window, unpack_counts

MAX_WINDOW_BYTES: Final = 900_000
MAX_SAMPLE_BYTES: Final = 512 * 1024
MAX_EVENT_BYTES: Final = 16 * 1024
MAX_ROWS: Final = 2**40  # of one window; keeps sums of many windows far from the end of 64 bits
MAX_AHEAD_S: Final = 86_400.0
MAX_BEHIND_S: Final = 400 * 86_400.0
MAX_LENGTH_S: Final = 2 * 86_400.0
MAX_NAME: Final = 63
MAX_ID: Final = 200


@dataclass(frozen=True)
class Problem:
    """An entry that was refused. `manifest_sha256` is empty where no known module is meant."""

    key: str
    text: str
    manifest_sha256: str = ""
    module: str = ""


@dataclass(frozen=True)
class CountedWindow:
    window: Window
    body: bytes
    tally: Tally


@dataclass(frozen=True)
class KeptSample:
    sample: Sample
    body: bytes


Parsed = CountedWindow | KeptSample | AgentEvent | Problem
Known = Mapping[str, Watched | None]
_Item = TypeVar("_Item")


def peek_window(body: bytes) -> Window | Problem:
    """The window, before it is held against its module."""
    return _decoded(body, MAX_WINDOW_BYTES, decode_window)


def peek_sample(body: bytes) -> Sample | Problem:
    return _decoded(body, MAX_SAMPLE_BYTES, decode_sample)


def read_event(body: bytes) -> AgentEvent | Problem:
    event = _decoded(body, MAX_EVENT_BYTES, decode_event)
    if isinstance(event, AgentEvent) and not math.isfinite(event.at):
        return Problem("malformed", "event: expected a time")
    return event


def read_window(window: Window, body: bytes, known: Known, now: float) -> CountedWindow | Problem:
    """Hold a window against its module and the hub's clock."""
    watched = known.get(window.manifest_sha256)
    if watched is None:
        return Problem("unknown-module", f"window of {window.module[:80]}: its manifest is not of this hub")
    try:
        _check_origin(window, watched)
        _check_times(window, now)
        tally = _tally(window, watched)
    except _RefusedError as error:
        return Problem(error.key, str(error), watched.manifest_sha256, watched.module)
    except ModuleError as error:
        return Problem("counts", str(error), watched.manifest_sha256, watched.module)
    return CountedWindow(window, body, tally)


def read_sample(sample: Sample, body: bytes, known: Known, now: float) -> KeptSample | Problem:
    watched = known.get(sample.manifest_sha256)
    if watched is None:
        return Problem("unknown-module", f"sample of {sample.module[:80]}: its manifest is not of this hub")
    fits = (
        sample.module == watched.module
        and 0 < len(sample.prediction_id) <= MAX_ID
        and len(sample.stratum) <= MAX_NAME
        and 0.0 < sample.probability <= 1.0
    )
    if not fits:
        text = f"sample of {watched.module}: expected its module, an id, a stratum and a probability within limits"
        return Problem("malformed", text, watched.manifest_sha256, watched.module)
    if not math.isfinite(sample.at) or sample.at > now + MAX_AHEAD_S:
        text = f"sample of {watched.module}: expected a time up to now, got {sample.at}"
        return Problem("clock", text, watched.manifest_sha256, watched.module)
    return KeptSample(sample, body)


def manifests_of(items: Iterable[Window | Sample | Problem]) -> set[str]:
    """The manifests that must be looked up before `read_window` or `read_sample`."""
    return {item.manifest_sha256 for item in items if not isinstance(item, Problem)}


class _RefusedError(Exception):
    def __init__(self, key: str, text: str) -> None:
        super().__init__(text)
        self.key = key


def _decoded(body: bytes, limit: int, decode: Callable[[bytes], _Item]) -> _Item | Problem:
    if len(body) > limit:
        return Problem("too-large", f"expected at most {limit} bytes, got {len(body)}")
    try:
        return decode(body)
    except ModuleError as error:
        return Problem("malformed", str(error))


def _check_origin(window: Window, watched: Watched) -> None:
    if window.module != watched.module:
        raise _RefusedError("module", f"window: expected module {watched.module}, got {window.module[:80]}")
    if window.reference_sha256 != watched.reference_sha256:
        raise _RefusedError(
            "reference",
            f"window of {watched.module}: expected counts for reference {watched.reference_sha256[:12]}, "
            f"got {window.reference_sha256[:12]}",
        )


def _check_times(window: Window, now: float) -> None:
    start, end = window.start, window.end
    if not (math.isfinite(start) and math.isfinite(end) and start <= end <= start + MAX_LENGTH_S):
        raise _RefusedError("clock", f"window: expected an end up to 2 days after its start, got {start} to {end}")
    if not now - MAX_BEHIND_S <= end <= now + MAX_AHEAD_S:
        ahead = (end - now) / 86_400
        raise _RefusedError("clock", f"window: expected an end near the hub's time, got one {ahead:+.1f} days from it")


def _tally(window: Window, watched: Watched) -> Tally:
    layout = watched.layout
    for name, number in (("rows", window.rows), ("errors", window.errors), ("refused", window.refused)):
        if not 0 <= number <= MAX_ROWS:
            raise _RefusedError("counts", f"window: expected {name} from 0 to {MAX_ROWS}, got {number}")
    if len(window.moments) != 8 * layout.numeric:
        raise _RefusedError(
            "counts", f"window: expected {8 * layout.numeric} bytes of moments, got {len(window.moments)}"
        )
    counts = np.array(unpack_counts(window.counts, layout.cells), np.uint64)
    latency = np.array(unpack_counts(window.latency, LATENCY_BINS), np.uint64)
    # Floats, because sums of hostile counts do not fit 64 bits; exact as far as it matters here.
    rows = np.add.reduceat(counts.astype(np.float64), layout.starts[:-1]) if layout.cells else np.zeros(1)
    if rows.max() > window.rows or latency.astype(np.float64).sum() > MAX_ROWS:
        raise _RefusedError("counts", f"window: expected at most {window.rows} rows counted per feature, got more")
    moments = moment_ticks(np.frombuffer(window.moments, "<f4"))
    return Tally(
        windows=1,
        rows=window.rows,
        errors=window.errors,
        refused=window.refused,
        counts=counts.astype(np.int64),
        moments=moments,
        latency=latency.astype(np.int64),
    )
