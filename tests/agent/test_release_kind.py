"""A new agent in probation: what makes it healthy, and what takes it back. Wheels and environments are elsewhere."""

from __future__ import annotations

import asyncio

import pytest

from agent.config import StatePaths
from agent.errors import TrustError
from agent.installed import Installed, ModuleSet
from agent.release.environment import Environments
from agent.release.kind import AgentReleases, release_of
from agent.release.launcher import INSTALLED, RELEASE
from agent.release.pointer import CURRENT_BOOTS, Pointer, load, next_start, save, tried
from agent.slots import Slots
from agent.trust_checks import Assigned, read_manifest
from agent.update.probation import Verdict
from modules.bundle import Chunk, FileEntry, sha256_hex
from modules.manifest import Health, Lineage, Manifest, Runtime, encode_manifest, manifest_digest
from modules.targets import AGENT_MODULE, AGENT_PUBLISHER, DirectorCustom, TargetPath

WHEEL = b"what a wheel holds does not matter here"
FILE = FileEntry("mooring-9.0-py3-none-any.whl", len(WHEEL), sha256_hex(WHEEL), (Chunk(sha256_hex(WHEEL), len(WHEEL)),))
MANIFEST = Manifest(
    name=AGENT_MODULE, version=1, profile="generic-x86_64", lineage=Lineage(AGENT_MODULE, 1), inputs=(), outputs=(),
    files=(FILE,), runtime=Runtime(kind="agent", backend="script", model=""),
    health=Health(probation_s=10.0, probation_deadline_s=100.0),
)  # fmt: skip
BYTES = encode_manifest(MANIFEST)
MODULE = Installed(AGENT_MODULE, 1, manifest_digest(BYTES), 5, "rollout-1", kind="agent")
TARGET = ModuleSet(modules=(MODULE,))


class Bench:
    """One device's releases, with the module in its slot; `asked` counts how often it wanted to be started again."""

    def __init__(self, paths: StatePaths) -> None:
        slots = Slots(paths.slots, paths.staging)
        paths.staging.joinpath(FILE.sha256).write_bytes(WHEEL)
        slots.make(BYTES, MANIFEST, lambda entry: paths.staging / entry.sha256)
        self.state, self.asked, self.online = paths.root, 0, asyncio.Event()
        self.releases = AgentReleases(paths.root, Environments(paths.root, 1), slots, self.online, self._restart)

    def _restart(self) -> None:
        self.asked += 1


@pytest.fixture
async def bench(state_dir: StatePaths, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setenv(RELEASE, INSTALLED)
    return Bench(state_dir)


def becomes_the_new_one(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    pointer, release = next_start(load(bench.state), lambda release: True)
    save(bench.state, pointer)
    monkeypatch.setenv(RELEASE, release)


async def test_activating_arms_the_launcher_and_ends_nothing(bench: Bench) -> None:
    await bench.releases.activate(TARGET, [MODULE])
    assert (load(bench.state).trial, load(bench.state).trial_s, bench.asked) == (release_of(MODULE), 220, 0)


async def test_the_old_agent_makes_way_once_probation_is_written_down(bench: Bench) -> None:
    await bench.releases.activate(TARGET, [MODULE])
    judgement = await bench.releases.judge(MODULE, None, 0.0)
    assert (judgement.verdict, bench.asked) == (Verdict.WAITING, 1)


async def test_the_new_agent_is_healthy_after_its_probation_with_the_hub_reached(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.online.set()
    await bench.releases.activate(TARGET, [MODULE])
    becomes_the_new_one(bench, monkeypatch)
    assert (await bench.releases.judge(MODULE, None, 9.9)).verdict is Verdict.WAITING
    assert (await bench.releases.judge(MODULE, None, 10.0)).verdict is Verdict.HEALTHY
    await bench.releases.commit(TARGET)
    assert load(bench.state) == Pointer(current=release_of(MODULE), online=True)
    assert bench.asked == 0
    assert [report.state for report in bench.releases.reports(TARGET)] == ["serving"]


async def test_an_agent_that_does_not_reach_the_hub_is_taken_back(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.online.set()
    await bench.releases.activate(TARGET, [MODULE])
    bench.online.clear()
    becomes_the_new_one(bench, monkeypatch)
    assert (await bench.releases.judge(MODULE, None, 99.0)).verdict is Verdict.WAITING
    judgement = await bench.releases.judge(MODULE, None, 100.0)
    assert (judgement.verdict, judgement.key) == (Verdict.UNHEALTHY, "agent-offline")
    await bench.releases.revert(ModuleSet())
    assert (load(bench.state).wanted, bench.asked) == ("", 1)


async def test_an_agent_changed_without_a_connection_need_not_have_one(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bench.releases.activate(TARGET, [MODULE])
    becomes_the_new_one(bench, monkeypatch)
    assert (await bench.releases.judge(MODULE, None, 10.0)).verdict is Verdict.HEALTHY


async def test_an_agent_that_finds_the_trial_given_up_reverts_with_the_reason(bench: Bench) -> None:
    pointer = tried(Pointer(), release_of(MODULE), 60, online=True)
    save(bench.state, next_start(pointer, lambda release: False)[0])
    judgement = await bench.releases.judge(MODULE, None, 0.0)
    assert (judgement.verdict, judgement.key, bench.asked) == (Verdict.UNHEALTHY, "agent-ended", 0)
    assert "its files are not whole" in judgement.text


async def test_putting_back_what_runs_already_asks_for_nothing(bench: Bench) -> None:
    for _ in range(2):
        await bench.releases.revert(ModuleSet())
        await bench.releases.commit(ModuleSet())
    assert bench.asked == 0


async def test_an_agent_in_the_place_of_a_release_that_cannot_stay_up_is_left_running(bench: Bench) -> None:
    """The launcher runs the installed agent then; a commit of anything else must not ask for the release once more."""
    save(bench.state, Pointer(current=release_of(MODULE), boots=CURRENT_BOOTS))
    await bench.releases.commit(TARGET)
    await bench.releases.revert(TARGET)
    assert (bench.asked, load(bench.state).current) == (0, release_of(MODULE))


@pytest.mark.parametrize(("publisher", "name"), [("acme", AGENT_MODULE), (AGENT_PUBLISHER, "digits")])
def test_an_agent_by_another_publisher_or_name_is_refused_by_the_device(publisher: str, name: str) -> None:
    path = TargetPath(publisher, name, 1, MANIFEST.profile)
    assigned = Assigned(path, DirectorCustom(MANIFEST.profile, 5, "rollout-1"), len(BYTES), MODULE.manifest_sha256)
    data = BYTES.replace(f'"name":"{AGENT_MODULE}"'.encode(), f'"name":"{name}"'.encode())
    with pytest.raises(TrustError, match="expected an agent only as") as caught:
        read_manifest(assigned, data)
    assert caught.value.key == "agent-publisher"
