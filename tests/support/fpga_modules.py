"""Modules of an overlay, as the hub builds them, and workers of such modules as the agent starts them."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from collections.abc import Mapping
from urllib.error import HTTPError

import msgspec
import numpy as np

from agent.backends import Array
from agent.config import ServingSettings, StatePaths
from agent.fpga.fabric import Fabric
from agent.installed import Installed
from agent.runtimes.process import ProcessRuntime
from agent.sandbox.host import WorkerProcess
from agent.slots import Slots
from agent.store import AgentStore
from modules.bundle import Chunk, FileEntry, sha256_hex
from modules.manifest import Health, Lineage, Manifest, Runtime, SamplingPolicy, encode_manifest
from modules.overlay import OVERLAY_PATH, Overlay, encode_overlay
from modules.runtime import Provider
from modules.tensors import GoldenCase, GoldenSet, Tensor, encode_golden
from support.built import Built, install
from support.predict import TIMEOUT_S, get

GOLDEN = "golden.msgpack"
EXACT = Health(golden=GOLDEN, rtol=0.0, atol=0.0, load_deadline_s=60.0)
BITSTREAM = b"\xff" * 32 + bytes.fromhex("665599aa") + b"circuit" * 100


def module(
    overlay: Overlay, files: Mapping[str, bytes], golden: bytes, *, version: int = 1, name: str = "digits",
    providers: tuple[str, ...] = (), fallback: bool = False, bitstream: bytes = b"", device_tree: bytes = b"",
) -> Built:  # fmt: skip
    """`files` are those of the overlay's folder; a bitstream and a device tree come beside them."""
    said = msgspec.structs.replace(
        overlay,
        raw_bitstream="overlay.bit.bin" if bitstream else "",
        bitstream="overlay.bit" if bitstream else "",
        hardware="overlay.hwh" if bitstream else "",
        device_tree="overlay.dtbo" if device_tree else "",
    )
    more = {"overlay.bit.bin": bitstream, "overlay.bit": bitstream, "overlay.hwh": b"<hwh/>"} if bitstream else {}
    more |= {"overlay.dtbo": device_tree} if device_tree else {}
    whole = {**files, **more, OVERLAY_PATH: encode_overlay(said), GOLDEN: golden}
    manifest = Manifest(
        name=name,
        version=version,
        profile="generic-x86_64",
        lineage=Lineage(name, version),
        inputs=(overlay.input.spec,),
        outputs=(overlay.output.spec,),
        files=tuple(entry(path, data) for path, data in sorted(whole.items())),
        runtime=Runtime(
            backend="fpga", model=OVERLAY_PATH, providers=tuple(map(Provider, providers)), fallback=fallback
        ),
        health=EXACT,
        sampling=SamplingPolicy(rate=1.0, window_s=3600.0),
    )
    return Built(manifest, encode_manifest(manifest), whole)


def golden_of(overlay: Overlay, given: Array, answered: Array) -> bytes:
    """One case of all rows."""
    tensors = (
        (Tensor(port.name, "FP32", array.shape, array.tobytes()),)
        for port, array in ((overlay.input, given), (overlay.output, answered))
    )
    return encode_golden(GoldenSet((GoldenCase(*tensors),)))


async def asked(address: str, name: str, rows: Array) -> Array:
    """What the endpoint answers to these rows. Raises OSError."""
    tensor = {"name": "X", "shape": list(rows.shape), "datatype": "FP32", "data": rows.ravel().tolist()}
    answer = await get(f"{address}/v2/models/{name}/infer", json.dumps({"inputs": [tensor]}).encode())
    (output,) = answer["outputs"]
    return np.array(output["data"], np.float32).reshape(output["shape"])


async def posted(address: str, name: str, head: object, blob: bytes) -> tuple[int, str]:
    """Status and body of an answer to tensors in bytes."""
    text = json.dumps(head).encode()
    headers = {"Inference-Header-Content-Length": str(len(text))}
    question = urllib.request.Request(f"{address}/v2/models/{name}/infer", text + blob, headers)

    def ask() -> tuple[int, str]:
        try:
            with urllib.request.urlopen(question, timeout=TIMEOUT_S) as response:
                return response.status, response.read().decode()
        except HTTPError as error:
            with error:
                return error.code, error.read().decode()

    return await asyncio.to_thread(ask)


class Device:
    """An agent's runtime on a folder that plays the machine."""

    def __init__(self, paths: StatePaths, store: AgentStore, settings: ServingSettings, fabric: Fabric) -> None:
        self.slots, self.paths = Slots(paths.slots), paths
        self.runtime = ProcessRuntime(paths, settings, store, self.slots, lambda *_: None, fabric=fabric)
        self._workers: list[WorkerProcess] = []

    async def load(self, built: Built) -> WorkerProcess:
        """A worker that has passed its golden inputs. Raises WorkerError."""
        install(self.slots, built, self.paths.staging)
        held = Installed(built.manifest.name, built.manifest.version, built.sha256, 1, "d")
        worker = await self.runtime.load(held)
        self._workers.append(worker)
        return worker

    async def ask(self, worker: WorkerProcess, rows: Array) -> Array:
        """What it answers over its endpoint, which it serves from now on."""
        await self.runtime.serve(worker)
        return await asked(self.runtime.address(worker.name), worker.name, rows)

    async def close(self) -> None:
        await asyncio.gather(*(worker.kill() for worker in self._workers))
        self.runtime.close()


def entry(path: str, data: bytes) -> FileEntry:
    size = 256 * 1024
    cut = [data[i : i + size] for i in range(0, len(data), size)]
    return FileEntry(path, len(data), sha256_hex(data), tuple(Chunk(sha256_hex(c), len(c)) for c in cut))
