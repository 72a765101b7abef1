"""Levels of confinement: what each denies a hostile module, and that a module is not run below what it requires.

Rows 33, 40, 45 and 46 of the table of attacks.
"""

from __future__ import annotations

import asyncio
import os
import platform
import shutil
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import numpy as np
import pytest

from agent.config import ServingSettings
from agent.sandbox import landlock
from agent.sandbox.bubblewrap import bubblewrap, systemd_scope
from agent.sandbox.cage import Cages
from agent.sandbox.level import level_of
from agent.sandbox.nursery import Nursery
from firmware_profiles.confinement import Confinement
from firmware_profiles.profile import DeviceProfile, Requirements, why_not
from modules.manifest import Manifest, Resources, Runtime, decode_manifest, encode_manifest
from modules.tensors import TensorSpec
from worker.driver import WorkerDriver, json_input, running_as_root, write_module
from worker.hostile import ACTS, source

X, WORD = TensorSpec("x", "FP32", (-1, 2)), TensorSpec("word", "BYTES", (-1,))
UID = 54321
QUIET = b"def init(): pass\ndef predict(i): return {'word': ['x']}\n"
LEVELS = (Confinement.PROCESS, Confinement.CONFINED, Confinement.ISOLATED)


def module(slot: Path, script: bytes = QUIET, **fields: object) -> Manifest:
    return write_module(
        slot, {"entry.py": script, "factor.txt": b"10"}, inputs=(X,), outputs=(WORD,),
        runtime=Runtime(backend="script", model="", entry="entry.py"), **fields,
    )  # fmt: skip


def isolating(slot: Path, uid: int) -> tuple[str, ...]:
    """Skips where bubblewrap does not work."""
    found = asyncio.run(Cages.find(ServingSettings(), uid, groups=False))
    if not found.bwrap:
        pytest.skip(f"bubblewrap does not work here: {'; '.join(found.possible.why_not_higher)}")
    return bubblewrap(found.bwrap, slot, uid)


def _means(level: Confinement, slot: Path) -> tuple[int, tuple[str, ...]]:
    """User and wrapper of a worker that shall reach the level. As root without a user of its own it is `process`."""
    if landlock.abi() < 1:
        pytest.skip("this kernel has no Landlock")
    if level is Confinement.PROCESS and not running_as_root():
        pytest.skip("without root, a worker with Landlock and seccomp is confined at once")
    uid = UID if running_as_root() and level is not Confinement.PROCESS else 0
    return uid, isolating(slot, uid) if level is Confinement.ISOLATED else ()


Tried = tuple[Confinement, str, dict[str, str], Path]


WAYS = [(level, forked) for forked in (False, True) for level in LEVELS]


@pytest.fixture(scope="module", params=WAYS, ids=lambda way: way[0].value + ("-forked" if way[1] else ""))
def tried(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tried]:
    """All acts, tried once by one worker of this level, be it a program of its own or forked: what it said it reached,
    and what became of each act.
    """
    if platform.machine() != "x86_64":
        pytest.skip("the hostile script calls the kernel by the numbers of x86_64")
    folder = tmp_path_factory.mktemp("hostile")
    for path in (folder, *folder.parents[:2]):
        path.chmod(0o755)
    (folder / "device.key").write_text("the key of the device")
    (folder / "device.key").chmod(0o644)  # worst case: only the sandbox stands before it
    level, forked = request.param
    uid, cage = _means(level, folder / "slot")
    abstract = f"\0mooring-test-{os.getpid()}"
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as unix:
        unix.bind(abstract)
        unix.listen()
        script = source(folder, tcp.getsockname()[1], abstract, os.getpid())
        reached, words, acts = asyncio.run(_try(folder, module(folder / "slot", script), uid, cage, forked))
    assert reached is level
    yield level, words, acts, folder
    shutil.rmtree(folder, ignore_errors=True)


@asynccontextmanager
async def _nursery(wanted: bool) -> AsyncIterator[Nursery | None]:
    if not wanted:
        yield None
        return
    nursery = Nursery()
    try:
        yield nursery
    finally:
        nursery.close()


async def _try(
    folder: Path, manifest: Manifest, uid: int, cage: tuple[str, ...], forked: bool
) -> tuple[Confinement, str, dict[str, str]]:
    async with (
        _nursery(forked) as nursery,
        WorkerDriver(folder / "slot", manifest, uid=uid, cage=cage, nursery=nursery) as worker,
    ):
        ready = await worker.serve()
        response = await worker.infer({"inputs": [json_input(np.ones((1, 2), np.float32))]})
        assert response.status == 200, response.body
        acts = dict(line.rsplit(" ", 1) for line in response.json["outputs"][0]["data"])
        return ready.level, ready.confinement, acts


@pytest.mark.parametrize("act", ACTS, ids=[f"{row}-{act}" for act, row in ACTS.items()])
def test_a_hostile_module_is_denied(tried: Tried, act: str) -> None:
    _, words, acts, _ = tried
    if "seccomp" not in words:
        pytest.skip(f"no seccomp here: {words}")
    assert acts[act] == "denied"


def test_a_hostile_module_has_tried_everything_and_left_nothing(tried: Tried) -> None:
    level, words, acts, folder = tried
    assert set(acts) == set(ACTS)
    assert level in LEVELS, words
    assert (folder / "device.key").stat().st_mode & 0o777 == 0o644
    assert not (folder / "new").exists()
    assert sorted(path.name for path in (folder / "slot").iterdir()) == ["entry.py", "factor.txt"]
    assert (folder / "slot" / "factor.txt").read_text() == "10"


