"""The keeper with real workers: what is asked for serves, what crashes comes back, a hand-over drops nobody."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec
import pytest

from agent.config import ServingSettings, StatePaths
from agent.errors import WorkerError
from agent.installed import Installed, ModuleSet
from agent.runtimes import endpoints, priority, process
from agent.runtimes.endpoints import EndpointError
from agent.runtimes.keeper import Keeper
from agent.runtimes.process import ProcessRuntime
from agent.runtimes.users import Users, may_become
from agent.sandbox.host import WorkerProcess
from agent.slots import Slots
from agent.store import AgentStore
from modules.manifest import SamplingPolicy
from modules.messages import Stream, decode_sample
from support import built
from support.built import Built, build, build_script, install
from support.predict import predict, served_version
from support.waiting import until, until_async

QUICK = ServingSettings(
    confine=False, drain_s=3.0, ping_every_s=0.2, ping_timeout_s=5.0, restart_first_s=0.01, restart_ceiling_s=0.05
)


class Bench:
    """A keeper and what it needs; `items` is what the workers said of their predictions."""

    def __init__(self, paths: StatePaths, store: AgentStore, settings: ServingSettings) -> None:
        self.items: list[tuple[Stream, bytes]] = []
        self.changes = 0
        self.slots = Slots(paths.slots)
        self.paths, self.store, self.settings = paths, store, settings
        self.runtime = ProcessRuntime(paths, settings, store, self.slots, lambda s, p: self.items.append((s, p)))
        self.told: list[tuple[str, str, str]] = []
        self.keeper = Keeper(self.runtime, settings, self._changed, lambda _, *told: self.told.append(told))

    def set(self, *modules: Built, **fields: object) -> ModuleSet:
        """The modules, put into slots, as a set to serve."""
        return ModuleSet(1, 1, tuple(self.installed(module, **fields) for module in modules))

    def installed(self, module: Built, **fields: object) -> Installed:
        install(self.slots, module, self.paths.staging)
        held = Installed(module.manifest.name, module.manifest.version, module.sha256, 1, "d", verified=True)
        return msgspec.structs.replace(held, **fields)

    def worker(self, name: str = "iris") -> WorkerProcess:
        unit = self.keeper.unit(name)
        assert unit is not None
        assert unit._worker is not None
        return unit._worker

    def pid(self, name: str = "iris") -> int:
        return self.worker(name).pid

    def state(self, name: str = "iris") -> str:
        return next(report.state for report in self.keeper.reports() if report.name == name)

    async def serving(self, name: str = "iris") -> str:
        """Waits until it serves; its address."""
        await until(lambda: self.state(name) == "serving", f"{name} to serve")
        return self.runtime.address(name)

    def _changed(self) -> None:
        self.changes += 1


@pytest.fixture
async def make(state_dir: StatePaths, agent_store: AgentStore) -> AsyncIterator[Callable[[], Bench]]:
    benches: list[Bench] = []

    def one(settings: ServingSettings = QUICK) -> Bench:
        benches.append(Bench(state_dir, agent_store, settings))
        return benches[-1]

    yield one
    for bench in benches:
        await bench.keeper.close()


@pytest.fixture
def bench(make: Callable[[], Bench]) -> Bench:
    return make()


async def test_a_committed_set_serves_on_both_sockets_without_any_network(bench: Bench) -> None:
    await bench.keeper.start(bench.set(build()))
    address = await bench.serving()
    assert await predict(address, count=2) == [0, 0]
    report = bench.keeper.reports()[0]
    assert report.endpoint == address
    assert "CPUExecutionProvider" in report.execution
    path = bench.paths.endpoints / "iris.sock"
    assert path.stat().st_mode & 0o777 == 0o660
    reader, writer = await asyncio.open_unix_connection(str(path))
    writer.write(b"GET /v2/health/ready HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert (await reader.read()).startswith(b"HTTP/1.1 200")
    writer.close()


async def test_confined_workers_have_users_of_their_own_where_we_may_give_them(make: Callable[..., Bench]) -> None:
    bench = make(msgspec.structs.replace(QUICK, confine=True))
    await bench.keeper.start(bench.set(build(), build("other")))
    assert await predict(await bench.serving()) == [0]
    await bench.serving("other")
    uids = {Path(f"/proc/{bench.pid(name)}").stat().st_uid for name in ("iris", "other")}
    own = may_become(QUICK.uid_first)
    assert len(uids) == (2 if own else 1)
    assert (os.geteuid() in uids) is not own
    assert all(("uid" in report.confinement.split("+")) is own for report in bench.keeper.reports())


async def test_the_port_stays_the_same_over_restarts_of_the_agent(make: Callable[[], Bench]) -> None:
    addresses = []
    for bench in (make(), make()):
        await bench.keeper.start(bench.set(build()))
        addresses.append(await bench.serving())
        await bench.keeper.close()
    assert addresses[0] == addresses[1]


async def test_a_port_that_somebody_else_took_is_replaced(
    bench: Bench, agent_store: AgentStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoints, "PORT_WAIT_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as thief:
        port = thief.getsockname()[1]
        await agent_store.put_port("iris", port)
        await bench.keeper.start(bench.set(build()))
        address = await bench.serving()
        assert not address.endswith(f":{port}")
        assert await predict(address) == [0]
    assert (await agent_store.ports())["iris"] != port


async def test_a_path_too_long_for_a_socket_is_named(state_dir: StatePaths, agent_store: AgentStore) -> None:
    deep = StatePaths(state_dir.root / ("d" * 90))
    bench = Bench(deep, agent_store, QUICK)
    with pytest.raises(EndpointError, match="expected a path of at most 107 bytes"):
        await bench.runtime.endpoint("iris")


async def test_a_killed_worker_is_started_again_and_counted(bench: Bench) -> None:
    await bench.keeper.start(bench.set(build()))
    address = await bench.serving()
    os.kill(bench.pid(), signal.SIGKILL)
    await until(lambda: bench.keeper.reports()[0].restarts == 1, "the restart to be counted")
    await bench.serving()
    assert await predict(address) == [0]


async def test_a_worker_that_answers_no_more_is_killed_and_replaced(make: Callable[..., Bench]) -> None:
    bench = make(msgspec.structs.replace(QUICK, ping_timeout_s=0.5))
    await bench.keeper.start(bench.set(build()))
    await bench.serving()
    stuck = bench.pid()
    os.kill(stuck, signal.SIGSTOP)
    await until(lambda: bench.keeper.reports()[0].restarts == 1, "the watchdog")
    await bench.serving()
    assert bench.pid() != stuck


async def test_a_module_that_never_comes_up_is_reported_as_failed_while_others_serve(bench: Bench) -> None:
    broken = build_script("def init():\n    raise ValueError('no')\ndef run(data):\n    return 1\n", name="broken")
    await bench.keeper.start(bench.set(build(), broken))
    await until(lambda: bench.state("broken") == "failed", "the broken module to be given its name")
    assert bench.state("iris") == "serving"
    assert [key for key, _, _ in bench.told] == ["worker-not-started"] * 4 + ["module-failed"]
    _, text, name = bench.told[-1]
    assert name == "broken"
    assert "ValueError: no" in text


async def test_a_crash_is_told_with_the_exit_status_and_the_last_words(bench: Bench) -> None:
    source = (
        "import os, threading\n"
        "def end():\n    print('out of film', flush=True)\n    os._exit(9)\n"
        "def init():\n    threading.Timer(0.3, end).start()\n"
        "def predict(inputs):\n    return {}\n"
    )
    await bench.keeper.start(bench.set(build_script(source, name="camera")))
    await until(lambda: bool(bench.told), "the crash to be told")
    key, text, name = bench.told[0]
    assert (key, name) == ("worker-crashed", "camera")
    assert "exit status 9" in text
    assert "it said last: out of film" in text


async def test_a_hand_over_refuses_nobody(bench: Bench) -> None:
    await bench.keeper.start(bench.set(build(version=1)))
    address = await bench.serving()
    seen: set[int] = set()
    stop = asyncio.Event()

    async def ask() -> None:
        while not stop.is_set():
            seen.add(await served_version(address))
            await predict(address)

    asking = asyncio.gather(*(ask() for _ in range(3)))
    await until(lambda: 1 in seen, "the old version to answer")
    target = bench.set(build(version=2))
    await bench.keeper.switch(target, {"iris": await bench.keeper.spare(target.modules[0])})
    await until(lambda: 2 in seen, "the new version to answer")
    stop.set()
    await asking
    assert await served_version(address) == 2


async def test_a_switch_cancelled_while_the_old_worker_drains_still_ends_it(make: Callable[..., Bench]) -> None:
    bench = make(msgspec.structs.replace(QUICK, drain_s=1.0))
    await bench.keeper.start(bench.set(build(version=1)))
    address = await bench.serving()
    old = bench.worker()
    host, _, port = address.removeprefix("http://").partition(":")
    _, idle = await asyncio.open_connection(host, int(port))  # keeps the old worker draining
    await served_version(address)  # the one before it is accepted
    target = bench.set(build(version=2))
    spares = {"iris": await bench.keeper.spare(target.modules[0])}
    switching = asyncio.create_task(bench.keeper.switch(target, spares))
    await until(lambda: not spares, "the new worker to serve")
    switching.cancel()
    await asyncio.wait([switching])
    assert switching.cancelled()
    await until(old.exited.is_set, "the old worker to end")
    assert await served_version(address) == 2
    idle.close()


@pytest.mark.parametrize("steps", range(6))
async def test_a_switch_cancelled_at_any_moment_loses_no_worker_and_no_request(bench: Bench, steps: int) -> None:
    old, new = bench.set(build(version=1)), bench.set(build(version=2))
    await bench.keeper.start(old)
    address = await bench.serving()
    spares = {"iris": await bench.keeper.spare(new.modules[0])}
    workers = {bench.pid(), spares["iris"].pid}
    switching = asyncio.create_task(bench.keeper.switch(new, spares))
    for _ in range(steps):
        await asyncio.sleep(0)
    switching.cancel()
    await asyncio.wait([switching])
    assert await predict(address) == [0]
    if spares:
        await bench.keeper.drop(spares["iris"])
    await bench.keeper.switch(old, {})
    assert await served_version(address) == 1
    await until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers - {bench.pid()}), "the others to end")


async def test_a_worker_that_crashes_while_it_drains_is_told(make: Callable[..., Bench]) -> None:
    bench = make(msgspec.structs.replace(QUICK, drain_s=20.0))
    await bench.keeper.start(bench.set(build()))
    host, _, port = (await bench.serving()).removeprefix("http://").partition(":")
    _, idle = await asyncio.open_connection(host, int(port))
    await served_version(bench.runtime.address("iris"))
    pid = bench.pid()
    closing = asyncio.create_task(bench.keeper.close())
    await until(lambda: bench.keeper.unit("iris") is None, "the drain to begin")
    os.kill(pid, signal.SIGKILL)
    await closing
    assert [key for key, _, _ in bench.told] == ["worker-crashed"]
    idle.close()


def nice_values(pid: int) -> set[int]:
    return {os.getpriority(os.PRIO_PROCESS, int(task.name)) for task in Path(f"/proc/{pid}/task").iterdir()}


async def test_a_worker_that_is_only_tried_yields_to_those_that_serve(bench: Bench) -> None:
    own = os.getpriority(os.PRIO_PROCESS, 0)
    target = bench.set(build(health=msgspec.structs.replace(built.QUICK, load_deadline_s=600.0)))
    spare = await bench.keeper.spare(target.modules[0])
    group = Path(f"/proc/{spare.pid}/autogroup")
    tried = (nice_values(spare.pid), group.read_text().split()[-1] if group.exists() else "")
    await bench.keeper.switch(target, {"iris": spare})
    assert nice_values(spare.pid) == {own}, "every thread has its share again"
    assert not group.exists() or group.read_text().split()[-1] == "0"
    assert tried[0] == ({priority.LOW} if priority._can_raise() else {own})
    assert tried[1] in ("", str(priority.LOW))


async def test_a_worker_that_takes_long_to_load_yields_for_a_part_of_that_only(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "QUIET_SHARE", 0.02)
    own = os.getpriority(os.PRIO_PROCESS, 0)
    source = (
        "import os, time\n"
        f"def init():\n    while os.getpriority(os.PRIO_PROCESS, 0) > {own}:\n        time.sleep(0.01)\n"
        "def predict(inputs):\n    return {}\n"
    )
    target = bench.set(build_script(source))
    await bench.keeper.drop(await bench.keeper.spare(target.modules[0]))


async def test_sockets_that_a_killed_agent_has_left_are_removed(bench: Bench) -> None:
    left = bench.paths.endpoints / "gone.sock"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(left))
    await bench.keeper.start(bench.set(build()))
    await bench.serving()
    assert {path.name for path in bench.paths.endpoints.iterdir()} == {"iris.sock", "iris.fast.sock"}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has capabilities to give up")
@pytest.mark.parametrize(("capabilities", "may"), [("kill", True), ("", False)])
def test_a_user_is_given_only_to_workers_that_can_be_ended_then(capabilities: str, may: bool) -> None:
    kept = 1 << 6 | 1 << 7 | (1 << 5 if capabilities else 0)
    code = (
        f"from agent.sandbox import confine; from agent.runtimes import users; confine._keep_capabilities({kept})\n"
        "print(users.may_become(60900))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert said.stdout.strip() == str(may and may_become(60_900))


async def test_a_module_that_stays_is_not_touched_by_a_switch(bench: Bench) -> None:
    first, other = build(), build(name="other", version=2)
    await bench.keeper.start(bench.set(first))
    await bench.serving()
    pid = bench.pid()
    await bench.keeper.switch(bench.set(first, other), {})
    await bench.serving("other")
    assert bench.pid() == pid


async def test_a_new_policy_reaches_the_worker_that_runs(bench: Bench) -> None:
    module = build()
    await bench.keeper.start(bench.set(module))
    address = await bench.serving()
    pid = bench.pid()
    await bench.keeper.switch(bench.set(module, sampling=SamplingPolicy(rate=1.0, window_s=3600.0)), {})
    await predict(address)
    await until(lambda: any(stream == "sample" for stream, _ in bench.items), "a sample")
    assert decode_sample(next(p for s, p in bench.items if s == "sample")).module == "iris"
    assert bench.pid() == pid


async def test_a_module_that_is_off_stops_and_its_port_refuses(bench: Bench) -> None:
    module = build()
    await bench.keeper.start(bench.set(module))
    address = await bench.serving()
    await bench.keeper.switch(bench.set(module, mode="off"), {})
    assert bench.state() == "off"
    with pytest.raises(OSError, match="refused"):
        await predict(address)


async def test_draining_hands_in_the_window_that_was_open(bench: Bench) -> None:
    await bench.keeper.start(bench.set(build()))
    await predict(await bench.serving())
    await bench.keeper.close()
    assert [stream for stream, _ in bench.items] == ["window"]


async def test_a_spare_that_fails_leaves_no_listening_port_behind(bench: Bench) -> None:
    target = bench.set(build(spoil_golden=True))
    with pytest.raises(WorkerError, match="iris"):
        await bench.keeper.spare(target.modules[0])
    assert bench.runtime.address("iris") == ""


async def test_going_back_serves_the_old_version_again_even_without_a_spare(bench: Bench) -> None:
    old, new = bench.set(build(version=1)), bench.set(build(version=2))
    await bench.keeper.start(old)
    address = await bench.serving()
    await bench.keeper.switch(new, {"iris": await bench.keeper.spare(new.modules[0])})
    await bench.keeper.switch(old, {})

    async def is_old() -> bool:
        return await served_version(address) == 1

    await until_async(is_old, "the old version")


async def test_a_module_that_failed_a_thousand_times_is_still_tried(bench: Bench) -> None:
    await bench.keeper.start(bench.set(build_script("raise ValueError('no')\n", name="broken")))
    unit = bench.keeper.unit("broken")
    assert unit is not None
    unit._failures = 5000
    before = unit.restarts
    await until(lambda: unit.restarts >= before + 2, "two more tries")
    assert bench.state("broken") == "failed"


async def test_a_failure_that_nobody_foresaw_does_not_end_a_modules_unit(bench: Bench) -> None:
    await bench.keeper.start(bench.set(build(), config={"no JSON": object()}))
    unit = bench.keeper.unit("iris")
    assert unit is not None
    await until(lambda: unit.restarts >= 2, "two failed starts")
    assert unit.failure is not None
    assert unit.failure.key == "internal"


async def test_a_damaged_slot_does_not_keep_a_new_policy_from_being_settled(bench: Bench) -> None:
    modules = bench.set(build(), sampling=SamplingPolicy(rate=1.0))
    await bench.keeper.start(modules)
    await bench.serving()
    pid = bench.pid()
    slot = bench.slots.path(modules.modules[0].manifest_sha256)
    (slot / "manifest.json").chmod(0o644)
    (slot / "manifest.json").write_bytes(b"{}")
    without = msgspec.structs.replace(modules.modules[0], sampling=None)
    await bench.keeper.switch(msgspec.structs.replace(modules, modules=(without,)), {})
    assert bench.pid() == pid


async def test_modules_that_start_together_get_users_that_differ(make: Callable[..., Bench]) -> None:
    bench = make(ServingSettings(host="", uid_first=60_900))
    users = Users(bench.settings, bench.store)
    uids = await asyncio.gather(*(users.uid(name) for name in ("one", "two", "three")))
    assert await bench.store.get("uids", list[str]) == ["one", "two", "three"]
    assert not may_become(60_900) or sorted(uids) == [60_900, 60_901, 60_902]
