"""What is counted as it happens: requests to the API, and what devices send. In memory, since the start of the process.

Labels are routes, methods, statuses and streams: few, and none of them is chosen by whoever asks. Called by `api.app`
and `monitoring.ingest`.
"""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, disable_created_metrics

OTHER: Final = "other"  # requests for what is not there
METHODS: Final = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"})
_REQUEST_S: Final = (0.005, 0.02, 0.1, 0.5, 2.0, 10.0)
_LAG_S: Final = (10.0, 60.0, 300.0, 900.0, 3600.0, 14_400.0, 86_400.0)


class Meters:
    """One per hub, with a registry of its own."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each counter says little
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._requests = Counter(
            "mooring_hub_http_requests_total",
            "Requests to the API.",
            ("method", "route", "status"),
            registry=self.registry,
        )
        self._seconds = Histogram(
            "mooring_hub_http_request_seconds",
            "From a request's arrival to the end of its answer.",
            ("method", "route"),
            buckets=_REQUEST_S,
            registry=self.registry,
        )
        self._entries = Counter(
            "mooring_hub_entries_total",
            "Windows, samples and events of devices that were committed, by stream and whether they could be used.",
            ("stream", "outcome"),
            registry=self.registry,
        )
        self._bytes = Counter(
            "mooring_hub_entry_bytes_total", "Bytes of committed entries.", ("stream",), registry=self.registry
        )
        self._lag = Histogram(
            "mooring_hub_window_lag_seconds",
            "From a window's end on the device to its commit here.",
            buckets=_LAG_S,
            registry=self.registry,
        )

    def answered(self, method: str, route: str, status: int, seconds: float | None) -> None:
        """`route` is the route's pattern, or OTHER; None for what lasts as long as whoever asked likes."""
        method = method if method in METHODS else OTHER
        self._requests.labels(method, route, str(status)).inc()
        if seconds is not None:
            self._seconds.labels(method, route).observe(seconds)

    def committed(self, stream: str, used: int, refused: int, size: int) -> None:
        """Entries of one batch that were new, and their bytes."""
        self._entries.labels(stream, "used").inc(used)
        self._entries.labels(stream, "refused").inc(refused)
        self._bytes.labels(stream).inc(size)

    def lagged(self, seconds: float) -> None:
        """A window came so long after its end; clocks differ, so that may be less than nothing."""
        self._lag.observe(max(0.0, seconds))
