"""Workers that are forked: the same worker, its end told truly, and no module lost when the zygote is."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from agent.config import ServingSettings, StatePaths
from agent.errors import WorkerError
from agent.installed import Installed
from agent.runtimes.process import ProcessRuntime
from agent.sandbox.birth import MAX_BYTES, NotBorn, Ready, encode
from agent.sandbox.cage import Cage
from agent.sandbox.host import WorkerProcess, spawn
from agent.sandbox.nursery import MAX_DEATHS, NoFork, Nursery
from agent.sandbox.protocol import Start
from agent.slots import Slots
from agent.store import AgentStore
from modules.manifest import SamplingPolicy
from modules.messages import Stream
from support.built import Built, build, build_script, install
from support.waiting import until

Make = Callable[..., Coroutine[Any, Any, tuple[WorkerProcess, Start]]]


@pytest.fixture
async def nursery() -> AsyncIterator[Nursery]:
    one = Nursery()
    yield one
    one.close()


@pytest.fixture
async def make(state_dir: StatePaths, nursery: Nursery) -> AsyncIterator[Make]:
    """A worker of `nursery` and the order that starts it; ended after the test."""
    workers: list[WorkerProcess] = []

    async def one(module: Built, kind: Nursery = nursery) -> tuple[WorkerProcess, Start]:
        slot = install(Slots(state_dir.slots), module, state_dir.staging)
        worker = await spawn(module.manifest.name, (), state_dir.root / "log", ignore, nursery=kind)
        workers.append(worker)
        return worker, Start(str(slot.path), module.manifest_bytes, SamplingPolicy(), ())

    yield one
    for worker in workers:
        await worker.kill()


def ignore(stream: Stream, payload: bytes) -> None:
    """What the worker says of its predictions does not matter here."""


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def test_a_forked_worker_loads_passes_its_golden_inputs_and_ends_when_told_to(
    make: Make, nursery: Nursery
) -> None:
    worker, order = await make(build())
    assert parent(worker.pid) == nursery.pid
    assert os.getpgid(worker.pid) == os.getsid(worker.pid) == worker.pid
    assert "CPUExecutionProvider" in (await worker.start(order, 30)).execution
    assert (await worker.self_test()).cases == 1
    await worker.stop(20)
    assert worker.exit_code == 0
    await until(lambda: not Path(f"/proc/{worker.pid}").exists(), "the zygote to reap it")


async def test_a_forked_worker_has_no_file_open_but_its_own(make: Make) -> None:
    other, _ = await make(build("other"))
    worker, _ = await make(build())
    opened = {os.readlink(f"/proc/{worker.pid}/fd/{name}") for name in os.listdir(f"/proc/{worker.pid}/fd")}
    kinds = sorted(name.partition(":")[0] for name in opened)
    assert kinds.count("socket") <= 3, "the channel, and what the loop wakes itself by"
    assert not opened & {os.readlink(f"/proc/{other.pid}/fd/{name}") for name in _files(other.pid)} - {"/dev/null"}


def _files(pid: int) -> list[str]:
    return [name for name in os.listdir(f"/proc/{pid}/fd") if not _anonymous(pid, name)]


def _anonymous(pid: int, name: str) -> bool:
    return os.readlink(f"/proc/{pid}/fd/{name}").startswith("anon_inode")


async def test_siblings_draw_different_random_numbers(make: Make, state_dir: StatePaths) -> None:
    source = (
        "import random, uuid, numpy\n"
        "def init():\n    print(numpy.random.random(), random.random(), uuid.uuid4(), flush=True)\n"
        "def run(data):\n    return 1\n"
    )
    for name in ("one", "two"):
        worker, order = await make(build_script(source, name=name))
        await worker.start(order, 30)
    log = state_dir.root / "log"
    await until(lambda: log.exists() and log.read_text().count("\n") == 2, "both lines")
    first, second = (line.split()[1:] for line in log.read_text().splitlines())  # the first word is the time
    assert not set(first) & set(second)


@pytest.mark.parametrize(
    ("act", "words"),
    [("os._exit(7)", "exit status 7"), ("os.kill(os.getpid(), 9)", "SIGKILL"), ("os.abort()", "SIGABRT")],
)
async def test_how_a_forked_worker_ended_is_told(make: Make, act: str, words: str) -> None:
    source = f"import os\ndef init():\n    {act}\ndef run(data):\n    return 1\n"
    worker, order = await make(build_script(source))
    with pytest.raises(WorkerError, match=words):
        await worker.start(Start(order.slot, order.manifest, order.sampling, (), confine=False), 30)


async def test_the_end_of_the_zygote_ends_its_workers_and_the_next_is_forked_from_another(
    make: Make, nursery: Nursery
) -> None:
    worker, order = await make(build())
    await worker.start(order, 30)
    first = nursery.pid
    os.kill(first, signal.SIGKILL)
    await asyncio.wait_for(worker.exited.wait(), 20)
    assert not alive(worker.pid)
    worker, order = await make(build("other"))
    await worker.start(order, 30)
    assert nursery.pid not in (0, first)
    assert parent(worker.pid) == nursery.pid


async def test_a_zygote_that_dies_again_and_again_is_done_without(make: Make, nursery: Nursery) -> None:
    for number in range(MAX_DEATHS):
        worker, _ = await make(build(f"m{number}"))
        os.kill(nursery.pid, signal.SIGKILL)
        await asyncio.wait_for(worker.exited.wait(), 20)
    worker, order = await make(build())
    assert parent(worker.pid) == os.getpid(), "a program of its own"
    await worker.start(order, 30)


@pytest.mark.parametrize("spoilt", ["print('x')", "raise SystemExit(3)", "control.send(b'junk')"])
async def test_what_is_no_zygote_is_done_without(make: Make, spoilt: str) -> None:
    program = f"import socket, sys; control = socket.socket(fileno=int(sys.argv[1])); {spoilt}"
    broken = Nursery((sys.executable, "-c", program))
    worker, order = await make(build(), broken)
    await worker.start(order, 30)
    assert parent(worker.pid) == os.getpid()
    with pytest.raises(NoFork):
        await broken.fork((0, 1))
    broken.close()


async def test_a_library_that_starts_threads_is_no_reason_to_fork(make: Make) -> None:
    said = encode(Ready("the libraries have started 2 threads")).hex()
    program = f"import socket, sys, time; socket.socket(fileno=int(sys.argv[1])).send(bytes.fromhex('{said}'))"
    threaded = Nursery((sys.executable, "-c", program))
    with pytest.raises(NoFork, match="2 threads"):
        await threaded.fork((0, 1))
    worker, _ = await make(build(), threaded)
    assert parent(worker.pid) == os.getpid()
    threaded.close()


async def test_namespaces_that_cannot_be_entered_are_left_to_bubblewrap(tmp_path: Path) -> None:
    """Asked once: the answer does not change while the agent runs."""
    said = [encode(Ready()).hex(), encode(NotBorn("setns: EPERM")).hex()]
    program = (
        "import socket, sys; c = socket.socket(fileno=int(sys.argv[1])); "
        f"c.send(bytes.fromhex('{said[0]}')); c.recv({MAX_BYTES}); c.send(bytes.fromhex('{said[1]}')); c.recv(1)"
    )
    echo = tmp_path / "bwrap"
    echo.write_text(
        '#!/bin/sh\nwhile [ "$1" != --info-fd ]; do shift; done\n'
        "printf '{\"child-pid\": %d}' $$ >/proc/self/fd/$2\nexec cat\n"
    )
    echo.chmod(0o755)
    nursery = Nursery((sys.executable, "-c", program))
    for _ in range(2):
        with pytest.raises(NoFork, match="setns: EPERM"):
            await nursery.fork((0, 1), (str(echo), "--"))
    nursery.close()


async def test_a_devices_second_module_is_forked_and_a_single_one_is_not(
    state_dir: StatePaths, agent_store: AgentStore
) -> None:
    slots = Slots(state_dir.slots)
    runtime = ProcessRuntime(state_dir, ServingSettings(host="", confine=False), agent_store, slots, ignore)
    workers = []
    try:
        for name in ("one", "two"):
            module = build(name)
            install(slots, module, state_dir.staging)
            workers.append(await runtime.load(Installed(name, 1, module.sha256, 1, "d", verified=True)))
        assert [parent(worker.pid) == os.getpid() for worker in workers] == [True, False]
    finally:
        for worker in workers:
            await worker.kill()
        runtime.close()


async def test_a_scope_of_systemd_cannot_be_entered_by_a_fork() -> None:
    assert Cage().forkable
    assert Cage(("bwrap", "--"), wrapper=("bwrap", "--")).forkable
    assert not Cage(("systemd-run", "--", "bwrap", "--"), wrapper=("bwrap", "--")).forkable


async def test_workers_and_zygote_end_with_the_agent(tmp_path: Path) -> None:
    """Whatever becomes of the agent: here it is killed."""
    ours, theirs = socket.socketpair()
    program = (
        "import asyncio, os, sys\n"
        "from agent.sandbox.nursery import Nursery\n"
        "async def main():\n"
        "    nursery = Nursery()\n"
        "    forked = await nursery.fork((int(sys.argv[1]), 2))\n"
        "    print(nursery.pid, forked.pid, flush=True)\n"
        "    await asyncio.sleep(600)\n"
        "asyncio.run(main())\n"
    )
    agent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, str(theirs.fileno()), pass_fds=(theirs.fileno(),), stdout=asyncio.subprocess.PIPE
    )
    with contextlib.closing(ours), contextlib.closing(theirs):
        assert agent.stdout is not None
        async with asyncio.timeout(60):
            pids = [int(word) for word in (await agent.stdout.readline()).split()]
        assert all(map(alive, pids))
        agent.kill()
        await agent.wait()
        for pid in pids:
            await until(lambda pid=pid: not alive(pid), "it to end")  # type: ignore[misc]
