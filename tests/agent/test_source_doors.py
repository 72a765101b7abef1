"""Modules with sources under the keeper: refused where the device does not allow them, handed over file by file."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from agent.config import ServingSettings, StatePaths
from agent.installed import Installed, ModuleSet
from agent.runtimes.keeper import Keeper
from agent.runtimes.process import ProcessRuntime
from agent.slots import Slots
from agent.sources.allowed import SourceNotAllowed
from agent.store import AgentStore
from modules.manifest import Runtime
from modules.sources import Directory
from support.built import Built, assemble, install
from support.waiting import until

SCRIPT = b"""
def init(): pass
def predict(inputs):
    n = len(inputs["X"])
    return {"label": [VERSION] * n, "probabilities": [[1, 0, 0]] * n}
"""


class Device:
    """A keeper with a folder `in`, one for results, and what comes out there."""

    def __init__(self, folder: Path, paths: StatePaths, store: AgentStore, **settings: Any) -> None:
        self.folder = folder
        self.slots = Slots(paths.slots)
        self.paths = paths
        for name in ("in", "out"):
            (folder / name).mkdir(exist_ok=True)
            (folder / name).chmod(0o755)
        serving = ServingSettings(ping_every_s=0.2, restart_first_s=0.01, restart_ceiling_s=0.05, **settings)
        self.runtime = ProcessRuntime(paths, serving, store, self.slots, lambda *_: None)
        self.changes = 0
        self.keeper = Keeper(self.runtime, serving, self._changed)

    def built(self, version: int) -> Built:
        source = Directory(str(self.folder / "in"), every_s=0.1, settle_s=0.0, results=str(self.folder / "out"))
        files = {"s.py": SCRIPT.replace(b"VERSION", str(version).encode())}
        built = assemble("watch", version, files, Runtime(model="", entry="s.py", sources=(source,)))
        install(self.slots, built, self.paths.staging)
        return built

    def put(self, *numbers: int) -> None:
        for number in numbers:
            (self.folder / "fresh").write_bytes(np.full((1, 4), number, "<f4").tobytes())
            (self.folder / "fresh").rename(self.folder / "in" / f"{number}")

    def results(self) -> dict[int, int]:
        """Version by number."""
        found = {}
        for path in (self.folder / "out").glob("[!.]*.json"):
            found[int(path.stem)] = json.loads(path.read_text())["outputs"][0]["data"][0]
        return found

    async def done(self, count: int) -> dict[int, int]:
        try:
            await until(lambda: len(self.results()) >= count, f"{count} results", 40)
        except TimeoutError as error:
            error.add_note(self.said())
            raise
        return self.results()

    def words(self) -> tuple[str, ...]:
        return self.keeper.reports()[0].sources if self.keeper.reports() else ()

    def said(self) -> str:
        unit = self.keeper.unit("watch")
        return f"{self.keeper.reports()} {unit and unit.failure} {self.runtime.last_words('watch')}"

    def _changed(self) -> None:
        self.changes += 1


@pytest.fixture
async def make(tmp_path: Path, state_dir: StatePaths, agent_store: AgentStore) -> AsyncIterator[Callable[..., Device]]:
    made: list[Device] = []

    def device(**settings: Any) -> Device:
        made.append(Device(tmp_path, state_dir, agent_store, **settings))
        return made[-1]

    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    yield device
    for one in made:
        await one.keeper.close()
        one.runtime.close()


def installed(built: Built) -> Installed:
    return Installed(
        built.manifest.name, built.manifest.version, built.sha256, built.manifest.version, "d", verified=True
    )


async def test_a_module_whose_source_is_not_allowed_is_refused_before_it_serves(make: Callable[..., Device]) -> None:
    device = make(sources=(f"write:{make().folder}/out",))
    module = installed(device.built(1))
    with pytest.raises(SourceNotAllowed, match=r'need ".*/in" in serving.sources') as refused:
        await device.keeper.spare(module)
    assert refused.value.key == "source-not-allowed"
    assert device.results() == {}


async def test_a_new_version_takes_over_without_a_file_lost_or_done_twice(
    make: Callable[..., Device], tmp_path: Path
) -> None:
    device = make(sources=(f"{tmp_path}/in", f"write:{tmp_path}/out"))
    first, second = installed(device.built(1)), installed(device.built(2))
    device.put(*range(5))
    await device.keeper.start(ModuleSet(1, 1, (first,)))
    await device.done(5)
    await until(lambda: device.words() == ("directory: open",), "the report to say it", 40)
    spare = await device.keeper.spare(second)
    device.put(*range(5, 10))
    await device.keeper.switch(ModuleSet(2, 1, (msgspec.structs.replace(second),)), {"watch": spare})
    device.put(*range(10, 15))
    found = await device.done(15)
    assert set(found) == set(range(15))
    assert {found[number] for number in range(5)} == {1}
    assert {found[number] for number in range(10, 15)} <= {1, 2}
    device.put(99)
    assert (await device.done(16))[99] == 2
    unit = device.keeper.unit("watch")
    assert unit is not None
    await unit.poll()
    assert unit.stats.sources[0].taken + sum(version == 1 for version in found.values()) == 16


async def test_a_worker_that_is_killed_is_followed_by_one_that_goes_on(
    make: Callable[..., Device], tmp_path: Path
) -> None:
    device = make(sources=(str(tmp_path), f"write:{tmp_path}/out"))
    await device.keeper.start(ModuleSet(1, 1, (installed(device.built(1)),)))
    device.put(1, 2)
    await device.done(2)
    unit = device.keeper.unit("watch")
    assert unit is not None
    assert unit._worker is not None
    await unit._worker.kill()
    device.put(3, 4)
    assert set(await device.done(4)) == {1, 2, 3, 4}
