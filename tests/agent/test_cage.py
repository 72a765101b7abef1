"""What stands around workers: control groups on a tree of files like the kernel's, bubblewrap and levels for real."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from agent.config import ServingSettings, StatePaths
from agent.errors import WorkerError
from agent.installed import Installed, ModuleSet
from agent.runtimes.keeper import Keeper
from agent.runtimes.process import ProcessRuntime
from agent.runtimes.users import first_uid
from agent.sandbox.cage import Cage, Cages
from agent.sandbox.cgroup import MEMBERSHIP, ROOT, Cgroup, CgroupError, Subtree
from agent.sandbox.host import spawn
from agent.sandbox.protocol import Start
from agent.slots import Slots
from agent.store import AgentStore
from firmware_profiles.confinement import Confinement
from modules.manifest import Resources, SamplingPolicy
from support.built import build, install
from support.predict import predict
from support.waiting import until

SERVING = ServingSettings(ping_every_s=0.2, restart_first_s=0.01, restart_ceiling_s=0.05, drain_s=3.0)


def group(path: Path, controllers: str = "cpu memory pids", procs: str = "") -> Path:
    """The files of a control group. On a real tree the kernel makes them."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "cgroup.controllers").write_text(controllers)
    (path / "cgroup.procs").write_text(procs)
    for name in ("cgroup.subtree_control", "cgroup.kill", "memory.max", "memory.swap.max", "memory.oom.group",
                 "pids.max", "cpu.weight"):  # fmt: skip
        (path / name).write_text("")
    (path / "memory.events").write_text("low 0\nhigh 0\nmax 0\noom 0\noom_kill 0\noom_group_kill 0\n")
    return path


@pytest.fixture
def tree(tmp_path: Path) -> tuple[Path, Path]:
    """A tree in which this process is alone in a group that is its own; and who says so."""
    own = group(tmp_path / "cgroup" / "mooring.service", procs=f"{os.getpid()}\n")
    group(tmp_path / "cgroup")
    group(own / "agent")
    group(own / "modules")
    membership = tmp_path / "membership"
    membership.write_text("0::/mooring.service\n")
    return tmp_path / "cgroup", membership


def test_the_agent_moves_into_a_leaf_and_hands_the_controllers_down(tree: tuple[Path, Path]) -> None:
    Subtree.open(*tree)
    own = tree[0] / "mooring.service"
    assert (own / "agent" / "cgroup.procs").read_text() == str(os.getpid())
    assert (own / "cgroup.subtree_control").read_text() == "+memory +pids +cpu"
    assert (own / "modules" / "cgroup.subtree_control").read_text() == "+memory +pids +cpu"


def test_an_agent_that_starts_again_finds_itself_in_its_leaf(tree: tuple[Path, Path]) -> None:
    tree[1].write_text("0::/mooring.service/agent\n")
    made = group(tree[0] / "mooring.service" / "modules" / "m")
    assert Subtree.open(*tree).make("m", Resources()).path == made


def test_a_module_gets_its_limits(tree: tuple[Path, Path]) -> None:
    subtree = Subtree.open(*tree)
    path = group(tree[0] / "mooring.service" / "modules" / "m")
    subtree.make("m", Resources(memory_mib=100))
    said = {
        name: (path / name).read_text() for name in ("memory.max", "memory.swap.max", "memory.oom.group", "pids.max")
    }
    assert said == {
        "memory.max": str(356 * 2**20), "memory.swap.max": "0", "memory.oom.group": "1", "pids.max": "512"
    }  # fmt: skip
    assert (path / "cpu.weight").read_text() == "50"
    (path / "memory.max").write_text("")
    subtree.make("m", Resources())
    assert (path / "memory.max").read_text() == "", "no limit was asked for"


