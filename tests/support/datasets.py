"""A module with tensors of every form, and samples of it as a device sends them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from sqlalchemy import insert

from cloud_hub.blobs import Blobs
from cloud_hub.labels.book import Value
from cloud_hub.probe_data import to_tensor
from cloud_hub.store.engine import Store
from cloud_hub.store.tables import labels, modules
from cloud_hub.store.tables import samples as sample_rows
from modules.bundle import Chunk, FileEntry, sha256_hex
from modules.manifest import Lineage, Manifest, encode_manifest
from modules.messages import Sample, encode
from modules.tensors import TensorSpec
from modules.windows import ReferenceProfile, encode_reference

INPUTS = (
    TensorSpec("x", "FP32", (-1, 3), ("temperature", "humidity", "light")),
    TensorSpec("count", "UINT8", (-1, 1)),
    TensorSpec("image", "UINT8", (-1, 2, 2)),
    TensorSpec("signal", "FP16", (-1, -1)),
    TensorSpec("note", "BYTES", (-1, 1)),
)
OUTPUTS = (TensorSpec("label", "BYTES", (-1,)), TensorSpec("scores", "FP32", (-1, 2), ("cat", "dog")))


@dataclass(frozen=True)
class Made:
    name: str
    version: int
    manifest_sha256: str


async def make_module(
    store: Store,
    blobs: Blobs,
    version: int = 1,
    name: str = "pets",
    inputs: tuple[TensorSpec, ...] = INPUTS,
    outputs: tuple[TensorSpec, ...] = OUTPUTS,
    profile: ReferenceProfile | None = None,
) -> Made:
    """Puts a manifest where `packaging` puts it; `profile` is the reference profile, if it has one."""
    files = [FileEntry(path="model.onnx", size=0, sha256=sha256_hex(b""), chunks=())]
    if profile is not None:
        body = encode_reference(profile)
        digest = await blobs.put(body)
        files.append(FileEntry("reference.json", len(body), digest, (Chunk(digest, len(body)),)))
    reference = "" if profile is None else "reference.json"
    manifest = Manifest(
        name, version, "edge", Lineage(name, version), inputs, outputs, tuple(files), reference=reference
    )
    sha256 = await blobs.put(encode_manifest(manifest))
    row: Mapping[str, Any] = {
        "name": name, "version": version, "profile": "edge", "publisher": "dev", "manifest_sha256": sha256,
        "manifest_size": 1, "size": 1, "release_counter": None, "created_at": 0.0, "signed_at": None,
    }  # fmt: skip
    async with store.write() as connection:
        await connection.execute(insert(modules).values(row))
    return Made(name, version, sha256)


def make_sample(
    made: Made, number: int, at: float, stratum: str = "base", probability: float = 0.25, **more: Any
) -> Sample:
    """The number is in every tensor."""
    inputs: dict[str, Any] = {
        "x": np.array([[number, np.nan, -number]], np.float32),
        "count": np.array([[number % 256]], np.uint8),
        "image": np.arange(4, dtype=np.uint8).reshape(1, 2, 2),
        "signal": np.full((1, 1 + number % 3), number, np.float16),
        "note": np.array([[f"n{number}"]], object),
    }
    outputs: dict[str, Any] = {"label": np.array(["cat"], object), "scores": np.array([[0.75, 0.25]], np.float32)}
    given = {
        "inputs": tuple(to_tensor(name, array) for name, array in inputs.items()),
        "outputs": tuple(to_tensor(name, array) for name, array in outputs.items()),
    } | more
    return Sample(made.name, made.manifest_sha256, f"p-{number}", at, stratum, probability, **given)


async def keep(store: Store, device: str, *found: Sample) -> None:
    """As `ingest` keeps them."""
    rows = [
        {
            "device": device, "module": one.module, "manifest_sha256": one.manifest_sha256, "at": one.at,
            "prediction_id": one.prediction_id, "received_at": one.at + 1, "stratum": one.stratum,
            "probability": one.probability, "body": encode(one),
        }
        for one in found
    ]  # fmt: skip
    async with store.write() as connection:
        await connection.execute(insert(sample_rows), rows)


async def add_label(
    store: Store,
    prediction_id: str,
    value: Value,
    at: float = 5000.0,
    device: str = "",
    output: str = "",
    weight: float = 1.0,
    state: str = "joined",
) -> None:
    """As `labels.desk` keeps one that counts."""
    row: Mapping[str, Any] = {
        "prediction_id": prediction_id, "device": device, "module": "", "output": output, "value": value,
        "weight": weight, "at": at, "received_at": at, "author": "test", "replaced_at": None, "state": state,
        "reason": "",
    }  # fmt: skip
    async with store.write() as connection:
        await connection.execute(insert(labels).values(row))
