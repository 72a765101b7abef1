"""Retraining where something dies: the hub between two steps or in the middle of a training, a runner, an operator."""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from cloud_hub.errors import Conflict
from cloud_hub.retraining import records, runner
from cloud_hub.retraining.jobs import TrainedCandidate
from cloud_hub.retraining.records import Run, RunState
from support.retraining import MODULE, Loop, loop, working
from support.waiting import until, until_async

SLEEPS = "import os, time; print('pid', os.getpid(), flush=True); time.sleep(600)"
EXECUTES = """
import asyncio, os, sys
from pathlib import Path
from cloud_hub.retraining.executing import Folders, Log, execute
root = Path(sys.argv[1])
command = [sys.executable, "-c", sys.argv[2]]
asyncio.run(execute(command, Folders(root, root), dict(os.environ), 600.0, Log(), lambda piece: os.write(1, piece)))
"""

pytestmark = pytest.mark.timeout(180)  # real trainings, on machines that are busy


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[Loop]:
    async with loop(tmp_path / "hub") as made:
        yield made


async def put_back(world: Loop, run: Run, state: RunState) -> Run:
    """The run as a hub would find it that was killed in this state, with the step done and not yet written down."""
    back = msgspec.structs.replace(run, state=state, finished_at=None)
    async with world.rooms.store.write() as connection:
        await records.save_run(connection, back)
    return back


async def test_a_hub_that_was_killed_after_any_step_takes_it_again_and_makes_nothing_twice(world: Loop) -> None:
    rooms = world.rooms
    await world.sample(600)
    await world.plan()
    async with working(rooms):
        await rooms.retraining.triggers.start("nightly", "by hand", "alice")
        run = await world.until(RunState.CANARY)
    assert run.state is RunState.CANARY, run.result.reason
    counter = (await rooms.packaging.list(MODULE))[0].release_counter
    for state, after in (
        (RunState.COLLECTING, RunState.WAITING),
        (RunState.REGISTERING, RunState.BUILDING),
        (RunState.BUILDING, RunState.SIGNING),
        (RunState.SIGNING, RunState.STARTING),
        (RunState.STARTING, RunState.CANARY),
    ):
        again = await rooms.retraining.runs.step(await put_back(world, run, state))
        assert (again.state, again.result.version, again.result.dataset) == (after, 2, run.result.dataset)
    assert [dataset.version for dataset in await rooms.datasets.book.list()] == [1]
    assert [model.version for model in await rooms.registry.list(MODULE)] == [2, 1]
    assert (await rooms.packaging.list(MODULE))[0].release_counter == counter
    assert [rollout.id for rollout in await rooms.rollouts.list()] == [run.result.rollout]


async def test_a_hub_that_was_killed_while_it_trained_ends_the_run_and_may_start_it_again(world: Loop) -> None:
    rooms = world.rooms
    await world.sample(200)
    await world.plan()
    run = await rooms.retraining.triggers.start("nightly", "by hand", "alice")
    while run.state is not RunState.WAITING:
        run = await rooms.retraining.runs.step(run)
    assert await rooms.retraining.desk.claim("hub") is not None
    async with working(rooms):
        ended = await world.until()
    assert (ended.id, ended.state) == (run.id, RunState.FAILED)
    assert "the hub was ended while it trained" in ended.result.reason
    assert (await rooms.retraining.triggers.start("nightly", "again", "alice")).state is RunState.QUEUED


async def test_a_runner_that_falls_silent_has_failed_and_can_hand_nothing_in(tmp_path: Path) -> None:
    async with loop(tmp_path / "hub", commands=False, silence_s=0.3) as world:
        rooms = world.rooms
        await world.sample(200)
        await world.plan()
        async with working(rooms):
            run = await rooms.retraining.triggers.start("nightly", "by hand", "alice")
            await world.until(RunState.WAITING)
            job = await rooms.retraining.desk.claim("gpu-1", ["nightly"])
            assert job is not None
            assert await rooms.retraining.desk.claim("gpu-2") is None
            ended = await world.until()
        assert ended.state is RunState.FAILED
        assert "gpu-1 was not heard of" in ended.result.reason
        blob = await rooms.blobs.put(b"late")
        with pytest.raises(Conflict, match="not with runner"):
            await rooms.retraining.desk.made(run.id, TrainedCandidate("gpu-1", {"model.onnx": blob}))
        assert not await rooms.retraining.desk.heard(run.id, "gpu-1")


async def test_a_cancelled_run_ends_its_command(world: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "HEARD_EVERY_S", 0.1)
    await world.sample(200)
    await world.plan(script=SLEEPS)
    async with working(world.rooms):
        run = await world.rooms.retraining.triggers.start("nightly", "by hand", "alice")

        async def begun() -> bool:
            return "pid" in (await world.run()).result.log

        await until_async(begun, "the command has begun", 40)
        pid = int((await world.run()).result.log.split()[1])
        cancelled = await world.rooms.retraining.runs.cancel(run.id, "alice", "a slip")
        assert cancelled.state is RunState.CANCELLED
        await until(lambda: not alive(pid), "the command has ended", 40)
        assert (await world.run()).result.reason == "cancelled by alice: a slip"


async def test_a_command_ends_with_whoever_started_it_even_when_that_one_is_killed(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", EXECUTES, str(tmp_path), SLEEPS, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    said = await asyncio.wait_for(process.stdout.readline(), 40)
    pid = int(said.split()[1])
    assert alive(pid)
    process.send_signal(signal.SIGKILL)
    await process.wait()
    await until(lambda: not alive(pid), "the command has ended", 40)


def alive(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"
