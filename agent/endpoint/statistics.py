"""Triton's statistics extension: what `/v2/models/NAME/stats` answers. Times are cumulative nanoseconds.

`queue` is the time from a request's arrival to its run, parsing included; input and output are views, so that
`compute_input` and `compute_output` are what is left of the whole. Source: Triton's extension_statistics.
"""

from __future__ import annotations

from agent.endpoint.counters import Counters
from modules.manifest import Manifest

_NS_PER_US = 1000


def statistics(manifest: Manifest, counters: Counters) -> dict[str, object]:
    """Of the one model that a worker runs, since it started."""
    done = counters.statuses.get(200, 0)
    rest_us = max(0, counters.latency.total_us - counters.queue_us - counters.run_us)
    return {
        "name": manifest.name,
        "version": str(manifest.version),
        "last_inference": int(counters.last_at * 1000),
        "inference_count": counters.rows,
        "execution_count": counters.runs,
        "inference_stats": {
            "success": _part(done, counters.latency.total_us),
            "fail": _part(counters.requests - done, counters.failed_us),
            "queue": _part(done, counters.queue_us),
            "compute_input": _part(done, 0),
            "compute_infer": _part(done, counters.run_us),
            "compute_output": _part(done, rest_us),
            "cache_hit": _part(0, 0),
            "cache_miss": _part(0, 0),
        },
        "batch_stats": [
            {"batch_size": 1 << size, "compute_infer": _part(count, counters.batch_us[size])}
            for size, count in enumerate(counters.batches)
            if count
        ],
        "memory_usage": [],
    }


def _part(count: int, us: int) -> dict[str, int]:
    return {"count": count, "ns": us * _NS_PER_US}
