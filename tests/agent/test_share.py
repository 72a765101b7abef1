"""A module's part of the machine: processors, priority, and one verdict for want of memory."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import msgspec
import pytest

from agent.config import StatePaths
from agent.errors import WorkerError
from agent.sandbox.cgroup import Cgroup, kernel_kills
from agent.sandbox.given import Given
from agent.sandbox.host import spawn
from agent.sandbox.protocol import Start
from agent.sandbox.share import SHARES, cpus, limited, share, threads
from agent.slots import Slots
from cloud_hub.building.manifests import understood
from firmware_profiles.profile import Requirements
from modules.errors import ManifestError
from modules.manifest import NEWER_AGENT, Resources, Runtime, SamplingPolicy, decode_manifest, encode_manifest
from modules.messages import Stream
from support.built import build, build_script, install

FOUR = (0, 1, 2, 3)


def ignore(stream: Stream, payload: bytes) -> None:
    """What workers say of their predictions does not matter here."""


@pytest.mark.parametrize(
    ("resources", "available", "pinned", "capped", "expected"),
    [
        (Resources(), FOUR, False, True, ()),
        (Resources(), FOUR, True, True, (1, 2, 3)),
        (Resources(priority="low"), FOUR, True, True, (2, 3)),
        (Resources(priority="high"), FOUR, True, True, ()),
        (Resources(), (5,), True, True, ()),
        (Resources(priority="low"), (0, 1), True, True, (1,)),
        (Resources(cpu_percent=150), FOUR, False, True, ()),
        (Resources(cpu_percent=150), FOUR, False, False, (2, 3)),
        (Resources(cpu_percent=50), FOUR, True, False, (3,)),
        (Resources(cpu_percent=900), FOUR, False, False, ()),
    ],
)
def test_processors_go_by_priority_and_by_what_the_module_may_take(
    resources: Resources, available: tuple[int, ...], pinned: bool, capped: bool, expected: tuple[int, ...]
) -> None:
    assert cpus(resources, available, pinned, capped) == expected


@pytest.mark.parametrize(
    ("resources", "available", "pinned", "expected"),
    [
        (Resources(), 4, False, 3),
        (Resources(), 1, False, 1),
        (Resources(), 3, True, 3),
        (Resources(threads=7), 4, False, 7),
        (Resources(cpu_percent=200), 8, False, 2),
        (Resources(cpu_percent=50), 8, False, 1),
    ],
)
def test_a_prediction_gets_the_threads_that_are_paid_for(
    resources: Resources, available: int, pinned: bool, expected: int
) -> None:
    assert threads(resources, available, pinned) == expected


def test_what_is_of_high_priority_gets_more_and_goes_last() -> None:
    high, normal, low = (SHARES[name] for name in ("high", "normal", "low"))
    assert high.weight > normal.weight > low.weight > 0
    assert 0 < high.oom_score < normal.oom_score < low.oom_score <= 1000
    assert high.nice == normal.nice == 0 < low.nice
    assert share(Resources(priority="low")) is low


def test_the_modules_word_on_accelerator_memory_goes_before_the_devices() -> None:
    assert limited(Given(), Resources(), False, True, 512).gpu_memory_mib == 512
    assert limited(Given(), Resources(gpu_memory_mib=64), False, True, 512).gpu_memory_mib == 64


@pytest.mark.parametrize(("name", "value"), [("cpu_percent", -1), ("threads", -1), ("gpu_memory_mib", 2**30)])
def test_limits_that_are_none_are_refused(name: str, value: int) -> None:
    with pytest.raises(ManifestError, match=rf"resources\.{name}: expected 0 to"):
        msgspec.structs.replace(Resources(), **{name: value})


def test_only_a_manifest_that_asks_for_it_needs_a_newer_agent() -> None:
    manifest = build().manifest
    assert b"priority" not in encode_manifest(manifest)
    for resources in (Resources(priority="low"), Resources(cpu_percent=50), Resources(gpu_memory_mib=1)):
        assert understood(Requirements(), None, Runtime(), resources).agent_version == NEWER_AGENT
        asking = msgspec.structs.replace(manifest, resources=resources)
        assert decode_manifest(encode_manifest(asking)) == asking
    assert understood(Requirements(), None, Runtime(), Resources(threads=2, memory_mib=9)).agent_version == ""
    with pytest.raises(ManifestError, match="priority"):
        decode_manifest(encode_manifest(manifest).replace(b'"resources":{}', b'"resources":{"priority":"urgent"}'))


def test_a_group_caps_the_processors_and_says_what_memory_was_taken(tmp_path: Path) -> None:
    cgroup = Cgroup(tmp_path)
    assert not cgroup.counts_processors()
    assert not cgroup.cap(50)
    for name, text in (("cpu.max", ""), ("memory.peak", "20971520\n"), ("memory.max", "max\n")):
        (tmp_path / name).write_text(text)
    assert cgroup.counts_processors()
    assert cgroup.cap(150)
    assert (tmp_path / "cpu.max").read_text() == "150000 100000"
    assert cgroup.cap(0)
    assert (tmp_path / "cpu.max").read_text().startswith("max 100000")
    assert cgroup.memory() == "peak 20 MiB"
    (tmp_path / "memory.max").write_text("33554432\n")
    assert cgroup.memory() == "peak 20 MiB, limit 32 MiB"


def test_the_kernels_count_of_kills_is_read(tmp_path: Path) -> None:
    (tmp_path / "vmstat").write_text("nr_free_pages 1\noom_kill 7\n")
    assert kernel_kills(tmp_path / "vmstat") == 7
    assert kernel_kills(tmp_path / "nothing") == 0
    assert kernel_kills() >= 0


async def test_a_worker_is_pinned_and_goes_sooner_than_others_when_memory_runs_out(state_dir: StatePaths) -> None:
    one = min(os.sched_getaffinity(0))
    source = (
        "import os\ndef init():\n"
        "    print(sorted(os.sched_getaffinity(0)), open('/proc/self/oom_score_adj').read().strip(), flush=True)\n"
        "def run(data):\n    return 1\n"
    )
    worker = await _started(state_dir, source, Given(cpus=(one,), oom_score=800), confine=False)
    assert worker == [f"[{one}] 800"]


async def _started(paths: StatePaths, source: str, given: Given, confine: bool) -> list[str]:
    """What it printed."""
    module = build_script(source)
    slot = install(Slots(paths.slots), module, paths.staging)
    worker = await spawn("m", (), paths.root / "log", ignore)
    order = Start(
        str(slot.path), module.manifest_bytes, SamplingPolicy(), (), confine=confine, given=given
    )  # fmt: skip
    try:
        await worker.start(order, 60.0)
    finally:
        await worker.kill()
    return worker.last_lines()


@pytest.mark.parametrize(
    ("words", "status"),
    [
        ("raise MemoryError", 1),
        ("sys.stderr.write(\"terminate called after throwing an instance of 'std::bad_alloc'\\n\"); os.abort()", 0),
    ],
    ids=["the interpreter", "a library"],
)
async def test_a_worker_that_ends_for_want_of_memory_has_one_key(tmp_path: Path, words: str, status: int) -> None:
    program = (sys.executable, "-c", f"import os, sys; {words}")
    worker = await spawn("m", (), tmp_path / "log", ignore, program)
    with pytest.raises(WorkerError, match="for want of memory") as caught:
        await worker.ping(30.0)
    assert caught.value.key == "out-of-memory"


async def test_words_about_memory_of_a_worker_that_ended_well_are_no_verdict(tmp_path: Path) -> None:
    program = (sys.executable, "-c", "print('MemoryError')")
    worker = await spawn("m", (), tmp_path / "log", ignore, program)
    with pytest.raises(WorkerError, match="exit status 0") as caught:
        await worker.ping(30.0)
    assert caught.value.key == "worker-exited"
    assert worker.last_lines() == ["MemoryError"]


async def test_a_module_that_takes_more_than_its_memory_is_told_its_limit_and_its_peak(state_dir: StatePaths) -> None:
    module = build_script("held = bytearray(1 << 30)\ndef init():\n    pass\ndef run(data):\n    return 1\n")
    manifest = msgspec.structs.replace(module.manifest, resources=Resources(memory_mib=64))
    slot = install(Slots(state_dir.slots), module, state_dir.staging)
    worker = await spawn("m", (), state_dir.root / "log", ignore)
    order = Start(str(slot.path), encode_manifest(manifest), SamplingPolicy(), ())
    for folder in (state_dir.root, state_dir.slots, *state_dir.root.parents[:2]):
        folder.chmod(0o755)
    with pytest.raises(WorkerError, match=r"peak \d+ MiB mapped, limit \d+ MiB") as caught:
        await worker.start(order, 60.0)
    assert caught.value.key == "out-of-memory"
    await asyncio.wait_for(worker.kill(), 20)
