"""Entries of a device's outbox, parsed and checked: what may be counted and stored, and what is refused and why. Pure.

A refused entry is told and skipped; it must never hold up the stream behind it. Used by `ingest`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from cloud_hub.monitoring.merging import Stack, stack
from cloud_hub.monitoring.references import Watched
from cloud_hub.store.bulk import in_slices
from modules.commands import MAX_COMMAND_ID
from modules.errors import ModuleError
from modules.messages import AgentEvent, Sample, decode_event, decode_sample
from modules.pieces import PIECE_BYTES, BlobPiece, decode_piece
from modules.windows import Window, decode_window

MAX_WINDOW_BYTES: Final = 900_000
MAX_SAMPLE_BYTES: Final = 512 * 1024
MAX_EVENT_BYTES: Final = 16 * 1024
MAX_PIECE_BYTES: Final = PIECE_BYTES + 1024
MAX_WITHHELD: Final = 256  # tensors of one sample
MAX_CELLS_AT_ONCE: Final = 2_000_000  # that are in memory as numbers together
MAX_AHEAD_S: Final = 86_400.0
MAX_WINDOW_AHEAD_S: Final = 3600.0  # a look that has not begun would be the newest of its fleet until it has
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
    """A window and its row in a stack of such."""

    window: Window
    body: bytes
    stack: Stack
    row: int


@dataclass(frozen=True)
class KeptSample:
    sample: Sample
    body: bytes


Parsed = CountedWindow | KeptSample | AgentEvent | BlobPiece | Problem
Known = Mapping[str, Watched | None]
Sent = tuple[Window, bytes]
_Item = TypeVar("_Item")


def peek_window(body: bytes) -> Window | Problem:
    """The window, before it is held against its module."""
    return _decoded(body, MAX_WINDOW_BYTES, decode_window)


def peek_sample(body: bytes) -> Sample | Problem:
    return _decoded(body, MAX_SAMPLE_BYTES, decode_sample)


def read_piece(body: bytes) -> BlobPiece | Problem:
    return _decoded(body, MAX_PIECE_BYTES, decode_piece)


def read_event(body: bytes) -> AgentEvent | Problem:
    event = _decoded(body, MAX_EVENT_BYTES, decode_event)
    if isinstance(event, AgentEvent) and not math.isfinite(event.at):
        return Problem("malformed", "event: expected a time")
    return event


def read_windows(items: Sequence[Sent], known: Known, now: float) -> list[CountedWindow | Problem]:
    """Hold windows, with their bytes, against their modules and the hub's clock; all of one module at once."""
    found: dict[int, CountedWindow | Problem] = {}
    fitting: dict[Watched, list[int]] = {}
    for place, (window, _) in enumerate(items):
        watched = known.get(window.manifest_sha256)
        if (problem := _problem(window, watched, now)) is not None:
            found[place] = problem
        elif watched is not None:
            fitting.setdefault(watched, []).append(place)
    for watched, places in fitting.items():
        for some in in_slices(places, max(1, MAX_CELLS_AT_ONCE // max(1, watched.layout.cells))):
            found |= _counted(items, some, watched)
    return [found[place] for place in range(len(items))]


def read_sample(sample: Sample, body: bytes, known: Known, now: float) -> KeptSample | Problem:
    watched = known.get(sample.manifest_sha256)
    if watched is None:
        return Problem("unknown-module", f"sample of {sample.module[:80]}: its manifest is not of this hub")
    fits = (
        sample.module == watched.module
        and 0 < len(sample.prediction_id) <= MAX_ID
        and len(sample.stratum) <= MAX_NAME
        and "\0" not in sample.prediction_id + sample.stratum  # which PostgreSQL does not take
        and 0.0 < sample.probability <= 1.0
        and len(sample.request) <= MAX_COMMAND_ID
        and "\0" not in sample.request
        and len(sample.withheld) <= MAX_WITHHELD
    )
    if not fits:
        text = f"sample of {watched.module}: expected its module, an id, a stratum and a probability within limits"
        return Problem("malformed", text, watched.manifest_sha256, watched.module)
    if not math.isfinite(sample.at) or sample.at > now + MAX_AHEAD_S:
        text = f"sample of {watched.module}: expected a time up to now, got {sample.at}"
        return Problem("clock", text, watched.manifest_sha256, watched.module)
    return KeptSample(sample, body)


def manifests_of(items: Iterable[Window | Sample | Problem]) -> set[str]:
    """The manifests that must be looked up before `read_windows` or `read_sample`."""
    return {item.manifest_sha256 for item in items if not isinstance(item, Problem)}


def _decoded(body: bytes, limit: int, decode: Callable[[bytes], _Item]) -> _Item | Problem:
    if len(body) > limit:
        return Problem("too-large", f"expected at most {limit} bytes, got {len(body)}")
    try:
        return decode(body)
    except ModuleError as error:
        return Problem("malformed", str(error))


def _counted(items: Sequence[Sent], places: Sequence[int], watched: Watched) -> dict[int, CountedWindow | Problem]:
    stacked, fitting, refused = stack([items[place][0] for place in places], watched.layout)
    found: dict[int, CountedWindow | Problem] = {}
    for row, place in enumerate(fitting):
        found[places[place]] = CountedWindow(*items[places[place]], stacked, row)
    for place, why in refused.items():
        found[places[place]] = Problem("counts", f"window: {why}", watched.manifest_sha256, watched.module)
    return found


def _problem(window: Window, watched: Watched | None, now: float) -> Problem | None:
    if watched is None:
        return Problem("unknown-module", f"window of {window.module[:80]}: its manifest is not of this hub")
    if window.module != watched.module:
        text = f"window: expected module {watched.module}, got {window.module[:80]}"
        return Problem("module", text, watched.manifest_sha256, watched.module)
    if window.reference_sha256 != watched.reference_sha256:
        text = (
            f"window of {watched.module}: expected counts for reference {watched.reference_sha256[:12]}, "
            f"got {window.reference_sha256[:12]}"
        )
        return Problem("reference", text, watched.manifest_sha256, watched.module)
    if len(window.id) > MAX_ID:
        text = f"window of {watched.module}: expected an id of at most {MAX_ID} characters"
        return Problem("malformed", text, watched.manifest_sha256, watched.module)
    return _time_problem(window, watched, now)


def _time_problem(window: Window, watched: Watched, now: float) -> Problem | None:
    start, end = window.start, window.end
    if not (math.isfinite(start) and math.isfinite(end) and start <= end <= start + MAX_LENGTH_S):
        text = f"window: expected an end up to 2 days after its start, got {start} to {end}"
    elif not now - MAX_BEHIND_S <= end <= now + MAX_WINDOW_AHEAD_S:
        text = f"window: expected an end near the hub's time, got one {(end - now) / 86_400:+.1f} days from it"
    else:
        return None
    return Problem("clock", text, watched.manifest_sha256, watched.module)
