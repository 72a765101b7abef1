"""Candidates on the hub: what is assigned beside what, and what start, share, promotion and drop make of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from cloud_hub.arms.candidate import Candidate, NewCandidate, Promotion
from cloud_hub.arms.candidates import Candidates
from cloud_hub.arms.comparisons import Comparisons
from cloud_hub.blobs import FolderBlobs
from cloud_hub.desired import Assignment
from cloud_hub.errors import BadRequest, Conflict, NotFound
from cloud_hub.events import Events
from cloud_hub.monitoring.references import References
from cloud_hub.reports import differences
from cloud_hub.rollouts.states import RolloutState
from cloud_hub.store.engine import Store
from cloud_hub.store.tables import devices, modules
from cloud_hub.trust.director import targets_of
from modules.arms import chosen
from modules.manifest import SamplingPolicy
from modules.messages import ModuleReport, UpdateReport
from modules.targets import director_custom
from modules.tensors import TensorSpec
from support.built import assemble, build
from support.clock import SetClock
from support.reporting import PROFILE, Fleet, module_row

FLEET = tuple(f"cam-{number}00" for number in range(1, 6))
POLICY = SamplingPolicy(rate=0.5)


class Lab(Fleet):
    """A fleet whose builds are real manifests, and all of whose devices run version 1 of digits."""

    def __init__(self, store: Store, events: Events, clock: SetClock, blobs: FolderBlobs) -> None:
        super().__init__(store, events, clock)
        self.blobs = blobs
        comparisons = Comparisons(store, References(store, blobs), clock, 3600.0)
        self.candidates = Candidates(store, blobs, events, self.rollouts, comparisons, self._ring, clock)
        self.digests: dict[int, str] = {}

    async def furnish(self) -> None:
        await super().furnish()
        good = build("digits", 1)
        for version in (1, 2, 3):
            await self.build(version, **{"inputs": good.manifest.inputs})
        first = (await self.create(version=1, groups=("rest",))).rollout.id
        for device in FLEET:
            await self.runs(device, 1, first)

    async def build(self, version: int, **changed: Any) -> None:
        """Signed, in the order of the versions."""
        made = assemble("digits", version, build("digits", 1).files, build("digits", 1).manifest.runtime)
        manifest = msgspec.structs.replace(made.manifest, **changed)
        data = msgspec.json.encode(manifest, order="sorted")
        self.digests[version] = await self.blobs.put(data)
        row = module_row(version, self.digests[version], version)
        async with self.store.write() as connection:
            await connection.execute(modules.delete().where(modules.c.version == version, modules.c.profile == PROFILE))
            await connection.execute(modules.insert().values(**row))

    def module(self, version: int, deployment: str, **changed: Any) -> ModuleReport:
        report = ModuleReport("digits", version, self.digests[version], version, deployment, "serving", True)
        return msgspec.structs.replace(report, **changed)

    async def runs(self, device: str, version: int, deployment: str, *beside: ModuleReport) -> None:
        """The device reports this, and what runs beside it."""
        held = (self.module(version, deployment), *beside)
        (version,) = await self._versions(device)
        report = self.report(device, modules=held, agent_version="0.2.0", director_version=version)
        await self.say(report)

    async def _versions(self, device: str) -> list[int]:
        query = devices.select().with_only_columns(devices.c.director_version).where(devices.c.id == device)
        async with self.store.read() as connection:
            return list((await connection.execute(query)).scalars())

    async def assign(self, device: str, assignment: Assignment) -> None:
        async with self.store.write() as connection:
            await self.desired.assign(connection, device, assignment)

    async def held(self, device: str = "cam-100") -> list[tuple[int, str, str]]:
        return [(one.version, one.role, one.mode) for one in await self.desired.of(device)]

    async def start(self, **changed: Any) -> Candidate:
        new = NewCandidate("digits", 2, target=f"profile={PROFILE}", device_deadline_s=600)
        return await self.candidates.start(msgspec.structs.replace(new, **changed), "ann")

    async def verified_beside(self, candidate: Candidate, *only: str, **counts: int) -> None:
        beside = {word.replace("_", "-"): count for word, count in counts.items()}
        for device in only or FLEET:
            shadow = self.module(2, candidate.id, mode=candidate.way, share=candidate.share, beside=beside, requests=9)
            await self.runs(device, 1, "r1", shadow)

    async def state(self, rollout: str) -> RolloutState:
        return (await self.rollouts.get(rollout)).rollout.state


@pytest.fixture
async def lab(store: Store, events: Events, clock: SetClock, tmp_path: Path) -> Lab:
    lab = Lab(store, events, clock, FolderBlobs(tmp_path / "blobs"))
    await lab.furnish()
    return lab


async def _own_policy(lab: Lab, device: str = "cam-100") -> None:
    (main, *_) = await lab.desired.of(device)
    await lab.assign(device, msgspec.structs.replace(main, sampling=POLICY))


async def test_a_shadow_is_assigned_beside_the_main_version_with_its_policy_and_counter(lab: Lab) -> None:
    await _own_policy(lab)
    candidate = await lab.start(share=0.25)
    assert await lab.held() == [(1, "main", "serve"), (2, "candidate", "shadow")]
    main, beside = await lab.desired.of("cam-100")
    assert beside.sampling == main.sampling == POLICY
    assert (beside.share, beside.salt, beside.deployment) == (0.25, candidate.salt, candidate.id)
    async with lab.store.read() as connection:
        targets = await targets_of(connection, "cam-100")
    customs = {path: director_custom(one.unrecognized_fields["custom"]) for path, one in targets.items()}
    modes = {path.split("/")[3]: (one.mode, one.share, one.salt) for path, one in customs.items()}
    assert modes == {"1": ("serve", 1.0, ""), "2": ("shadow", 0.25, candidate.salt)}
    plain = next(one for path, one in targets.items() if "/1/" in path)
    assert "share" not in plain.unrecognized_fields["custom"], "an older agent must be able to read it"


async def test_it_is_verified_as_a_candidate_and_not_as_what_serves(lab: Lab) -> None:
    candidate = await lab.start()
    await lab.runs("cam-100", 1, "r1", lab.module(2, candidate.id))  # the same version in the main one's place
    assert (await lab.stands(candidate.id))["cam-100"] == "assigned"
    await lab.verified_beside(candidate)
    assert await lab.state(candidate.id) is RolloutState.FINISHED
    assert set((await lab.stands(candidate.id)).values()) == {"verified"}


async def test_a_candidate_that_fails_on_the_first_device_stops_and_what_serves_stays(lab: Lab) -> None:
    candidate = await lab.start(groups=("1", "rest"))
    last = UpdateReport("reverting", 99, (candidate.id,), reason_key="crashed", reason="exit status 3")
    await lab.say(lab.report("cam-100", last=last, modules=(lab.module(1, "r1"),)))
    assert await lab.state(candidate.id) is RolloutState.FAILED
    assert [await lab.held(device) for device in FLEET] == [[(1, "main", "serve")]] * 5


async def test_devices_without_a_version_that_serves_take_no_part(lab: Lab) -> None:
    async with lab.store.write() as connection:
        await lab.desired.unassign(connection, "cam-200", "digits")
    candidate = await lab.start()
    assert (await lab.stands(candidate.id))["cam-200"] == "rejected"
    assert await lab.held("cam-200") == []
    with pytest.raises(Conflict, match="expected a version that serves") as caught:
        await lab.assign("cam-200", Assignment("digits", 2, PROFILE, "x", mode="shadow", role="candidate"))
    assert caught.value.key == "candidate-alone"


async def test_an_agent_that_knows_no_candidates_is_given_none(lab: Lab) -> None:
    await lab.say(lab.report("cam-300", modules=(lab.module(1, "r1"),)))  # 0.1.0
    candidate = await lab.start(error_threshold=100)
    execution = next(e for e in (await lab.rollouts.get(candidate.id)).executions if e.device == "cam-300")
    assert (execution.state, execution.reason_key) == ("rejected", "agent-outdated")
    assert "a candidate needs agent 0.2.0, it has 0.1.0" in execution.reason
    assert await lab.held("cam-300") == [(1, "main", "serve")]


async def test_another_share_reaches_every_device_and_those_to_come(lab: Lab) -> None:
    candidate = await lab.start(way="arm", share=0.1, groups=("2", "rest"))
    await lab.verified_beside(candidate, "cam-100")
    lab.rung.clear()
    assert (await lab.candidates.change_share(candidate.id, 0.5, "ann")).share == 0.5
    assert sorted(device for device, _ in lab.rung) == ["cam-100", "cam-200"]
    await lab.verified_beside(candidate, "cam-200")
    shares = [(await lab.desired.of(device))[-1].share for device in FLEET]
    assert shares == [0.5] * 5
    assert (await lab.candidates.get(candidate.id)).share == 0.5


async def test_a_dropped_candidate_goes_from_every_device(lab: Lab) -> None:
    candidate = await lab.start(groups=("4", "rest"))
    await lab.verified_beside(candidate, "cam-100", "cam-200")
    assert (await lab.candidates.drop(candidate.id, "no good", "ann")).state == "dropped"
    assert [await lab.held(device) for device in FLEET] == [[(1, "main", "serve")]] * 5
    for device in ("cam-100", "cam-200"):
        await lab.runs(device, 1, "r1")
    assert await lab.state(candidate.id) is RolloutState.ROLLED_BACK
    with pytest.raises(Conflict, match="expected it running, it is dropped"):
        await lab.candidates.drop(candidate.id, "", "ann")
    kinds = [event.kind for event in await lab.events.list(subject=candidate.id)]
    assert {"candidate.started", "candidate.dropped"} <= set(kinds)


async def test_a_promoted_candidate_takes_the_main_version_s_place(lab: Lab) -> None:
    candidate = await lab.start()
    await lab.verified_beside(candidate)
    promoted = await lab.candidates.promote(candidate.id, Promotion(groups=("1", "rest")), "ann")
    assert promoted.state == "promoted"
    assert await lab.held("cam-100") == [(2, "main", "serve")]
    assert await lab.held("cam-200") == [(1, "main", "serve"), (2, "candidate", "shadow")]
    for device in FLEET:
        await lab.runs(device, 2, promoted.promoted_by)
    assert await lab.state(promoted.promoted_by) is RolloutState.FINISHED
    assert [await lab.held(device) for device in FLEET] == [[(2, "main", "serve")]] * 5


async def test_a_newer_main_version_ends_an_older_candidate_and_keeps_a_newer_one(lab: Lab) -> None:
    candidate = await lab.start(version=2, error_threshold=100)
    await lab.verified_beside(candidate)
    await lab.assign("cam-100", Assignment("digits", 3, PROFILE, "x"))
    await lab.assign("cam-200", Assignment("digits", 1, PROFILE, "x", sampling=POLICY))
    assert await lab.held("cam-100") == [(3, "main", "serve")], "devices would refuse version 2 as an older release"
    assert await lab.held("cam-200") == [(1, "main", "serve"), (2, "candidate", "shadow")]
    assert (await lab.desired.of("cam-200"))[1].sampling == POLICY
    with pytest.raises(Conflict, match="expected a release after version 3") as caught:
        await lab.assign("cam-100", Assignment("digits", 2, PROFILE, "x", mode="shadow", role="candidate"))
    assert caught.value.key == "candidate-older"


async def test_an_arm_by_device_is_the_main_version_of_its_share(lab: Lab) -> None:
    candidate = await lab.start(way="arm", split="device", share=0.5, salt="s1")
    ours = [device for device in FLEET if chosen(device, "s1", 0.5)]
    assert 0 < len(ours) < 5
    held = {device: (await lab.held(device))[0][:2] for device in FLEET}
    assert held == {device: (2 if device in ours else 1, "main") for device in FLEET}
    with pytest.raises(Conflict, match="with the salt s1"):
        await lab.candidates.change_share(candidate.id, 0.9, "ann")


async def test_a_candidate_with_other_tensors_is_refused_before_anything_is_made(lab: Lab) -> None:
    await lab.build(2, inputs=(TensorSpec("X", "FP32", (-1, 9)),))
    with pytest.raises(Conflict, match=r"beside version 1: inputs: expected X FP32 \[-1, 4\], got X FP32 \[-1, 9\]"):
        await lab.start()
    assert await lab.candidates.list() == []
    with pytest.raises(BadRequest, match="expected a shadow to be split by request"):
        await lab.start(split="device")
    with pytest.raises(NotFound, match="no candidate r99"):
        await lab.candidates.get("r99")


async def test_the_report_sums_what_devices_count(lab: Lab) -> None:
    candidate = await lab.start()
    await lab.verified_beside(candidate, fed=90, offered=100, missed_busy=10, compared=80, agreed=60)
    found = await lab.candidates.report(candidate.id)
    seen = found.outcomes
    assert (seen.devices, seen.requests, seen.fed, seen.offered, seen.missed) == (5, 45, 450, 500, 50)
    assert seen.agreement == 0.75
    assert seen.reasons == {"missed-busy": 50}
    assert (found.verified, found.comparison, found.partial) == (5, None, False)
    some = await lab.candidates.report(candidate.id, mine={"cam-100"})
    assert some.outcomes.devices == 1


async def test_what_differs_is_told_of_the_candidate_apart(lab: Lab) -> None:
    await lab.start()
    desired = await lab.desired.of("cam-100")
    report = lab.report("cam-100", modules=(lab.module(1, "r1"),))
    (missing,) = differences(desired, report)
    assert (missing.module, missing.why, missing.desired, missing.candidate) == ("digits", "missing", 2, True)
    assert differences(desired[:1], report) == []


async def test_lists_come_newest_first_and_in_pages(lab: Lab, clock: SetClock) -> None:
    made: list[str] = []
    for _ in range(3):
        candidate = await lab.start()
        await lab.candidates.drop(candidate.id, "", "ann")
        made.insert(0, candidate.id)
        clock.advance(1)
    assert [one.id for one in await lab.candidates.list()] == made
    assert [one.id for one in await lab.candidates.list(after=made[0], limit=1)] == made[1:2]
    assert await lab.candidates.list(state="running") == []
    assert [one.id for one in await lab.candidates.list(among={made[2]})] == made[2:]


async def test_a_candidate_is_not_signed_beside_a_main_version_that_was_signed_again_since(lab: Lab) -> None:
    await lab.start()

    async def signed() -> list[str]:
        async with lab.store.read() as connection:
            return sorted(path.split("/")[3] for path in await targets_of(connection, "cam-100"))

    assert await signed() == ["1", "2"]
    async with lab.store.write() as connection:
        await connection.execute(modules.update().where(modules.c.version == 1).values(release_counter=9))
    assert await signed() == ["1"], "the device would refuse all of it as an older release"