@pytest.mark.parametrize("level", LEVELS, ids=lambda level: level.value)
def test_the_worker_measures_the_level_that_it_was_given(tmp_path: Path, level: Confinement) -> None:
    for path in (tmp_path, *tmp_path.parents[:2]):
        path.chmod(0o755)
    manifest = module(tmp_path / "slot")
    uid, cage = _means(level, tmp_path / "slot")

    async def reached() -> Confinement:
        async with WorkerDriver(tmp_path / "slot", manifest, uid=uid, cage=cage) as worker:
            return (await worker.start()).level

    assert asyncio.run(reached()) is level


@pytest.mark.parametrize("whose", ["module", "device"])
async def test_a_module_is_not_loaded_below_the_level_that_it_or_the_device_requires(
    tmp_path: Path, whose: str
) -> None:
    loud = b"import sys\nraise SystemExit('loaded')\n"
    requires = Requirements(confinement=Confinement.ISOLATED) if whose == "module" else Requirements()
    floor = Confinement.ISOLATED if whose == "device" else Confinement.UNKNOWN
    manifest = module(tmp_path / "slot", loud, requires=requires)
    async with WorkerDriver(tmp_path / "slot", manifest, floor=floor) as worker:
        broken = await worker.start_broken()
        assert broken.key == "confine-failed"
        assert f"this {whose} requires" in broken.text or f"the {whose} requires" in broken.text
        assert "at least isolated, got " in broken.text
        assert "nothing was loaded" in broken.text


async def test_a_device_that_confines_nothing_does_not_reach_the_lowest_floor(tmp_path: Path) -> None:
    manifest = module(tmp_path / "slot")
    async with WorkerDriver(tmp_path / "slot", manifest, confine=False, floor=Confinement.PROCESS) as worker:
        assert (await worker.start_broken()).key == "confine-failed"


@pytest.mark.parametrize(
    ("words", "root", "level"),
    [
        ("", False, Confinement.NONE),
        ("rlimits", False, Confinement.PROCESS),
        ("rlimits+landlock:7", False, Confinement.PROCESS),
        ("rlimits+landlock:7+seccomp", False, Confinement.CONFINED),
        ("rlimits+nocaps+landlock:7+seccomp", True, Confinement.PROCESS),
        ("uid+rlimits+landlock:1+seccomp", True, Confinement.CONFINED),
        ("uid+rlimits+landlock:7+seccomp+netns+mntns", True, Confinement.CONFINED),
        ("uid+rlimits+landlock:7+seccomp+netns+pidns+mntns", True, Confinement.ISOLATED),
        ("rlimits+netns+pidns+mntns", False, Confinement.PROCESS),
    ],
)
def test_the_level_is_that_of_the_weakest_wall(words: str, root: bool, level: Confinement) -> None:
    assert level_of(words.split("+"), root) is level


def test_a_device_that_cannot_confine_enough_is_refused_before_anything_is_downloaded() -> None:
    requires = Requirements(confinement=Confinement.ISOLATED)
    profile = DeviceProfile("pi", "aarch64", confinement="confined")
    assert [str(reason) for reason in why_not(requires, profile)] == [
        "confinement: expected at least isolated, got confined"
    ]
    assert not why_not(requires, msgspec.structs.replace(profile, confinement="isolated"))
    assert not why_not(requires, msgspec.structs.replace(profile, confinement="")), "unknown refuses nothing"
    assert not why_not(requires, msgspec.structs.replace(profile, confinement="of-a-newer-agent"))


def test_a_requirement_that_asks_for_nothing_is_not_written(tmp_path: Path) -> None:
    plain = module(tmp_path / "slot")
    assert b"confinement" not in encode_manifest(plain)
    asking = msgspec.structs.replace(plain, requires=Requirements(confinement=Confinement.CONFINED))
    assert b'"confinement":"confined"' in encode_manifest(asking)
    assert decode_manifest(encode_manifest(asking)) == asking


def test_a_scope_of_systemd_carries_the_modules_limits() -> None:
    command = systemd_scope("/usr/bin/systemd-run", "mooring-worker-m-1", Resources(memory_mib=100))
    assert command[:2] == ("/usr/bin/systemd-run", "--scope")
    assert command[-1] == "--"
    assert {"--property=MemoryMax=356M", "--property=MemorySwapMax=0", "--property=TasksMax=512"} <= set(command)
    unlimited = systemd_scope("/usr/bin/systemd-run", "mooring-worker-m-1", Resources())
    assert not [word for word in unlimited if "Memory" in word]


@pytest.mark.skipif(not Path("/run/systemd/system").is_dir(), reason="systemd is not process 1 here")
@pytest.mark.skipif(not running_as_root(), reason="needs root")
def test_a_scope_of_systemd_runs_a_command() -> None:
    command = systemd_scope("systemd-run", f"mooring-test-{os.getpid()}", Resources(memory_mib=64))
    assert os.spawnvp(os.P_WAIT, command[0], [*command, "/bin/true"]) == 0


def test_the_sandbox_shows_the_worker_its_slot_and_nothing_of_the_agents_state(tmp_path: Path) -> None:
    command = bubblewrap("bwrap", tmp_path / "slots" / "a", 0)
    binds = {command[at + 2] for at, word in enumerate(command) if word.startswith("--ro-bind")}
    assert str(tmp_path / "slots" / "a") in binds
    assert not {"/", "/etc", "/home", "/root", "/var", "/run", str(tmp_path), str(tmp_path / "slots")} & binds
    assert not [word for word in command if word in ("--bind", "--dev-bind", "--share-net")]
    assert "--unshare-all" in command
    assert "--cap-add" not in command
