"""The device's one FPGA, as the agent sees it: which module's circuit is in it, and who uses that. Kept by
`agent.runtimes.process`.

One FPGA holds one circuit. While a worker runs on it, no other is programmed: it would answer nonsense. So the next
version is loaded once the one before has made room (`displaces`), and another module is refused.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Protocol

import msgspec

from agent.fpga.circuit import Circuit
from agent.fpga.devices import open_devices
from agent.fpga.load import Order, Signed
from agent.fpga.manager import FpgaError, manager_of
from agent.sandbox.environment import worker_environment
from modules.errors import ModuleError
from modules.manifest import Manifest
from modules.overlay import EMULATION, MAX_OVERLAY_BYTES, Overlay, decode_overlay
from modules.runtime import Stage

PROGRAM_DEADLINE_S = 30.0
SPARE_S = 5.0  # for the child to start and to say what went wrong
MAX_WORDS = 500
CHILD = (sys.executable, "-P", "-m", "agent.fpga.load")

_logger = logging.getLogger(__name__)


class User(Protocol):
    """A worker: it uses the circuit until it has exited."""

    name: str
    exited: asyncio.Event


class Fabric:
    """`root` is where /sys, /dev and /lib stand. `emulation` is the device's setting."""

    def __init__(self, emulation: bool = False, root: Path = Path("/"), deadline_s: float = PROGRAM_DEADLINE_S) -> None:
        self._emulation = emulation
        self._root = root
        self._deadline_s = deadline_s
        self._holds = ""  # the digest of the bitstream that is in the FPGA by us
        self._users: list[tuple[str, User]] = []
        self._turn = asyncio.Lock()

    @asynccontextmanager
    async def lend(self, manifest: Manifest, slot: Path) -> AsyncIterator[Circuit]:
        """The circuit for a worker of this module, to be started inside and then told to `used_by`; its devices are
        closed here afterwards, where the worker has inherited them. Without a circuit it says why.

        Never raises for a board that is missing or broken: the worker knows whether an emulation may take its place.
        """
        if stage_of(manifest) is None or manifest.runtime.container is not None:
            yield Circuit()
            return
        async with self._turn:  # until somebody uses it: else another module could be programmed meanwhile
            try:
                found = await self._board(manifest, slot)
            except (FpgaError, ModuleError, OSError) as error:
                found = Circuit(why=str(error))
            try:
                yield msgspec.structs.replace(found, emulation=self._emulation)
            finally:
                found.close()

    def used_by(self, worker: User, circuit: Circuit) -> None:
        """From now on, until the worker has exited."""
        if circuit.programmed:
            self._users = [(digest, user) for digest, user in self._users if not user.exited.is_set()]
            self._users.append((self._holds, worker))

    def displaces(self, manifest: Manifest, slot: Path) -> bool:
        """Whether the module's circuit would take the place of one that its own earlier version runs on now."""
        try:
            stage, overlay = self._wanted(manifest, slot)
            digest = _signed(manifest, slot, stage, overlay.raw_bitstream).sha256
        except (FpgaError, ModuleError, OSError):
            return False
        return any(user.name == manifest.name for user in self._others(digest))

    def _wanted(self, manifest: Manifest, slot: Path) -> tuple[Stage, Overlay]:
        """The stage that wants a board, and its overlay with a bitstream. Raises FpgaError, ModuleError, OSError."""
        stage = stage_of(manifest)
        if stage is None or [provider.name for provider in stage.providers] == [EMULATION]:
            raise FpgaError("the module asks for its emulation")
        if not manager_of(self._root).is_dir():
            raise FpgaError(f"no FPGA on this device: {manager_of(self._root)} is not there")
        if manifest.file(stage.model).size > MAX_OVERLAY_BYTES:
            raise FpgaError(f"{stage.model}: expected at most {MAX_OVERLAY_BYTES} bytes")
        overlay = decode_overlay((slot / stage.model).read_bytes())
        if not overlay.raw_bitstream:
            raise FpgaError("the module brings no bitstream: it was built without the vendor's tools")
        return stage, overlay

    def _others(self, digest: str) -> list[User]:
        """Who runs on another circuit than this."""
        return [user for other, user in self._users if other != digest and not user.exited.is_set()]

    async def _board(self, manifest: Manifest, slot: Path) -> Circuit:
        stage, overlay = self._wanted(manifest, slot)
        await self._program(manifest, overlay, slot, stage)
        try:
            return open_devices(self._root, overlay.stream)
        except FpgaError as error:
            return Circuit(programmed=True, why=str(error))  # PYNQ may have ways of its own

    async def _program(self, manifest: Manifest, overlay: Overlay, slot: Path, stage: Stage) -> None:
        bitstream = _signed(manifest, slot, stage, overlay.raw_bitstream)
        if taken := self._others(bitstream.sha256):
            raise FpgaError(f"the FPGA holds the circuit of {taken[0].name}, which runs; it has room for one")
        if self._holds == bitstream.sha256:
            return
        self._holds = ""
        tree = _signed(manifest, slot, stage, overlay.device_tree) if overlay.device_tree else None
        await self._run(Order(str(self._root), bitstream, tree, self._deadline_s))
        self._holds = bitstream.sha256
        _logger.info("FPGA programmed", extra={"unit": manifest.name, "bitstream": bitstream.sha256})

    async def _run(self, order: Order) -> None:
        child = await asyncio.create_subprocess_exec(
            *CHILD, msgspec.json.encode(order).decode(), str(os.getpid()),
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
            env=worker_environment(os.environ), cwd="/",
        )  # fmt: skip
        try:
            async with asyncio.timeout(self._deadline_s + SPARE_S):
                _, words = await child.communicate()
        except TimeoutError:
            raise FpgaError(
                f"the FPGA was not programmed after {self._deadline_s:g} s; the process was ended"
            ) from None
        finally:
            if child.returncode is None:
                with suppress(ProcessLookupError):
                    child.kill()
                with suppress(TimeoutError):
                    async with asyncio.timeout(SPARE_S):  # one stuck in the kernel stays there
                        await child.wait()
        if child.returncode != 0:
            said = words.decode(errors="replace").strip().splitlines()
            raise FpgaError(said[-1][:MAX_WORDS] if said else f"the child ended with status {child.returncode}")


def stage_of(manifest: Manifest) -> Stage | None:
    """The stage that a circuit computes."""
    return next((stage for stage in manifest.stages if stage.backend == "fpga"), None)


def _signed(manifest: Manifest, slot: Path, stage: Stage, path: str) -> Signed:
    inside = str(Path(stage.model).parent / path)
    return Signed(str(slot / inside), manifest.file(inside).sha256)
