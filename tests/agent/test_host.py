"""The host side of a worker, against the real worker process with real modules."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from agent.config import StatePaths
from agent.errors import WorkerError
from agent.sandbox.environment import worker_environment
from agent.sandbox.host import MAX_WORDS, WorkerProcess, spawn
from agent.sandbox.log import MAX_BYTES_PER_S, MAX_LOG_BYTES, LogPipe, RotatingLog
from agent.sandbox.protocol import Start
from agent.slots import Slots
from modules.manifest import SamplingPolicy
from modules.messages import Stream
from support.built import Built, build, build_script, install
from support.waiting import until

Make = Callable[[Built], Coroutine[Any, Any, tuple[WorkerProcess, Start]]]


@pytest.fixture
async def make(state_dir: StatePaths) -> AsyncIterator[Make]:
    """A spawned worker and the order that starts it; ended after the test."""
    workers: list[WorkerProcess] = []

    async def one(module: Built) -> tuple[WorkerProcess, Start]:
        slot = install(Slots(state_dir.slots), module, state_dir.staging)
        worker = await spawn(module.manifest.name, (), state_dir.root / "worker.log", ignore)
        workers.append(worker)
        return worker, Start(str(slot.path), module.manifest_bytes, SamplingPolicy(), ())

    yield one
    for worker in workers:
        await worker.kill()


def ignore(stream: Stream, payload: bytes) -> None:
    """What the worker says of its predictions does not matter here."""


def group_is_gone(pid: int) -> bool:
    try:
        os.killpg(pid, 0)
    except ProcessLookupError:
        return True
    return False


async def test_a_worker_loads_passes_its_golden_inputs_serves_and_drains(make: Make) -> None:
    worker, order = await make(build())
    ready = await worker.start(order, 30)
    assert "CPUExecutionProvider" in ready.execution
    assert (await worker.self_test()).cases == 1
    await worker.serve()
    assert (await worker.ping(10)).requests == 0
    assert (await worker.drain(1.0)).cut == 0
    await worker.stop(5)
    assert worker.exit_code == 0


async def test_a_golden_mismatch_comes_with_its_key_and_leaves_the_worker_to_be_ended(make: Make) -> None:
    worker, order = await make(build(spoil_golden=True))
    await worker.start(order, 30)
    with pytest.raises(WorkerError, match="iris") as caught:
        await worker.self_test()
    assert caught.value.key == "golden-mismatch"


async def test_a_module_that_loads_too_long_is_killed_at_its_deadline(make: Make) -> None:
    source = "import time\ndef init():\n    time.sleep(600)\ndef run(data):\n    return 1\n"
    worker, order = await make(build_script(source))
    with pytest.raises(WorkerError, match="within 2 s") as caught:
        await worker.start(order, 2)
    assert caught.value.key == "worker-timeout"
    await asyncio.wait_for(worker.exited.wait(), 10)
    assert group_is_gone(worker.pid)


async def test_who_waits_for_a_worker_that_dies_is_told_how_it_died(make: Make) -> None:
    source = "import os\ndef init():\n    os._exit(7)\ndef run(data):\n    return 1\n"
    worker, order = await make(build_script(source))
    with pytest.raises(WorkerError, match="exit status 7") as caught:
        await worker.start(order, 30)
    assert caught.value.key == "worker-exited"


async def test_a_killed_worker_is_reaped_and_named_by_its_signal(make: Make) -> None:
    worker, order = await make(build())
    await worker.start(order, 30)
    os.kill(worker.pid, signal.SIGKILL)
    await asyncio.wait_for(worker.exited.wait(), 10)
    with pytest.raises(WorkerError, match="SIGKILL"):
        await worker.ping(5)


async def test_a_worker_that_floods_its_output_neither_fills_the_disk_nor_breaks_the_channel(
    make: Make, state_dir: StatePaths
) -> None:
    source = "def init():\n    for _ in range(8): print('x' * 100_000)\ndef run(data):\n    return 1\n"
    worker, order = await make(build_script(source))
    await worker.start(order, 30)
    log = state_dir.root / "worker.log"
    await until(lambda: log.exists() and b"Z xxx" in log.read_bytes(), "the worker's words in its log")
    await worker.ping(10)


def test_a_log_keeps_two_bounded_files(tmp_path: Path) -> None:
    log = RotatingLog(tmp_path / "m.log", limit_bytes=1000)
    for _ in range(50):
        log.write(b"y" * 100)
    log.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.log", "m.log.1"]
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 2 * 1100
    assert MAX_LOG_BYTES >= 1000


async def test_what_is_no_frame_ends_the_worker(tmp_path: Path) -> None:
    liar = "import os, sys, time; os.write(int(sys.argv[1]), b'\\xff' * 20); time.sleep(60)"
    worker = await spawn("liar", (), tmp_path / "log", ignore, (sys.executable, "-c", liar))
    await asyncio.wait_for(worker.exited.wait(), 10)
    with pytest.raises(WorkerError, match="out of turn"):
        await worker.ping(5)


def test_a_worker_inherits_no_secrets() -> None:
    environment = worker_environment({"PATH": "/bin", "MOORING_TOKEN": "s", "AWS_SECRET": "s", "CUDA_HOME": "/c"})
    assert environment.keys() == {"PATH", "CUDA_HOME", "ORT_DISABLE_TELEMETRY", "PYTHONUNBUFFERED", "HOME"}
    assert environment["ORT_DISABLE_TELEMETRY"] == "1"


async def test_a_worker_ends_with_the_process_that_made_it(make: Make) -> None:
    worker, order = await make(build())
    await worker.start(order, 30)
    channel = worker._channel
    channel.shutdown(socket.SHUT_RDWR)  # what the kernel does when an agent is killed
    await asyncio.wait_for(worker.exited.wait(), 10)


async def test_a_worker_that_floods_its_output_is_read_no_faster_than_its_budget(tmp_path: Path) -> None:
    out, into = os.pipe()
    os.set_blocking(into, False)
    loop = asyncio.get_running_loop()
    pipe = LogPipe(RotatingLog(tmp_path / "module.log"))
    transport, _ = await loop.connect_read_pipe(lambda: pipe, os.fdopen(out, "rb", buffering=0))
    written = 0
    try:
        for _ in range(1000):
            with suppress(BlockingIOError):
                written += os.write(into, b"x" * 16_384)
            await asyncio.sleep(0)
            if not transport.is_reading():
                break
        assert not transport.is_reading()
        assert written <= MAX_BYTES_PER_S + 256 * 1024  # the pipe's own room comes on top
    finally:
        os.close(into)
        pipe.finish()
        await until(transport.is_closing, "the end of the pipe")
        await asyncio.sleep(0)


async def test_a_worker_that_is_gone_is_not_killed_again(make: Make) -> None:
    worker, _ = await make(build())
    await worker.kill()
    assert worker.exited.is_set()
    other = subprocess.Popen(["sleep", "30"], start_new_session=True)
    try:
        worker.pid = other.pid  # the kernel gives numbers out again
        await worker.kill()
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


async def test_what_a_worker_says_of_itself_is_bounded(tmp_path: Path) -> None:
    program = (
        "import sys, socket, struct; s = socket.socket(fileno=int(sys.argv[1]));"
        "b = b'\\x84\\xa4type\\xa5ready\\xabconfinement\\xa1c\\xa9execution\\xdb'"
        " + struct.pack('>I', 2000000) + b'x' * 2000000 + b'\\xa7load_ms\\xcb' + struct.pack('>d', 1.0);"
        "s.recv(9); s.sendall(struct.pack('>I', len(b)) + b); s.recv(1 << 20); s.recv(9)"
    )
    worker = await spawn("hostile", (), tmp_path / "log", ignore, (sys.executable, "-c", program))
    try:
        ready = await worker.start(Start(str(tmp_path), b"", SamplingPolicy(), ()), 20)
        assert len(ready.execution) == MAX_WORDS
    finally:
        await worker.kill()


async def test_a_device_without_descriptors_left_says_so_as_a_worker_that_does_not_start(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        with pytest.raises(WorkerError, match="cannot open a channel") as caught:
            await spawn("iris", (), tmp_path / "log", ignore)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert caught.value.key == "spawn-failed"
