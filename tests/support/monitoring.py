"""A module under watch, and devices that count like real ones: rows drawn, counted into the reference's cells, sent."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from sqlalchemy import insert

from cloud_hub.blobs import Blobs
from cloud_hub.clock import Clock
from cloud_hub.events import Events
from cloud_hub.monitoring.alerts import Alerts
from cloud_hub.monitoring.ingest import Ingest
from cloud_hub.monitoring.references import References
from cloud_hub.monitoring.reports import Reports, WatchSettings
from cloud_hub.monitoring.settings import MonitoringSettings
from cloud_hub.reference import count_numeric, profile_training
from cloud_hub.store.engine import Store
from cloud_hub.store.tables import modules
from modules.bundle import Chunk, FileEntry, sha256_hex
from modules.manifest import Lineage, Manifest, encode_manifest
from modules.messages import Ack, Batch, Sample, Stream, encode
from modules.tensors import Tensor, TensorSpec
from modules.windows import (
    LATENCY_BINS,
    Numeric,
    ReferenceProfile,
    Window,
    encode_reference,
    encode_window,
    pack_counts,
)

LOOK_S = 60.0
Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Built:
    """A module as the hub knows it after a build."""

    name: str
    version: int
    manifest_sha256: str
    reference_sha256: str
    profile: ReferenceProfile


async def build_module(store: Store, blobs: Blobs, training: Array, version: int = 1, name: str = "digits") -> Built:
    """Puts manifest and reference where `packaging` puts them."""
    specs = [TensorSpec("x", "FP64", (-1, training.shape[1]))]
    profile = profile_training({"x": training}, {}, specs, [])
    body = encode_reference(profile)
    reference = await blobs.put(body)
    entry = FileEntry("reference.json", len(body), reference, (Chunk(reference, len(body)),))
    manifest = Manifest(
        name, version, "edge", Lineage("m", 1), tuple(specs), (), (entry, model_file()), reference="reference.json"
    )
    sha256 = await blobs.put(encode_manifest(manifest))
    row: Mapping[str, Any] = {
        "name": name, "version": version, "profile": "edge", "publisher": "dev", "manifest_sha256": sha256,
        "manifest_size": 1, "size": 1, "release_counter": None, "created_at": 0.0, "signed_at": None,
    }  # fmt: skip
    async with store.write() as connection:
        await connection.execute(insert(modules).values(row))
    return Built(name, version, sha256, reference, profile)


def model_file() -> FileEntry:
    return FileEntry(path="model.onnx", size=0, sha256=sha256_hex(b""), chunks=())


def make_window(built: Built, rows: Array, end: float, length_s: float = 10.0) -> Window:
    """What a device would count over these rows."""
    counts: list[int] = []
    moments: list[float] = []
    for feature, column in zip(built.profile.inputs, rows.T, strict=True):
        assert isinstance(feature, Numeric)
        counts += count_numeric(column, np.array(feature.edges))
        z = (column[~np.isnan(column)] - feature.mean) / feature.scale
        moments += [float(z.sum()), float((z * z).sum())]
    latency = [0] * LATENCY_BINS
    latency[9] = len(rows)
    return Window(
        module=built.name,
        manifest_sha256=built.manifest_sha256,
        reference_sha256=built.reference_sha256,
        start=end - length_s,
        end=end,
        rows=len(rows),
        errors=0,
        refused=0,
        counts=pack_counts(counts),
        moments=np.array(moments, "<f4").tobytes(),
        latency=pack_counts(latency),
    )


def make_sample(built: Built, prediction_id: str, at: float, values: Array) -> Sample:
    tensor = Tensor("x", "FP64", (1, len(values)), values.astype("<f8").tobytes())
    label = Tensor("label", "BYTES", (1,), b"\x03\x00\x00\x00cat")
    return Sample(built.name, built.manifest_sha256, prediction_id, at, "base", 0.5, (tensor,), (label,))


@dataclass
class Monitored:
    """The rooms of monitoring on a real store, and the outboxes of devices."""

    store: Store
    blobs: Blobs
    events: Events
    clock: Clock
    settings: WatchSettings = field(default_factory=lambda: WatchSettings(LOOK_S, 12.0))
    group_by: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.references = References(self.store, self.blobs)
        self.reports = Reports(self.store, self.references, self.clock, self.settings)
        room = (self.store, self.events, self.references)
        self.alerts = Alerts(*room, self.reports, self.clock, self.settings, self.group_by)
        grouped = MonitoringSettings(self.group_by)
        self.ingest = Ingest(*room, self.clock, self.settings.look_s, self.alerts.touched, grouped)
        self.sent: dict[tuple[str, str], int] = {}

    async def send(self, device: str, *items: Window | Sample | bytes, stream: Stream | None = None) -> Ack | None:
        """The next entries of a device's outbox."""
        kind: Stream = stream or ("sample" if isinstance(items[0], Sample) else "window")
        mark = self.sent.get((device, kind), 0)
        bodies = [_body(item) for item in items]
        self.sent[(device, kind)] = mark + len(bodies)
        entries = tuple(enumerate(bodies, mark + 1))
        return await self.ingest.commit(device, Batch(kind, "life", mark, entries))


def _body(item: Window | Sample | bytes) -> bytes:
    if isinstance(item, bytes):
        return item
    return encode_window(item) if isinstance(item, Window) else encode(item)
