"""The worker's metrics in Prometheus' text format: what `/metrics` answers. Pure.

Names and units by Prometheus' conventions: a prefix, seconds, `_total` for counters. Called by `resources`.
Source: prometheus.io, exposition formats and naming.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

from agent.endpoint.counters import Counters
from modules.manifest import Manifest

_FIRST, _LAST = 5, 25  # octaves of microseconds that are told apart: 64 us to 67 s


def metrics(manifest: Manifest, counters: Counters) -> str:
    """Since the worker started."""
    labels = f'module="{manifest.name}",version="{manifest.version}"'
    lines: list[str] = []

    def tell(name: str, kind: str, words: str, values: Iterable[tuple[str, float]]) -> None:
        lines.extend((f"# HELP mooring_{name} {words}", f"# TYPE mooring_{name} {kind}"))
        lines.extend(f"mooring_{name}{suffix} {value!r}" for suffix, value in values)

    by_status = sorted(counters.statuses.items())
    tell(
        "requests_total", "counter", "Requests to predict, by HTTP status.",
        [(f'{{{labels},status="{status}"}}', count) for status, count in by_status],
    )  # fmt: skip
    tell("rows_total", "counter", "Rows predicted.", [(f"{{{labels}}}", counters.rows)])
    tell(
        "odd_times_total", "counter", "Rows whose event time cannot be, counted as they arrived.",
        [(f"{{{labels}}}", counters.odd_times)],
    )  # fmt: skip
    lines += _histogram(
        "request_seconds", "From a request's arrival to its answer.", labels, _bounds_s(),
        counters.latency.octaves(), counters.latency.total_us / 1e6,
    )  # fmt: skip
    lines += _histogram(
        "run_rows", "Rows in a run of the model.", labels, [2.0 ** (i + 1) - 1 for i in range(len(counters.batches))],
        counters.batches, counters.rows,
    )  # fmt: skip
    tell("run_seconds_total", "counter", "Time in runs of the model.", [(f"{{{labels}}}", counters.run_us / 1e6)])
    tell("queue_seconds_total", "counter", "From arrival to the run.", [(f"{{{labels}}}", counters.queue_us / 1e6)])
    tell("requests_waiting", "gauge", "Requests that wait or run in the pool.", [(f"{{{labels}}}", counters.in_flight)])
    samples = (
        ("taken", counters.sampled), ("dropped", counters.dropped_samples), ("thinned", counters.thinned_samples)
    )  # fmt: skip
    tell(
        "samples_total", "counter", "Predictions sampled.",
        [(f'{{{labels},outcome="{outcome}"}}', count) for outcome, count in samples],
    )  # fmt: skip
    tell("cpu_seconds_total", "counter", "Processor time of the worker.", [(f"{{{labels}}}", time.process_time())])
    # Told apart by their place in the manifest: they have no names.
    seen = [(f'{labels},source="{one.kind}",number="{number}"', one) for number, one in enumerate(counters.sources())]
    tell(
        "source_items_total", "counter", "Items of the module's own sources, by outcome.",
        [
            (f'{{{which},outcome="{outcome}"}}', count)
            for which, one in seen
            for outcome, count in (("taken", one.taken), ("failed", one.failed), ("dropped", one.dropped))
        ],
    )  # fmt: skip
    tell(
        "source_open", "gauge", "Whether a source is there.",
        [(f"{{{which}}}", int(one.state == "open")) for which, one in seen],
    )  # fmt: skip
    return "\n".join(lines) + "\n"


def _bounds_s() -> list[float]:
    return [2.0 ** (octave + 1) / 1e6 for octave in range(_LAST + 1)]


def _histogram(
    name: str, words: str, labels: str, bounds: Sequence[float], counts: Sequence[int], total: float
) -> list[str]:
    """`counts` by the bounds, and what is above the last."""
    lines = [f"# HELP mooring_{name} {words}", f"# TYPE mooring_{name} histogram"]
    below = 0
    for place, (bound, count) in enumerate(zip(bounds, counts, strict=False)):
        below += count
        if place >= _FIRST or name != "request_seconds":
            lines.append(f'mooring_{name}_bucket{{{labels},le="{bound:g}"}} {below}')
    whole = sum(counts)
    lines.append(f'mooring_{name}_bucket{{{labels},le="+Inf"}} {whole}')
    return [*lines, f"mooring_{name}_sum{{{labels}}} {total!r}", f"mooring_{name}_count{{{labels}}} {whole}"]
