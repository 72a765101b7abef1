"""Workers that end, are killed and hand over while applications ask: no request is lost, and nothing is left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from agent.config import ServingSettings, StatePaths
from agent.installed import Installed, ModuleSet
from agent.runtimes.keeper import Keeper
from agent.runtimes.process import ProcessRuntime
from agent.sandbox.protocol import Drain, Drained
from agent.slots import Slots
from agent.store import AgentStore
from client.conftest import make_echo
from modules.manifest import Manifest
from mooring_client import AsyncClient, Client, Gone
from mooring_client.client import Transport
from mooring_client.shared import SharedLink
from mooring_client.wire import head
from support.built import Built, build, install, rows
from support.waiting import until
from worker.driver import WorkerDriver

QUICK = ServingSettings(
    confine=False, drain_s=10.0, ping_every_s=0.2, ping_timeout_s=10.0, restart_first_s=0.01, restart_ceiling_s=0.05
)


class Asking:
    """Threads that ask without a pause until the block ends; each has a client of its own."""

    def __init__(self, path: Path, transport: Transport, count: int = 2) -> None:
        self.versions: set[str] = set()
        self.answers = 0
        self.failed: list[Exception] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(path, transport)) for _ in range(count)]

    def __enter__(self) -> Asking:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)

    def _ask(self, path: Path, transport: Transport) -> None:
        asked = rows(1)
        try:
            with Client(path, transport=transport, timeout_s=30) as client:
                while not self._stop.is_set():
                    said = client.predict(X=asked)
                    assert len(said) == 2
                    self.versions.add(client.version)
                    self.answers += 1
        except Exception as error:  # of any kind: none may come
            self.failed.append(error)


class Bench:
    """A keeper and what it needs."""

    def __init__(self, paths: StatePaths, store: AgentStore) -> None:
        self._paths = paths
        self._slots = Slots(paths.slots)
        self.runtime = ProcessRuntime(paths, QUICK, store, self._slots, lambda *_: None)
        self.keeper = Keeper(self.runtime, QUICK, lambda: None)
        self.path = paths.endpoints / "iris.sock"

    def set(self, module: Built) -> ModuleSet:
        install(self._slots, module, self._paths.staging)
        held = Installed(module.manifest.name, module.manifest.version, module.sha256, 1, "d", verified=True)
        return ModuleSet(1, 1, (held,))

    async def serving(self, module: Built) -> None:
        await self.keeper.start(self.set(module))
        await until(lambda: self.keeper.reports()[0].state == "serving", "iris to serve", 40)

    async def switch(self, module: Built) -> None:
        target = self.set(module)
        await self.keeper.switch(target, {"iris": await self.keeper.spare(target.modules[0])})

    def pid(self) -> int:
        unit = self.keeper.unit("iris")
        assert unit is not None
        assert unit._worker is not None
        return unit._worker.pid


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    paths = StatePaths(tmp_path / "state")
    paths.root.mkdir(mode=0o711)
    async with AgentStore(paths.database) as store:
        one = Bench(paths, store)
        yield one
        await one.keeper.close()


@pytest.mark.parametrize("transport", ["shared-memory", "http"])
async def test_an_update_is_invisible_to_applications(bench: Bench, transport: Transport) -> None:
    await bench.serving(build(version=1))
    with Asking(bench.path, transport) as asking:
        await until(lambda: asking.versions == {"1"} or bool(asking.failed), "the old version to answer")
        await bench.switch(build(version=2))
        await until(lambda: "2" in asking.versions or bool(asking.failed), "the new version to answer")
    assert asking.failed == []
    assert asking.versions == {"1", "2"}


async def test_a_killed_worker_is_waited_for_and_asked_again(bench: Bench) -> None:
    await bench.serving(build(version=1))
    with Asking(bench.path, "shared-memory", count=1) as asking:
        await until(lambda: asking.answers > 10 or bool(asking.failed), "the first answers")
        os.kill(bench.pid(), signal.SIGKILL)
        await until(lambda: bench.keeper.reports()[0].restarts == 1, "the restart to be counted")
        before = asking.answers
        await until(lambda: asking.answers > before + 10 or bool(asking.failed), "answers of the next worker", 40)
    assert asking.failed == []


async def test_the_socket_for_shared_memory_has_the_others_mode_and_goes_with_the_module(bench: Bench) -> None:
    await bench.serving(build(version=1))
    fast = bench.path.with_suffix(".fast.sock")
    assert fast.stat().st_mode & 0o777 == 0o660
    await bench.keeper.switch(ModuleSet(2, 1, ()), {})
    assert not fast.exists()
    with Client(bench.path) as client, pytest.raises(Gone):
        await asyncio.to_thread(client.predict, X=rows(1))


async def test_a_path_that_is_too_long_for_a_second_socket_leaves_http(tmp_path: Path) -> None:
    room = 107 - len(str(tmp_path)) - len("/endpoints/iris.sock")
    if room < 3:
        pytest.skip("the folder of the tests is too deep to try")
    paths = StatePaths(tmp_path / ("d" * (room - 1)))
    paths.root.mkdir()
    async with AgentStore(paths.database) as store:
        one = Bench(paths, store)
        try:
            await one.serving(build(version=1))
            with Client(one.path) as client:
                said = await asyncio.to_thread(client.predict, X=rows(2))
                assert client.transport == "http"
            assert len(said) == 2
        finally:
            await one.keeper.close()


async def test_what_is_under_way_at_a_drain_is_answered_and_the_next_request_goes_to_the_next(
    tmp_path: Path, echo_module: Manifest
) -> None:
    async with WorkerDriver(tmp_path / "slot", echo_module) as old:
        await old.serve()
        later = make_echo(tmp_path / "later" / "slot", version=8)
        async with AsyncClient(old.path, model="digits") as client:
            assert (await client.predict(x=[[0, 0]], word=["w"])).version == "7"
            asking = asyncio.create_task(client.predict(x=[[1, 2]], word=["wait 0.5"]))
            async with WorkerDriver(tmp_path / "later" / "slot", later, listener=old.listener, fast=old.fast) as new:
                await new.serve()
                drained = await old.order(Drain(20.0), Drained)
                assert drained.cut == 0
                said = await asking
                assert said.version == "7", "the one who began it answers it"
                assert said["twice"].tolist() == [[2, 4]]
                old.process.kill()
                assert (await client.predict(x=[[3, 3]], word=["w"])).version == "8"


async def test_a_drain_cuts_what_takes_too_long(tmp_path: Path, echo_module: Manifest) -> None:
    async with WorkerDriver(tmp_path / "slot", echo_module) as worker:
        await worker.serve()
        fast = str(tmp_path / "endpoint.fast.sock")
        link = await asyncio.to_thread(SharedLink, fast, 30.0, 0, True, False)
        try:
            body, _ = link._desk.prepare({"x": [[1, 2]], "word": ["wait 5"]}, ())
            link._send(head(-1, b"") + body)
            assert (await worker.order(Drain(0.3), Drained)).cut == 1
            with pytest.raises(Gone):
                await asyncio.to_thread(link._receive)
        finally:
            link.close()


async def test_a_worker_that_dies_of_a_request_takes_nobody_with_it(tmp_path: Path, echo_module: Manifest) -> None:
    """The request is made once more, which kills the next one too; then the application hears of it."""
    async with WorkerDriver(tmp_path / "slot", echo_module) as first:
        await first.serve()
        async with WorkerDriver(
            tmp_path / "slot", echo_module, listener=first.listener, fast=first.fast
        ) as second, AsyncClient(first.path, model="digits", timeout_s=30) as client:  # fmt: skip
            await client.predict(x=[[0, 0]], word=["w"])
            asking = asyncio.create_task(client.predict(x=[[0, 0]], word=["die"]))
            assert await first.exit_code() == 3
            await second.serve()
            assert await second.exit_code() == 3
            with pytest.raises(Gone, match="the worker ended"):
                await asking


def test_nothing_of_a_client_has_a_name_that_could_stay(tmp_path: Path) -> None:
    before = set(Path("/dev/shm").iterdir()) if Path("/dev/shm").exists() else set()
    from mooring_client.desk import Desk
    from mooring_client.tensors import Spec
    from mooring_client.wire import Welcome

    desk = Desk(Welcome("m", "1", 1 << 20, frozenset(), (Spec("x", "FP32", (-1, 2)),), ()))
    body, arrays = desk.prepare({"x": np.ones((1, 2), np.float32)}, ())
    assert body
    assert arrays
    after = set(Path("/dev/shm").iterdir()) if Path("/dev/shm").exists() else set()
    desk.close()
    assert not {path for path in after - before if "mooring" in path.name}
