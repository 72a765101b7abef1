"""Modules whose answers can be labelled, devices that send samples and windows of them, and a hub that takes labels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sqlalchemy import insert

from cloud_hub.blobs import Blobs
from cloud_hub.labels.report import QualityQuery, QualityReport
from cloud_hub.labels.room import label_room
from cloud_hub.labels.rows import LabelsTaken, NewLabel
from cloud_hub.monitoring.ingest import Ingest
from cloud_hub.reference import count_numeric, profile_training
from cloud_hub.store.engine import Store
from cloud_hub.store.tables import modules
from modules.bundle import Chunk, FileEntry
from modules.manifest import Lineage, Manifest, encode_manifest
from modules.messages import Sample
from modules.sampling import SamplingPolicy
from modules.tensors import NUMPY_CODES, Tensor, TensorSpec
from modules.windows import LATENCY_BINS, Categorical, Numeric, Window, encode_reference, pack_counts
from support.monitoring import Built, Monitored, model_file

Array = np.ndarray[Any, np.dtype[Any]]
CLASSES = ("cat", "dog", "owl")
X = TensorSpec("x", "FP64", (-1, 2))


def scores_of(rng: np.random.Generator, rows: int, sureness: float = 4.0) -> Array:
    """Probabilities of the three classes, as a softmax gives them."""
    logits = rng.normal(size=(rows, len(CLASSES))) * sureness
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(shares / shares.sum(axis=1, keepdims=True), np.float32)


async def build(
    store: Store,
    blobs: Blobs,
    outputs: Mapping[str, Array],
    specs: Sequence[TensorSpec],
    name: str = "digits",
    version: int = 1,
    profile: str = "edge",
    rate: float = 0.5,
    reference: bool = True,
) -> Built:
    """A module with these answers over its training rows, known to the hub as after a build."""
    rows = len(next(iter(outputs.values())))
    training = np.random.default_rng(5).normal(size=(rows, 2))
    made = profile_training({"x": training}, outputs, [X], specs)
    body = encode_reference(made)
    sha256 = await blobs.put(body)
    entry = FileEntry("reference.json", len(body), sha256, (Chunk(sha256, len(body)),))
    files = (entry, model_file()) if reference else (model_file(),)
    manifest = Manifest(
        name, version, profile, Lineage("m", 1), (X,), tuple(specs), files,
        sampling=SamplingPolicy(rate=rate), reference="reference.json" if reference else "",
    )  # fmt: skip
    digest = await blobs.put(encode_manifest(manifest))
    row: Mapping[str, Any] = {
        "name": name, "version": version, "profile": profile, "publisher": "dev", "manifest_sha256": digest,
        "manifest_size": 1, "size": 1, "release_counter": None, "created_at": 0.0, "signed_at": None,
    }  # fmt: skip
    async with store.write() as connection:
        await connection.execute(insert(modules).values(row))
    return Built(name, version, digest, sha256 if reference else "", made)


async def build_classifier(store: Store, blobs: Blobs, **kwargs: Any) -> Built:  # as `build`
    spec = TensorSpec("scores", "FP32", (-1, len(CLASSES)), CLASSES)
    return await build(store, blobs, {"scores": scores_of(np.random.default_rng(7), 2000)}, [spec], **kwargs)


async def build_regressor(store: Store, blobs: Blobs, **kwargs: Any) -> Built:  # as `build`
    """Two numbers: `place[left]` and `place[right]`."""
    spec = TensorSpec("place", "FP32", (-1, 2), ("left", "right"))
    numbers = np.random.default_rng(9).normal(10.0, 3.0, size=(500, 2)).astype(np.float32)
    profile = {"place": numbers}
    return await build(store, blobs, profile, [replace_labels(spec)], **kwargs)


def replace_labels(spec: TensorSpec) -> TensorSpec:
    """Numbers, not scores: a spec whose labels are as many as its elements would say classes."""
    return TensorSpec(spec.name, spec.datatype, spec.shape)


def tensor(name: str, values: Array, datatype: str = "FP32") -> Tensor:
    return Tensor(name, datatype, values.shape, values.astype(NUMPY_CODES[datatype]).tobytes())


def sample(
    built: Built,
    prediction_id: str,
    at: float,
    outputs: Mapping[str, Sequence[float] | Array],
    stratum: str = "base",
    probability: float = 0.5,
) -> Sample:
    tensors = tuple(tensor(name, np.asarray(values, np.float32).reshape(1, -1)) for name, values in outputs.items())
    given = (tensor("x", np.zeros((1, 2)), "FP64"),)
    return Sample(built.name, built.manifest_sha256, prediction_id, at, stratum, probability, given, tensors)


def window(built: Built, scores: Array, end: float) -> Window:
    """What a device counts over these answers; its inputs are all zero."""
    counts: list[int] = []
    moments: list[float] = []
    for feature in (*built.profile.inputs, *built.profile.outputs):
        if isinstance(feature, Categorical):
            counts += [*np.bincount(scores.argmax(axis=1), minlength=len(feature.categories)).tolist(), 0, 0]
            continue
        assert isinstance(feature, Numeric)
        column = scores.max(axis=1).astype(np.float64) if feature.take == "max" else np.zeros(len(scores))
        counts += count_numeric(column, np.array(feature.edges))
        z = (column - feature.mean) / feature.scale
        moments += [float(z.sum()), float((z * z).sum())]
    latency = [0] * LATENCY_BINS
    latency[9] = len(scores)
    return Window(
        module=built.name,
        manifest_sha256=built.manifest_sha256,
        reference_sha256=built.reference_sha256,
        start=end - 10.0,
        end=end,
        rows=len(scores),
        errors=0,
        refused=0,
        counts=pack_counts(counts),
        moments=np.array(moments, "<f4").tobytes(),
        latency=pack_counts(latency),
    )


@dataclass
class Labelled(Monitored):
    """A hub that is sent samples and windows, and takes labels."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.labels = label_room(self.store, self.blobs, self.events, self.alerts, self.clock, self.settings)
        self.ingest = Ingest(
            self.store,
            self.events,
            self.references,
            self.clock,
            self.settings.look_s,
            self.alerts.touched,
            joiner=self.labels.desk,
        )

    async def take(self, *rows: NewLabel, **how: Any) -> LabelsTaken:  # as `Labels.take`
        return await self.labels.desk.take(rows, "alice", **how)

    async def report(self, module: str = "digits", **query: Any) -> QualityReport:  # as `QualityQuery`
        (report,) = await self.labels.quality.reports(QualityQuery(module, **query))
        return report
