"""A hub with one module of large files, assigned to one enrolled device, set up by commands and then stopped.

For benchmarks/transfer.py, whose ends then run on the two folders.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cloud_hub.building.request import BuildRequest
from cloud_hub.claims import NewToken
from cloud_hub.config import HubPaths
from cloud_hub.operator.client import HubClient
from cloud_hub.operator.context import HubContext
from cloud_hub.operator.demo.fleet import AgentProcess, HubProcess, local_profile
from cloud_hub.registry import NewModel
from cloud_hub.rollouts.new import NewRollout
from modules.manifest import decode_manifest

DEVICE = "bench-1"
MODULE = "bench"


@dataclass(frozen=True)
class Prepared:
    """`files` are the digests by path of what the device may fetch."""

    hub: Path
    state: Path
    manifest: Path
    server_ca: Path
    files: Mapping[str, str]


async def prepare(folder: Path, host: str, sizes: Mapping[str, int]) -> Prepared:
    """Files of random bytes, so that nothing on the way can make them smaller."""
    hub = HubProcess(folder / "hub")
    await hub.init("--host", host)
    await hub.start()
    try:
        async with HubClient(HubContext.load(hub.context)) as client:
            agent = AgentProcess(DEVICE, folder)
            token = await client.create_token(NewToken(device=DEVICE))
            await agent.enrol(client.context.url, token, local_profile())
            await _release(folder, client, sizes)
            await client.create_rollout(NewRollout(MODULE, 1, f"id={DEVICE}", ("rest",), start=True))
            manifest = folder / "manifest"
            manifest.write_bytes(await client.manifest(MODULE, 1, local_profile()))
    finally:
        await hub.service.stop()
    entries = decode_manifest(manifest.read_bytes()).files
    server_ca = HubPaths(hub.folder).server_ca_crt
    return Prepared(hub.folder, agent.state, manifest, server_ca, {entry.path: entry.sha256 for entry in entries})


async def _release(folder: Path, client: HubClient, sizes: Mapping[str, int]) -> None:
    files = {"model.onnx": _model(folder)}
    for number, (name, size) in enumerate(sizes.items()):
        files[name] = folder / name
        files[name].write_bytes(random.Random(number).randbytes(size))
    await client.register(NewModel(MODULE), files)
    reference = await client.upload(folder / "training.npz")
    await client.build(BuildRequest(MODULE, 1, local_profile(), reference=reference.sha256))
    await client.sign(MODULE, 1, local_profile())


def _model(folder: Path) -> Path:
    """A classifier of iris, and what it was trained on in training.npz: a module must have both."""
    from skl2onnx import to_onnx
    from sklearn.datasets import load_iris
    from sklearn.linear_model import LogisticRegression

    features, labels = load_iris(return_X_y=True)
    rows = features.astype(np.float32)
    np.savez(folder / "training.npz", X=rows)
    model = LogisticRegression(max_iter=500).fit(rows, labels)
    converted = to_onnx(model, rows[:1], options={id(model): {"zipmap": False}}, target_opset=17)
    (folder / "model.onnx").write_bytes(converted.SerializeToString())
    return folder / "model.onnx"