def test_groups_that_could_not_go_with_their_workers_go_before_the_next(tree: tuple[Path, Path]) -> None:
    subtree = Subtree.open(*tree)
    modules = tree[0] / "mooring.service" / "modules"
    in_use = group(modules / "m-2")
    (modules / "m-1").mkdir()  # emptied since; one in use cannot be removed
    group(modules / "m-3")
    subtree.make("m-3", Resources())
    assert not (modules / "m-1").exists()
    assert in_use.exists()


@pytest.mark.parametrize(
    ("controllers", "procs", "membership", "words"),
    [
        ("cpu pids", "{me}", "0::/mooring.service\n", "memory is missing"),
        ("cpu memory pids", "{me}\n1\n", "0::/mooring.service\n", "no process but the agent in it, got 1 more"),
        ("cpu memory pids", "{me}", "4:memory:/x\n", "control groups of version 2, got none"),
        ("cpu memory pids", "{me}", "0::/elsewhere\n", "memory is missing"),
    ],
)
def test_a_tree_that_is_not_the_agents_to_divide_is_left_alone(
    tree: tuple[Path, Path], controllers: str, procs: str, membership: str, words: str
) -> None:
    own = tree[0] / "mooring.service"
    (own / "cgroup.controllers").write_text(controllers)
    (own / "cgroup.procs").write_text(procs.format(me=os.getpid()))
    tree[1].write_text(membership)
    with pytest.raises(CgroupError, match=words):
        Subtree.open(*tree)
    assert (own / "agent" / "cgroup.procs").read_text() == ""


@pytest.fixture
def real_subtree() -> Subtree:
    try:
        return Subtree.open(ROOT, MEMBERSHIP)
    except CgroupError as error:
        pytest.skip(f"needs a control group (version 2) of its own: {error}")


async def test_a_worker_that_takes_all_memory_is_killed_by_the_kernel_and_said_so(
    real_subtree: Subtree, state_dir: StatePaths
) -> None:
    module = build()
    slot = install(Slots(state_dir.slots), module, state_dir.staging)
    hungry = "import sys, time; time.sleep(1); held = [bytearray(1 << 20) for _ in range(100_000)]"
    cage = Cage((), real_subtree.make("hungry", Resources(memory_mib=1)))
    program = (sys.executable, "-c", hungry)
    worker = await spawn("m", (), state_dir.root / "log", lambda stream, item: None, program, cage)
    with pytest.raises(WorkerError) as caught:
        await worker.start(Start(str(slot.path), module.manifest_bytes, SamplingPolicy(), ()), 30.0)
    assert caught.value.key == "out-of-memory"


async def test_what_the_kernel_counts_as_killed_for_memory_is_the_verdict(tree: tuple[Path, Path]) -> None:
    """The same on a tree of files, for machines that have no control groups to give."""
    cgroup = Cgroup(group(tree[0] / "mooring.service" / "modules" / "m"))
    program = (sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    (cgroup.path / "memory.events").write_text("oom 1\noom_kill 1\n")
    worker = await spawn("m", (), tree[0] / "log", lambda stream, item: None, program, Cage((), cgroup))
    with pytest.raises(WorkerError, match="killed for want of memory") as caught:
        await worker.ping(20.0)
    assert caught.value.key == "out-of-memory"
    assert str(worker.pid) in (cgroup.path / "cgroup.procs").read_text() or worker.exit_code == -signal.SIGKILL


def test_a_process_moves_in_with_its_children(tmp_path: Path) -> None:
    cgroup = Cgroup(group(tmp_path / "m"))
    moved: list[str] = []
    with subprocess.Popen(["sh", "-c", "sleep 30 & wait"]) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        asyncio.run(until(lambda: children.read_text() != "", "the shell's child"))
        child = children.read_text().split()[0]
        cgroup.admit(process.pid)
        moved.append((cgroup.path / "cgroup.procs").read_text())
        os.kill(int(child), signal.SIGKILL)
        process.kill()
    assert moved == [child.ljust(len(moved[0]))] or moved[0].startswith(child), "the child came last"


def test_a_process_that_is_gone_needs_no_group(tmp_path: Path) -> None:
    with pytest.raises(CgroupError, match="does not move in"):
        Cgroup(tmp_path / "nothing").admit(os.getpid())


@pytest.fixture
async def cages() -> Cages:
    return await Cages.find(SERVING, first_uid(SERVING), groups=False)


async def test_what_is_possible_here_is_tried_and_what_is_missing_is_named(cages: Cages) -> None:
    possible = cages.possible
    assert possible.level.reaches(Confinement.PROCESS)
    assert "rlimits" in possible.words
    if possible.level is not Confinement.ISOLATED:
        assert possible.why_not_higher


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"isolation": "off"}, "serving.isolation is off"),
        ({"confine": False}, "serving.confine is false"),
    ],
)
async def test_what_the_settings_forbid_is_not_possible(settings: dict[str, object], reason: str) -> None:
    chosen = msgspec.structs.replace(SERVING, **settings)
    possible = (await Cages.find(chosen, first_uid(chosen), groups=False)).possible
    assert possible.level is not Confinement.ISOLATED
    assert reason in possible.why_not_higher


