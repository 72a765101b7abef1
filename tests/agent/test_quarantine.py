"""A module that crashes again and again is left alone, and what is known of its crashes is kept."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec
import pytest

from agent.config import ServingSettings, StatePaths
from agent.installed import Installed, ModuleSet
from agent.runtimes.evidence import MAX_CRASHES, MAX_LINES, Crash, Crashes, Evidence, Quarantine
from agent.runtimes.keeper import Keeper
from agent.runtimes.process import ProcessRuntime
from agent.sandbox.blackbox import MAX_WORDS, SIZE, BlackBox
from agent.slots import Slots
from agent.store import AgentStore
from support.built import Built, build, build_script, install, rows
from support.predict import predict
from support.waiting import until

CRASH = Crash(1.0, 7, "ab", "worker-exited", "it ended")
SETTINGS = ServingSettings(
    confine=False, drain_s=3.0, ping_every_s=0.2, ping_timeout_s=20.0, restart_first_s=0.01, restart_ceiling_s=0.05,
    quarantine_after=2,
)  # fmt: skip
# Ends when it is asked, with words of its own.
CRASHER = (
    "import os\ndef init():\n    pass\ndef run(inputs):\n    print('the valve is stuck', flush=True)\n    os._exit(9)\n"
)


@pytest.mark.parametrize(
    ("most", "times", "verdicts"),
    [
        (3, (0, 1, 2), [False, False, True]),
        (3, (0, 1, 200), [False, False, False]),
        (3, (0, 1, 2, 3, 4, 5), [False, False, True, False, False, True]),
        (1, (0,), [True]),
        (0, (0, 0, 0), [False, False, False]),
    ],
    ids=["too many", "spread out", "counted anew", "one", "never"],
)
def test_crashes_are_too_many_only_within_their_time(most: int, times: tuple[float, ...], verdicts: list[bool]) -> None:
    crashes = Crashes(most, 100.0)
    assert [crashes.note(at) for at in times] == verdicts


def test_evidence_is_bounded_and_survives_a_restart(tmp_path: Path) -> None:
    evidence = Evidence(tmp_path / "evidence")
    assert evidence.crashes("m") == ()
    long = msgspec.structs.replace(CRASH, lines=tuple(f"{n} " + "x" * 9999 for n in range(99)))
    for number in range(MAX_CRASHES + 5):
        evidence.note("m", msgspec.structs.replace(long, at=float(number)))
    kept = Evidence(tmp_path / "evidence").crashes("m")
    assert [crash.at for crash in kept] == [float(n) for n in range(5, MAX_CRASHES + 5)]
    assert len(kept[0].lines) == MAX_LINES
    assert kept[0].lines[-1].startswith("98 ")
    assert (tmp_path / "evidence" / "m.json").stat().st_size < 100_000
    assert (tmp_path / "evidence").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("damage", [b"", b"[{]", b'[{"at":"x"}]', b"\xff" * 100])
def test_damaged_evidence_is_begun_anew(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "m.json").write_bytes(damage)
    (tmp_path / "m.quarantine").write_bytes(damage)
    evidence = Evidence(tmp_path)
    assert evidence.crashes("m") == ()
    assert evidence.held("m", "ab", 0.0, 100.0) is None
    evidence.note("m", CRASH)
    assert evidence.crashes("m") == (CRASH,)


def test_a_disk_that_takes_nothing_loses_words_and_no_module(tmp_path: Path) -> None:
    (tmp_path / "evidence").write_text("a file where the folder should be")
    evidence = Evidence(tmp_path / "evidence")
    evidence.note("m", CRASH)
    evidence.hold("m", Quarantine("ab", 10.0))
    assert evidence.crashes("m") == ()


@pytest.mark.parametrize(
    ("sha256", "now", "held"),
    [("ab", 50.0, True), ("cd", 50.0, False), ("ab", 100.0, False), ("ab", -1000.0, False)],
    ids=["within its time", "another version", "over", "the clock was set back by far"],
)
def test_a_quarantine_is_of_one_version_and_ends(tmp_path: Path, sha256: str, now: float, held: bool) -> None:
    evidence = Evidence(tmp_path)
    evidence.hold("m", Quarantine("ab", 100.0, "why"))
    assert (evidence.held("m", sha256, now, longest_s=100.0) is not None) is held


def test_what_stands_in_a_black_box_is_bounded_and_harmless() -> None:
    box = BlackBox()
    assert box.read() == ""
    os.pwrite(box.handle, b"\x1b[31m\n" + b"x" * (SIZE - 6), 0)
    assert len(box.read()) == MAX_WORDS
    assert box.read().isprintable()
    box.close()


class Bench:
    def __init__(self, paths: StatePaths, store: AgentStore, settings: ServingSettings) -> None:
        self.slots, self.paths = Slots(paths.slots), paths
        self.told: list[tuple[str, str, str]] = []
        self.runtime = ProcessRuntime(paths, settings, store, self.slots, lambda stream, item: None)
        self.keeper = Keeper(self.runtime, settings, lambda: None, lambda _, *told: self.told.append(told))

    def set(self, module: Built) -> ModuleSet:
        install(self.slots, module, self.paths.staging)
        name, version = module.manifest.name, module.manifest.version
        return ModuleSet(1, 1, (Installed(name, version, module.sha256, 1, "d", verified=True),))

    @property
    def state(self) -> str:
        return self.keeper.reports()[0].state

    async def crash(self) -> None:
        await until(lambda: self.state == "serving", "the module to serve")
        before = self.keeper.reports()[0].restarts
        with pytest.raises(OSError):  # noqa: PT011 - however a connection may end
            await predict(self.runtime.address("iris"))
        await until(lambda: self.keeper.reports()[0].restarts > before, "its end")

    def told_keys(self) -> list[str]:
        return [key for key, _, _ in self.told]


@pytest.fixture
async def make(state_dir: StatePaths, agent_store: AgentStore) -> AsyncIterator[Callable[[], Bench]]:
    benches: list[Bench] = []

    def one(settings: ServingSettings = SETTINGS) -> Bench:
        benches.append(Bench(state_dir, agent_store, settings))
        return benches[-1]

    yield one
    for bench in benches:
        await bench.keeper.close()


async def test_a_module_that_crashes_too_often_is_left_alone_until_somebody_says_so(
    make: Callable[[], Bench], state_dir: StatePaths
) -> None:
    bench = make()
    await bench.keeper.start(bench.set(build_script(CRASHER)))
    for _ in range(SETTINGS.quarantine_after):
        await bench.crash()
    await until(lambda: "module-quarantined" in bench.told_keys(), "the verdict")
    assert bench.state == "failed"
    first, second = bench.runtime.evidence.crashes("iris")
    assert (first.key, first.exit_status, first.signal, first.version) == ("worker-exited", 9, "", 1)
    assert first.lines[-1] == second.lines[-1] == "the valve is stuck"
    assert first.request == "", "nobody writes down what a module does that has never crashed"
    assert second.request.startswith(f"X float32 [{len(rows(1))}x4] crc32 ")
    text = next(text for key, text, _ in bench.told if key == "module-quarantined")
    assert "mooring-agent retry iris" in text
    assert "X float32" in text
    run = await asyncio.to_thread(_retry, state_dir)
    assert run.returncode == 0, run.stderr
    assert [crash["exit_status"] for crash in json.loads(run.stdout)] == [9, 9]
    await until(lambda: bench.state == "serving", "the module, tried again")
    assert (await asyncio.to_thread(_retry, state_dir)).returncode == 1, "it is not left alone any more"


def _retry(paths: StatePaths) -> subprocess.CompletedProcess[str]:
    program = (sys.executable, "-m", "agent.cli", "retry", "iris", "--json", "--state", str(paths.root))
    return subprocess.run(program, capture_output=True, text=True, timeout=60, check=False)


async def test_a_quarantine_outlives_the_agent_and_ends_with_another_version(make: Callable[[], Bench]) -> None:
    bench = make()
    modules = bench.set(build_script(CRASHER))
    held = Quarantine(modules.modules[0].manifest_sha256, time.time() + 3600, "it crashed")
    bench.runtime.evidence.hold("iris", held)
    await bench.keeper.start(modules)
    await until(lambda: bench.state == "failed", "the module to be left alone")
    assert bench.keeper.reports()[0].restarts == 0
    await bench.keeper.switch(bench.set(build(version=2)), {})
    await until(lambda: bench.state == "serving", "the other version")


async def test_a_quarantine_ends_with_its_time(make: Callable[[], Bench]) -> None:
    bench = make()
    modules = bench.set(build())
    bench.runtime.evidence.hold("iris", Quarantine(modules.modules[0].manifest_sha256, time.time() + 1.0, "it crashed"))
    await bench.keeper.start(modules)
    await until(lambda: bench.state == "serving", "the module, tried again")


def test_a_name_that_is_none_is_not_looked_for(state_dir: StatePaths) -> None:
    program = (sys.executable, "-m", "agent.cli", "retry", "../agent", "--state", str(state_dir.root))
    run = subprocess.run(program, capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 2
    assert "expected the name of a module" in run.stderr
