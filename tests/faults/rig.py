"""One device with its broker and its hub, put back to the same beginning before every cut.

The hub wants a set of two modules in version 2; the device serves version 1, and its outbox holds what it could not
send. `Rig.begin` puts that back, `start` starts a real agent under the fault layer, `ask` is an application on the
device. Broker and hub stay the same over all cuts. Called by `faults.cuts`.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import secrets
import shutil
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import aiomqtt
import msgspec
import numpy as np

from agent.config import AgentConfig, FetchLimits, OutboxLimits, ReportLimits, StatePaths
from agent.report import Status, read_status
from faults.around import STREAMS, Hub, Items, infer, lower_than, outbox_in
from faults.modules import NAMES, label, make
from faults.shim import Fault, environment, operations
from firmware_profiles.catalog import built_in
from modules.messages import Get, Sample, encode
from modules.topics import up
from support.agents import enrolled
from support.edge import SERVING, UPDATE, HubSide
from support.hub import FakeHub
from support.links import QUICK
from support.mosquitto import Mosquitto
from support.repository import World
from support.waiting import until, until_async

DEVICE = "cam-17"
OLD, NEW = 1, 2
DEADLINE_S = 40.0
PAUSE_S = 0.1  # of the application between two rounds
LOG_LINES = 25
PASSING = ("-wal", "-shm", ".status.json.new")


class Rig:
    """`broker`, `hub` and the folders of one device; use `rig`."""

    def __init__(self, folder: Path, library: Path, broker: Mosquitto, hub: FakeHub, side: HubSide) -> None:
        self.paths = StatePaths(folder / "state")
        self.hub, self.side = hub, side
        self.journal, self.log, self.switch = folder / "journal", folder / "agent.log", folder / "fault-lasts"
        self.template = folder / "template"
        self._library, self._broker = library, broker
        self._tls = broker.tls(broker.client(DEVICE), DEVICE)
        self._addresses: dict[str, str] = {}
        self._process: asyncio.subprocess.Process | None = None
        self.operations = 0  # of an update, from the agent's start to its end
        self.usual: frozenset[Path] = frozenset()  # files that it leaves
        self.answered: set[int] = set()  # inputs that this life of the agent has answered; each is used once
        self._values = itertools.count(1)

    # ---- the beginning

    async def prepare(self) -> None:
        """A device that has installed version 1 by an update, and then served a while without a hub to send to."""
        for folder in (self.paths.identity, self.paths.roots):
            folder.mkdir(parents=True)
        self.side.world.write_roots(self.paths.roots)
        enrolled(_config(), self.paths, self._broker)
        config = msgspec.structs.replace(
            AgentConfig.load(self.paths), serving=msgspec.structs.replace(SERVING, drain_s=0.5),
            update=msgspec.structs.replace(UPDATE, max_attempts=40, retry_first_s=0.1, retry_ceiling_s=0.3),
        )  # fmt: skip
        self.paths.config.write_text(config.to_toml())
        await self.side.deploy(*(make(name, OLD) for name in NAMES))
        await self.start()
        await self.ended(OLD)
        self._addresses = self.addresses()
        self.hub.acking = False
        for _ in range(15):
            await self.ask_all()
        await until(lambda: len(self.waiting()) > 20, "an outbox that is not empty", DEADLINE_S)
        await self.stop()
        self.hub.acking = True
        shutil.copytree(self.paths.root, self.template, symlinks=True, ignore=_sockets)
        await self.side.deploy(*(make(name, NEW) for name in NAMES), deployment="rollout-2")
        await self._rehearse()

    async def _rehearse(self) -> None:
        """The update that is to be cut, uncut: how many operations it makes, and which files it leaves."""
        await self.begin()
        await self.start(Fault())
        await self.ended(NEW)
        await self.kill()
        self.operations = max(one.number for one in operations(self.journal))
        self.usual = self.files()

    async def begin(self) -> None:
        """As it was before the update; the hub has heard nothing of the device since."""
        await self.forget()
        self.put(self.template)
        self.hub.taken.clear()
        self.hub.reports.clear()
        self.hub.batches.clear()
        self.hub.asked.clear()
        self.journal.unlink(missing_ok=True)
        self.log.write_text("")

    def put(self, folder: Path) -> None:
        """The device's disk is a copy of `folder` from now on."""
        self.wipe()
        shutil.copytree(folder, self.paths.root, symlinks=True, ignore=_sockets)

    def wipe(self) -> None:
        _remove(self.paths.root)

    async def forget(self) -> None:
        """The broker drops the device's session, and all that the agent has sent has reached the hub."""
        mark = secrets.token_hex(8)
        async with aiomqtt.Client(
            "localhost", self._broker.port, identifier=DEVICE, protocol=aiomqtt.ProtocolVersion.V5,
            tls_context=self._tls, timeout=5, clean_start=True,
        ) as client:  # fmt: skip
            await client.publish(up(DEVICE, "get"), encode(Get("blob", mark, 0, 1)), qos=1)
            await until(
                lambda: any(get.name == mark for get in self.hub.asked), "the hub to have heard all", DEADLINE_S
            )

    # ---- the agent

    async def start(self, fault: Fault | None = None, crash_at: str = "") -> None:
        """Under the fault layer, if only to be journalled; without one as on any device."""
        self.answered.clear()
        environ = {**os.environ, "MOORING_CRASH_AT": crash_at}
        if fault is not None:
            environ |= environment(self._library, self.paths.root, self.journal, fault)
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "agent.cli", "run", "--state", str(self.paths.root),
                stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log, env=environ,
            )  # fmt: skip

    @property
    def exit_code(self) -> int | None:
        return self._process.returncode if self._process else None

    async def exited(self, deadline_s: float = DEADLINE_S) -> int:
        assert self._process is not None
        async with asyncio.timeout(deadline_s):
            return await self._process.wait()

    async def stop(self) -> int:
        assert self._process is not None
        with suppress(ProcessLookupError):
            self._process.terminate()
        return await self.exited()

    async def kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(signal.SIGKILL)
            await self._process.wait()

    def tail(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-LOG_LINES:])

    # ---- what it says and does

    def status(self) -> Status | None:
        """What the running agent has last written."""
        try:
            status = read_status(self.paths.status)
        except msgspec.DecodeError:
            return None
        return status if status and self._process and status.pid == self._process.pid else None

    def addresses(self) -> dict[str, str]:
        status = self.status()
        serving = {m.name: m.endpoint for m in status.report.modules if m.state == "serving"} if status else {}
        return {name: address for name, address in serving.items() if address}

    def served(self) -> dict[str, int]:
        """Versions that the agent says it serves."""
        status = self.status()
        return {m.name: m.version for m in status.report.modules if m.state == "serving"} if status else {}

    def at_rest(self, version: int) -> bool:
        """The update has ended, and the whole set serves in this version."""
        status = self.status()
        idle = status is not None and status.report.current.state == "idle"
        return idle and self.served() == dict.fromkeys(NAMES, version)

    async def ended(self, version: int) -> None:
        await until(lambda: self.at_rest(version) or self.exit_code is not None, f"version {version}", DEADLINE_S)
        if self.exit_code is not None:
            raise RuntimeError(f"the agent ended with {self.exit_code}")

    async def ask(self, name: str) -> int:
        """A real inference; the version whose answer it is, 0 for none. Raises ValueError for a wrong one."""
        address = self._addresses.get(name) or self.addresses().get(name, "")
        value = next(self._values)
        try:
            async with asyncio.timeout(5):
                answer = await infer(address, name, value)
        except (OSError, TimeoutError, asyncio.IncompleteReadError, ValueError):
            return 0
        for version in (OLD, NEW):
            if answer == label(version, value):
                self.answered.add(value)
                return version
        raise ValueError(f"module {name} answered {answer}")

    async def ask_all(self) -> dict[str, int]:
        versions = await asyncio.gather(*(self.ask(name) for name in NAMES))
        return dict(zip(NAMES, versions, strict=True))

    async def serves(self) -> None:
        """Every module answers."""

        async def answered() -> bool:
            return all((await self.ask_all()).values())

        await until_async(answered, "every module to answer", DEADLINE_S)

    def waiting(self) -> Items:
        """Samples and windows that the outbox on the disk holds."""
        return outbox_in(self.paths.root)

    def files(self) -> frozenset[Path]:
        """Every file and link of the device, but those that come and go while an agent runs."""
        root = self.paths.root
        paths = (path for path in root.rglob("*") if path.is_symlink() or path.is_file())
        return frozenset(path.relative_to(root) for path in paths if not path.name.endswith(PASSING))

    def forgotten(self) -> list[str]:
        """Versions of metadata that had been verified before the update and are not known any more."""
        return lower_than(self.template, self.paths.root)

    def arrived(self) -> list[bytes]:
        """Samples and windows that the hub has taken, over all epochs."""
        return [item for stream in STREAMS for item in self.hub.items(stream)]

    def seen(self) -> list[int]:
        """The inputs of the samples that the hub has taken."""
        samples = (msgspec.msgpack.decode(item, type=Sample) for item in self.hub.items("sample"))
        return [int(np.frombuffer(sample.inputs[0].data, np.float32)[0]) for sample in samples]