async def test_a_bubblewrap_that_does_not_work_is_done_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "bwrap"
    broken.write_text("#!/bin/sh\necho 'bwrap: No permissions to create a new namespace' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    found = await Cages.find(SERVING, first_uid(SERVING), groups=False)
    assert found.bwrap == ""
    assert found.possible.level.reaches(Confinement.PROCESS)
    assert "bubblewrap does not work here: bwrap: No permissions to create a new namespace" in (
        found.possible.why_not_higher
    )


@pytest.fixture
def public(tmp_path: Path) -> None:
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)


@pytest.mark.usefixtures("public")
@pytest.mark.parametrize("preload", ["on", "off"])
async def test_a_module_in_namespaces_of_its_own_serves_and_is_started_again(
    cages: Cages, state_dir: StatePaths, agent_store: AgentStore, preload: str
) -> None:
    if not cages.bwrap:
        pytest.skip(f"bubblewrap does not work here: {'; '.join(cages.possible.why_not_higher)}")
    slots, module = Slots(state_dir.slots), build()
    install(slots, module, state_dir.staging)
    for folder in (state_dir.root, state_dir.slots):
        folder.chmod(0o711)
    settings = msgspec.structs.replace(SERVING, isolation="require", preload=preload)
    runtime = ProcessRuntime(state_dir, settings, agent_store, slots, lambda stream, item: None, cages)
    keeper = Keeper(runtime, settings, lambda: None)
    await keeper.start(ModuleSet(1, 1, (Installed("iris", 1, module.sha256, 1, "d", verified=True),)))
    try:
        await until(lambda: keeper.reports()[0].state == "serving", "the module")
        report = keeper.reports()[0]
        assert (report.level, report.confinement.split("+")[-1]) == ("isolated", "bubblewrap")
        assert await predict(report.endpoint) == [0], "the listening sockets came in from outside"
        unit = keeper.unit("iris")
        assert unit is not None
        assert unit._worker is not None
        os.kill(unit._worker.pid, signal.SIGKILL)
        await until(lambda: keeper.reports()[0].restarts == 1, "the watchdog")
        await until(lambda: keeper.reports()[0].state == "serving", "the next worker")
        assert await predict(report.endpoint) == [0]
    finally:
        await keeper.close()


async def test_a_device_that_requires_isolation_and_has_none_runs_nothing(
    state_dir: StatePaths, agent_store: AgentStore
) -> None:
    slots, module = Slots(state_dir.slots), build()
    install(slots, module, state_dir.staging)
    settings = msgspec.structs.replace(SERVING, isolation="require")
    runtime = ProcessRuntime(state_dir, settings, agent_store, slots, lambda stream, item: None)
    with pytest.raises(WorkerError, match="this device requires at least isolated") as caught:
        await runtime.load(Installed("iris", 1, module.sha256, 1, "d", verified=True))
    assert caught.value.key == "confine-failed"
    runtime.close()
