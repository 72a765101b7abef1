"""A hub with a scikit-learn model on a device, what the device sampled once its world had changed, and the labels."""

from __future__ import annotations

import asyncio
import io
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from skl2onnx import to_onnx
from skl2onnx.common.data_types import FloatTensorType
from sklearn.linear_model import LogisticRegression
from sqlalchemy import insert

from cloud_hub.building.request import BuildRequest
from cloud_hub.config import HubConfig, HubPaths
from cloud_hub.initialise import free_ports, initialise
from cloud_hub.labels.rows import NewLabel
from cloud_hub.probe_data import to_tensor
from cloud_hub.registry import NewModel
from cloud_hub.retraining.plan import Canary, Data, Judging, RetrainPlan, Training, When
from cloud_hub.retraining.records import ENDED, Run, RunState
from cloud_hub.retraining.settings import RetrainingSettings
from cloud_hub.rooms import Rooms
from cloud_hub.service import open_hub
from cloud_hub.store.tables import devices
from modules.messages import Batch, Sample, encode
from support.fleets import certificate

MODULE = "gate"
PROFILE = "generic-x86_64"
DEVICE = "cam-1"
FEATURES = ("left", "right")
EXAMPLE = Path(__file__).parents[2] / "examples" / "retrain" / "train.py"
COPIES = """
import os, shutil
shutil.copy("better.onnx", os.path.join(os.environ["MOORING_OUTPUT"], "model.onnx"))
print("trained on nothing")
"""
Array = np.ndarray[Any, np.dtype[Any]]


def before(inputs: Array) -> Array:
    """What was true when the champion was trained: the first feature decides."""
    return (inputs[:, 0] > 0).astype(np.int64)


def after(inputs: Array) -> Array:
    """What is true now: the second feature decides."""
    return (inputs[:, 1] > 1.0).astype(np.int64)


def draw(rows: int, seed: int, shift: float = 0.0) -> Array:
    return np.random.default_rng(seed).normal(shift, 1.0, (rows, 2)).astype(np.float32)


def as_onnx(model: LogisticRegression) -> bytes:
    types = [("x", FloatTensorType([None, 2]))]
    onnx = to_onnx(model, initial_types=types, options={id(model): {"zipmap": False}}, target_opset=17)
    return bytes(onnx.SerializeToString())


@dataclass
class Loop:
    """The rooms of a hub as `service` builds them; nothing listens."""

    rooms: Rooms
    manifest_sha256: str = ""
    sent: int = 0
    model: Any = None  # scikit-learn ships no types

    async def release(self) -> None:
        """Version 1, trained on the world as it was, signed, and on the device."""
        inputs = draw(400, 1)
        sample = io.BytesIO()
        np.savez(sample, x=inputs)
        self.model = LogisticRegression().fit(inputs, before(inputs))
        body = as_onnx(self.model)
        files = {"model.onnx": (await self.rooms.blobs.put(body), len(body))}
        await self.rooms.registry.register(NewModel(MODULE), files, "alice")
        reference = await self.rooms.blobs.put(sample.getvalue())
        labels: dict[str, tuple[str, ...]] = {"x": FEATURES, "probabilities": ("0", "1")}
        request = BuildRequest(MODULE, 1, PROFILE, reference=reference, labels=labels)
        built = await self.rooms.packaging.build(request, "alice")
        await self.rooms.image.sign_module(MODULE, 1, PROFILE, "alice")
        self.manifest_sha256 = built.manifest_sha256
        row = {"id": DEVICE, "profile": PROFILE, "tags": {"site": "lab"}, "certificate": certificate(DEVICE)}
        async with self.rooms.store.write() as connection:
            values = insert(devices).values(**row, created_at=0.0, director_version=1, report_counter=0)
            await connection.execute(values)

    async def sample(self, rows: int, seed: int = 2, labelled: bool = True) -> None:
        """What the device sends of its changed world, and the labels that come for it."""
        inputs = draw(rows, seed, shift=1.0)
        truth, answers = after(inputs), self.model.predict_proba(inputs).astype(np.float32)
        now = self.rooms.clock()
        names = [f"p-{seed}-{row}" for row in range(rows)]
        bodies = [
            encode(
                Sample(
                    MODULE, self.manifest_sha256, name, now - 60 + row / 100, "base", 0.5,
                    (to_tensor("x", inputs[row : row + 1]),), (to_tensor("probabilities", answers[row : row + 1]),),
                )
            )
            for row, name in enumerate(names)
        ]  # fmt: skip
        for start in range(0, rows, 100):
            part = bodies[start : start + 100]
            await self.rooms.ingest.commit(
                DEVICE, Batch("sample", "life", self.sent, tuple(enumerate(part, self.sent + 1)))
            )
            self.sent += len(part)
        if labelled:
            labels = [NewLabel(name, int(value)) for name, value in zip(names, truth, strict=True)]
            taken = await self.rooms.labels.desk.take(labels, "expert")
            assert not taken.refused, taken.refused[:3]

    async def plan(self, script: str = "", real: bool = False, **more: Any) -> RetrainPlan:
        """Its command copies a better model, which is quick; does what `script` says; or is the example, if `real`.

        The canary is on the only device.
        """
        inputs = draw(400, 99, shift=1.0)
        better = as_onnx(LogisticRegression().fit(inputs, after(inputs)))
        code = EXAMPLE.read_bytes() if real else (script or COPIES).encode()
        bodies = {"train.py": code, "better.onnx": better}
        files = {path: await self.rooms.blobs.put(body) for path, body in bodies.items()}
        plan = RetrainPlan(
            "nightly",
            MODULE,
            Training((sys.executable, "train.py"), files, deadline_s=60.0),
            Judging(("accuracy > champion", "recall per class >= 0.6")),
            when=When(alerts=("drift",), settle_s=0.0, pause_s=0.0),
            data=Data(days=1.0),
            rollout=Canary("site=lab", ("rest",)),
        )
        plan = msgspec.structs.replace(plan, **more)
        await self.rooms.retraining.triggers.put(plan, "alice")
        return plan

    async def run(self) -> Run:
        """The newest."""
        return (await self.rooms.retraining.history())[0]

    async def until(self, *states: RunState, deadline_s: float = 60.0) -> Run:
        """The newest run, once it is in one of the states or has ended."""
        async with asyncio.timeout(deadline_s):
            while True:
                history = await self.rooms.retraining.history()
                if (history and history[0].state in (states or ENDED)) or (history and history[0].state in ENDED):
                    return history[0]
                await asyncio.sleep(0.05)


@asynccontextmanager
async def loop(folder: Path, commands: bool = True, silence_s: float = 120.0) -> AsyncIterator[Loop]:
    """With the champion on its device."""
    paths = await prepared(folder, commands, silence_s)
    async with open_hub(paths) as rooms:
        world = Loop(rooms)
        await world.release()
        yield world


async def prepared(folder: Path, commands: bool = True, silence_s: float = 120.0) -> HubPaths:
    api, mqtt = free_ports(2)
    settings = RetrainingSettings(commands=commands, silence_s=silence_s)
    return await initialise(folder, HubConfig(dev=True, api_port=api, mqtt_port=mqtt, retraining=settings))


@asynccontextmanager
async def working(rooms: Rooms) -> AsyncIterator[None]:
    """Retraining goes on inside, as in `service`."""
    task = asyncio.create_task(rooms.retraining.work(tick_s=0.05), name="retraining")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task], timeout=20)
