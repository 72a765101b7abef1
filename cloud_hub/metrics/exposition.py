"""What was looked up, as metric families: names, words and labels in one place. Called by `room`.

Names by Prometheus' conventions: a prefix, base units, `_total` for what only grows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from cloud_hub.metrics.snapshot import Counts, Snapshot


@dataclass
class Found:
    """Everything that is told beside the meters. `took_s` is how long looking it up took."""

    version: str
    snapshot: Snapshot = field(default_factory=Snapshot)
    ends: Counts = field(default_factory=dict)
    metadata_ends: Counts = field(default_factory=dict)
    blob_bytes: float = 0.0
    took_s: float = 0.0
    connected: bool = False
    sessions: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    delivered: Counter[str] = field(default_factory=Counter)
    taken: Counter[tuple[str, str]] = field(default_factory=Counter)
    recorded: Counter[str] = field(default_factory=Counter)
    signed: Counter[str] = field(default_factory=Counter)


class Told(Collector):
    """Gives `found` as it is at the moment of a scrape."""

    def __init__(self, found: Found) -> None:
        self.found = found

    def collect(self) -> Iterator[Metric]:
        yield from self._looked_up()
        yield from self._counted()

    def describe(self) -> Iterator[Metric]:
        """Nothing: names are unique, and asking for values to find that out would be too early."""
        return iter(())

    def _looked_up(self) -> Iterator[Metric]:
        found, snapshot = self.found, self.found.snapshot
        yield _gauge("build_info", "The version that runs.", {(found.version,): 1.0}, "version")
        yield _gauge("devices", "Devices by how they are seen.", snapshot.devices, "state")
        yield _gauge("streams", "Streams of devices with a mark.", snapshot.streams, "stream")
        yield _gauge("rollouts", "Rollouts by state.", snapshot.rollouts, "state")
        yield _gauge("executions", "Devices in rollouts that are under way.", snapshot.executions, "state")
        yield _gauge(
            "alerts", "Alerts that are not resolved.", snapshot.alerts, "kind", "severity", "module", "state"
        )  # fmt: skip
        yield _gauge("webhooks", "Webhooks by state.", snapshot.webhooks, "state")
        yield _gauge("webhook_deliveries", "Deliveries that are kept, by state.", snapshot.deliveries, "state")
        yield _gauge("events_behind", "Events that a follower has still to take.", snapshot.behind, "follower")
        yield _counter(
            "module_rows", "Predictions counted in windows.", snapshot.module_rows, "module", "version", "profile"
        )
        ends = "When signed metadata ends."
        yield _gauge("metadata_expires_timestamp_seconds", ends, found.metadata_ends, "repository", "role")
        yield _gauge("certificate_expires_timestamp_seconds", "When a certificate or list ends.", found.ends, "file")
        yield _gauge("database_bytes", "Size of the database.", {(): snapshot.database_bytes})
        yield _gauge("blob_bytes", "Size of all stored files.", {(): found.blob_bytes})
        yield _gauge("snapshot_seconds", "How long looking these numbers up took.", {(): found.took_s})

    def _counted(self) -> Iterator[Metric]:
        found = self.found
        yield _gauge("broker_connected", "Whether the hub is connected to its broker.", {(): float(found.connected)})
        yield _counter("broker_sessions", "Connections to the broker.", {(): float(found.sessions)})
        yield _counter("messages_dropped", "Messages of devices that were dropped.", _one(found.dropped), "reason")
        yield _counter("webhook_attempts", "Attempts to deliver, by outcome.", _one(found.delivered), "outcome")
        taken: Counts = {key: float(count) for key, count in found.taken.items()}
        yield _counter("sink_events", "Events to log and broker, by outcome.", taken, "sink", "outcome")
        yield _counter("events", "Events recorded.", _one(found.recorded), "kind")
        yield _counter("signatures", "Signatures made, by key.", _one(found.signed), "key")


def _gauge(name: str, words: str, values: Counts, *labels: str) -> Metric:
    family = GaugeMetricFamily(f"mooring_hub_{name}", words, labels=labels)
    for key, value in sorted(values.items()):
        family.add_metric(key, value)
    return family


def _counter(name: str, words: str, values: Counts, *labels: str) -> Metric:
    family = CounterMetricFamily(f"mooring_hub_{name}", words, labels=labels)
    for key, value in sorted(values.items()):
        family.add_metric(key, value)
    return family


def _one(counts: Counter[str]) -> Counts:
    return {(name,): float(count) for name, count in counts.items()}