@asynccontextmanager
async def rig(folder: Path, library: Path) -> AsyncIterator[Rig]:
    """Broker, hub and device, ready for the first `begin`."""
    (folder / "broker").mkdir(parents=True)
    broker = Mosquitto(folder / "broker")
    await broker.start()
    world = World(DEVICE)
    try:
        async with Hub(broker, world.files) as hub:
            made = Rig(folder, library, broker, hub, HubSide(world, hub))
            try:
                await made.prepare()
                yield made
            finally:
                await made.kill()
    finally:
        await broker.kill()


def _config() -> AgentConfig:
    return AgentConfig(
        device=DEVICE,
        hub="https://localhost:1",
        mqtt_host="localhost",
        mqtt_port=1,
        profile=built_in()["generic-x86_64"],
        link=QUICK,
        fetch=FetchLimits(disk_margin_bytes=0, stall_s=20.0, chunk_timeout_s=3.0),
        outbox=OutboxLimits(commit_every_s=0.05, lazy_commit_s=0.05, forget_s=0.05, ack_timeout_s=1.0),
        report=ReportLimits(debounce_s=0.02),
    )


def _sockets(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if Path(folder, name).is_socket()]


def _remove(folder: Path) -> None:
    for root, folders, _ in os.walk(folder):
        for name in (".", *folders):
            Path(root, name).chmod(0o755)
    shutil.rmtree(folder, ignore_errors=True)
