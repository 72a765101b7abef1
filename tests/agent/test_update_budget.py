"""Room for an update: what is counted, what is removed for it and in which order, and what is never removed."""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from agent.config import AgentConfig, LinkLimits, StatePaths
from agent.errors import UpdateError
from agent.link import Link
from agent.slots import Slots
from agent.transfer.fetch import Fetcher
from agent.update import budget
from agent.update.budget import Budget, Kept, allocated
from firmware_profiles.profile import Requirements
from modules.bundle import sha256_hex
from modules.manifest import Manifest, Runtime
from support.built import Built, assemble, install

SIZE = 1024 * 1024
NOBODY: frozenset[str] = frozenset()


def module(version: int, *, shared: bool = False, requires: Requirements = Requirements()) -> Built:  # noqa: B008
    files = {"score.py": b"", "weights.bin": os.urandom(SIZE), "table.bin": bytes(SIZE) if shared else b"1"}
    runtime = Runtime(backend="script", model="score.py", entry="score.py")
    return assemble("m", version, files, runtime, requires=requires)


class Device:
    """A state directory on a disk of a size of our choosing, all of which is ours."""

    def __init__(self, paths: StatePaths, config: AgentConfig, monkeypatch: pytest.MonkeyPatch) -> None:
        self.paths, self.slots, self.capacity = paths, Slots(paths.slots, paths.staging), 0
        link = Link("cam-17", "hub", 8883, ssl.create_default_context, LinkLimits())
        self.fetcher = Fetcher(link, paths.staging, config.fetch, self.slots.find)
        self.budget = Budget(config, paths.staging, self.slots, self.fetcher)
        monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_bavail=self.free, f_frsize=1))

    @property
    def free(self) -> int:
        return self.capacity - sum(allocated(path) for path in self.paths.slots.rglob("*.bin"))

    def install(self, built: Built) -> str:
        install(self.slots, built, self.paths.staging)
        self.fetcher.clear()  # as after an update: the slot's is the only name of each file
        return built.sha256

    def check(self, new: Manifest, needed: set[str], spare: frozenset[str] | set[str] = NOBODY) -> None:
        self.budget.check_disk([new], Kept(frozenset(needed), frozenset(spare)))

    def held(self) -> set[str]:
        return {path.name for path in self.paths.slots.iterdir()}

    def names(self, *digests: str) -> set[str]:
        return {self.slots.path(digest).name for digest in digests}


@pytest.fixture
def device(state_dir: StatePaths, agent_config: AgentConfig, monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    made = Device(state_dir, agent_config, monkeypatch)
    yield made
    made.fetcher.close()


def test_rubbish_goes_first_then_the_way_back_and_what_serves_never(device: Device) -> None:
    current, previous, left = (device.install(module(version)) for version in (1, 2, 3))
    new = module(4).manifest
    device.capacity = 6 * SIZE
    device.check(new, {current}, {previous})
    assert device.held() == device.names(current, previous, left), "there is room: nothing needs to go"
    device.capacity = 4 * SIZE - SIZE // 2
    device.check(new, {current}, {previous})
    assert device.held() == device.names(current, previous)
    device.capacity = 3 * SIZE - SIZE // 2
    device.check(new, {current}, {previous})
    assert device.held() == device.names(current)
    device.capacity = 2 * SIZE - SIZE // 2
    with pytest.raises(
        UpdateError, match=r"expected 1\.0 MiB for new files and 0\.0 MiB to spare .* got 0\.5 MiB"
    ) as e:
        device.check(new, {current}, {previous})
    assert e.value.key == "disk-budget"
    assert device.held() == device.names(current)


def test_the_slot_of_the_update_under_way_is_kept(device: Device) -> None:
    current, coming, _ = (device.install(module(version)) for version in (1, 2, 3))
    device.capacity = 4 * SIZE - SIZE // 2
    device.check(module(5).manifest, {current, coming})
    assert device.held() == device.names(current, coming)


def test_what_has_arrived_needs_no_room_and_staged_rubbish_gives_some(device: Device) -> None:
    current = device.install(module(1))
    built = module(2)
    weights = built.files["weights.bin"]
    part = device.fetcher.path(sha256_hex(weights))
    part.with_name(f"{part.name}.part").write_bytes(weights[: SIZE // 2])
    rubbish = device.fetcher.path("0" * 64)
    rubbish.write_bytes(b"x")
    device.capacity = 2 * SIZE - SIZE // 4  # three quarters are free, half is missing
    device.check(built.manifest, {current})
    device.capacity = 2 * SIZE - 3 * SIZE // 4
    with pytest.raises(UpdateError, match="disk"):
        device.check(built.manifest, {current})
    assert not rubbish.exists()
    assert part.with_name(f"{part.name}.part").exists()


def test_a_file_that_another_slot_has_is_copied_and_counted(device: Device) -> None:
    current = device.install(module(1, shared=True))
    device.capacity = 4 * SIZE - SIZE // 2  # one and a half are free, two are needed
    with pytest.raises(UpdateError, match=r"expected 2\.0 MiB"):
        device.check(module(2, shared=True).manifest, {current})


HALF_A_GIB = 512 * 1024


@pytest.mark.parametrize(
    ("words", "fits"),
    [
        (f"MemAvailable: {HALF_A_GIB} kB\n", True),
        (f"MemAvailable: {HALF_A_GIB - 1} kB\n", False),
        ("MemFree: 1 kB\n", True),
        ("", True),
    ],
)
def test_memory_for_spare_workers_is_what_the_kernel_calls_available(
    words: str, fits: bool, device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text(words)
    monkeypatch.setattr(budget, "MEMINFO", meminfo)
    trial = [module(1, requires=Requirements(memory_mib=256)).manifest] * 2
    check: Callable[[], None] = lambda: device.budget.check_memory(trial)  # noqa: E731
    if fits:
        check()
    else:
        with pytest.raises(UpdateError, match=r"expected 512\.0 MiB of memory .* got 512\.0 MiB") as error:
            check()
        assert error.value.key == "memory-budget"


def test_the_memory_check_can_be_switched_off(device: Device, agent_config: AgentConfig) -> None:
    config = msgspec.structs.replace(
        agent_config, update=msgspec.structs.replace(agent_config.update, check_memory=False)
    )
    off = Budget(config, device.paths.staging, device.slots, device.fetcher)
    off.check_memory([module(1, requires=Requirements(memory_mib=2**40)).manifest])
