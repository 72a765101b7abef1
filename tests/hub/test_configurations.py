"""Configurations on a real database with a real rollout engine: checked, kept, rolled out, verified, taken back."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from sqlalchemy import insert, update

from cloud_hub.blobs import FolderBlobs
from cloud_hub.configuration.changes import LayerChange
from cloud_hub.configuration.checking import RolloutCheck
from cloud_hub.configuration.configurations import ChangeResult, ConfigurationChange, Configurations
from cloud_hub.configuration.document import Document, Override
from cloud_hub.configuration.fitting import Fitting
from cloud_hub.configuration.viewing import Views
from cloud_hub.errors import BadRequest, Conflict, NotFound, Unprocessable
from cloud_hub.events import Events
from cloud_hub.rollouts.beside import Beside
from cloud_hub.rollouts.controller import Controller
from cloud_hub.rollouts.new import NewRollout
from cloud_hub.rollouts.states import ExecutionState, RolloutState
from cloud_hub.store.engine import Store
from cloud_hub.store.tables import device_groups, devices, group_members, modules
from modules.bundle import Chunk, FileEntry, sha256_hex
from modules.configuration import config_digest
from modules.manifest import Lineage, Manifest, encode_manifest
from modules.messages import ModuleReport, UpdateReport
from modules.tensors import TensorSpec
from support.clock import SetClock
from support.reporting import PROFILE, Fleet, device_row, module_row

FIRST = {
    "type": "object",
    "properties": {"threshold": {"type": "number", "maximum": 1}, "mode": {"enum": ["fast", "exact"]}},
    "additionalProperties": False,
}
SECOND = {"type": "object", "required": ["camera"], "properties": {"threshold": {"maximum": 0.5}}}


class Bench(Fleet):
    """Four devices in two sites that run digits 1, whose schema is FIRST; digits 2 with SECOND is there, too."""

    def __init__(self, store: Store, blobs: FolderBlobs, events: Events, clock: SetClock) -> None:
        self.blobs, self.fitting = blobs, Fitting(blobs)
        self.digests: dict[int, str] = {}
        super().__init__(store, events, clock)
        self.configurations = Configurations(store, events, self.rollouts, self.fitting, clock)
        self.views = Views(store)

    def restarted(self) -> Controller:
        check = RolloutCheck(self.fitting)
        return Controller(self.store, self.events, self.desired, self._ring, self.clock, fits=check)

    async def furnish(self) -> None:
        async with self.store.write() as connection:
            for number, site in enumerate(("lab", "lab", "yard", "yard"), 1):
                row = device_row(f"cam-{number}00", PROFILE, site)
                await connection.execute(insert(devices).values(**row, agent_version="0.2.0"))
        for version, schema in ((1, FIRST), (2, SECOND), (3, None)):
            await self.build(version, schema)
        await self.run(1)

    async def build(self, version: int, schema: dict[str, Any] | None) -> None:
        entry = FileEntry("model.onnx", 1, sha256_hex(b"m"), (Chunk(sha256_hex(b"m"), 1),))
        specs = (TensorSpec("x", "FP32", (-1, 4)),), (TensorSpec("y", "FP32", (-1, 3)),)
        text = msgspec.UNSET if schema is None else msgspec.json.encode(schema).decode()
        manifest = Manifest(
            "digits", version, PROFILE, Lineage("digits", version), *specs, (entry,), config_schema=text
        )
        self.digests[version] = await self.blobs.put(encode_manifest(manifest))
        async with self.store.write() as connection:
            await connection.execute(insert(modules).values(**module_row(version, self.digests[version], version)))

    async def run(self, version: int, **fields: Any) -> str:
        """Rolls a version out to all of them, until they are verified."""
        new = NewRollout("digits", version, "all", start=True, **fields)
        rollout = (await self.rollouts.create(new, "ann")).rollout.id
        for number in range(1, 5):
            await self.has(f"cam-{number}00")
        assert await self.state(rollout) is RolloutState.FINISHED
        return rollout

    async def has(self, device: str, *, config: dict[str, Any] | None = None, agent: str = "0.2.0") -> None:
        """The device reports what it is directed to have, or else this configuration."""
        held = []
        for given in await self.desired.of(device):
            digest = config_digest(given.config if config is None else config)
            module = ModuleReport(
                "digits", given.version, self.digests[given.version], given.version, given.deployment, "serving", True
            )
            held.append(msgspec.structs.replace(module, config_sha256=digest, mode=given.mode))
        await self.say(self.report(device, modules=tuple(held), agent_version=agent, director_version=99))

    async def beside(self, version: int) -> str:
        """The version as a shadow on all of them, until it is verified; its rollout."""
        new = NewRollout("digits", version, "all", candidate=Beside(), start=True)
        rollout = (await self.rollouts.create(new, "ann")).rollout.id
        for device in await self.configs():
            await self.has(device)
        assert await self.state(rollout) is RolloutState.FINISHED
        return rollout

    async def shadows(self) -> list[tuple[int, dict[str, Any], str]]:
        """Version, configuration and deployment of each device's candidate."""
        found = [await self.desired.of(device) for device in await self.configs()]
        return [(one.version, dict(one.config), one.deployment) for _, *some in found for one in some]

    async def state(self, rollout: str) -> RolloutState:
        return (await self.rollouts.get(rollout)).rollout.state

    async def set(self, target: str = "", device: str = "", **said: Any) -> ChangeResult:
        change = {name: said.pop(name) for name in ("draft", "dry_run", "rollout", "base", "comment") if name in said}
        layer = LayerChange(target, device, said)
        return await self.configurations.change("digits", ConfigurationChange(layer, **change), "ann")

    async def configs(self) -> dict[str, dict[str, Any]]:
        return {f"cam-{n}00": dict((await self.desired.of(f"cam-{n}00"))[0].config) for n in range(1, 5)}

    async def standing(self) -> int:
        found = (await self.views.show("digits")).stands
        return found.revision if found else 0

    async def put(self, **said: Any) -> int:
        """Set and rolled out to the end; the revision."""
        result = await self.set(**said)
        for device in await self.configs():
            await self.has(device)
        assert await self.state(result.rollout) is RolloutState.FINISHED
        return result.revision


@pytest.fixture
async def bench(store: Store, blobs: FolderBlobs, events: Events, clock: SetClock) -> Bench:
    bench = Bench(store, blobs, events, clock)
    await bench.furnish()
    return bench


async def test_a_configuration_is_rolled_out_and_stands_once_devices_report_that_they_have_it(bench: Bench) -> None:
    result = await bench.set(threshold=0.7)
    assert (result.revision, result.base, result.devices) == (1, 0, 4)
    assert [(one.layer, one.path, one.after) for one in result.differences] == [("fleet", "$.threshold", 0.7)]
    assert await bench.configs() == {f"cam-{n}00": {"threshold": 0.7} for n in range(1, 5)}
    assert await bench.standing() == 0
    for number in range(1, 5):
        await bench.has(f"cam-{number}00", config={})  # the deployment, with the configuration of before
    assert await bench.state(result.rollout) is RolloutState.RUNNING
    for number in range(1, 5):
        await bench.has(f"cam-{number}00")
    assert await bench.state(result.rollout) is RolloutState.FINISHED
    assert await bench.standing() == 1
    (version,) = {found.version for n in range(1, 5) for found in await bench.desired.of(f"cam-{n}00")}
    assert version == 1


async def test_only_devices_whose_configuration_changes_take_part(bench: Bench) -> None:
    await bench.put(threshold=0.7)
    async with bench.store.write() as connection:
        await connection.execute(insert(device_groups).values(name="pilot", description="", created_at=0))
        await connection.execute(insert(group_members).values(name="pilot", device="cam-300", added_at=0.0))
    one = await bench.set("group = pilot", mode="fast")
    status = await bench.rollouts.get(one.rollout)
    assert [part.device for part in status.executions] == ["cam-300"]
    await bench.has("cam-300")
    own = await bench.set(device="cam-300", threshold=0.1, mode=None)
    assert own.examples == ("cam-300",)
    assert (await bench.configs())["cam-300"] == {"threshold": 0.1}
    await bench.has("cam-300")
    seen = await bench.views.of_device("digits", "cam-300")
    assert seen.layers == ("fleet", "target group = pilot", "device cam-300")
    assert (seen.resolved, seen.assigned, seen.applied) == ({"threshold": 0.1}, {"threshold": 0.1}, True)
    assert (await bench.views.of_device("digits", "cam-100")).layers == ("fleet",)


async def test_what_does_not_satisfy_the_schema_is_refused_with_counts_and_paths_and_changes_nothing(
    bench: Bench,
) -> None:
    with pytest.raises(
        Conflict, match=r"on 4 devices: \$\.threshold: 2 is greater than the maximum of 1 \(4 with"
    ) as no:
        await bench.set(threshold=2)
    assert (no.value.key, no.value.fields["devices"]) == ("configuration-unfit", 4)
    with pytest.raises(Conflict, match=r"on 2 devices: \$: .*'speed' was unexpected.*cam-300, cam-400"):
        await bench.set("site=yard", speed=1)
    assert await bench.views.history("digits", 10) == []
    assert await bench.configs() == {f"cam-{n}00": {} for n in range(1, 5)}
    assert not [event for event in await bench.events.list() if event.kind.startswith("configuration.")]


async def test_each_device_is_held_against_the_version_that_it_is_directed_to_run(bench: Bench) -> None:
    await bench.run(3)  # which says nothing of its configuration
    result = await bench.set("site=yard", anything=[1, {"at": "all"}], dry_run=True)
    assert (result.devices, result.revision) == (2, 0)


async def test_a_version_whose_schema_asks_for_more_brings_its_configuration_along(bench: Bench) -> None:
    with pytest.raises(Conflict, match=r"'camera' is a required property \(4 with version 2"):
        await bench.rollouts.create(NewRollout("digits", 2, "all", start=True), "ann")
    with pytest.raises(Conflict, match="'camera' was unexpected"):
        await bench.set(camera="front")
    await bench.run(3)
    revision = await bench.put(camera="front", threshold=0.4)
    rollout = await bench.run(2)
    assert await bench.configs() == {f"cam-{n}00": {"camera": "front", "threshold": 0.4} for n in range(1, 5)}
    with pytest.raises(Conflict, match=r"0\.9 is greater than the maximum of 0\.5"):
        await bench.set(threshold=0.9)
    assert await bench.standing() == revision
    assert await bench.state(rollout) is RolloutState.FINISHED


async def test_a_configuration_that_fails_on_a_device_goes_back_and_the_old_one_stands(bench: Bench) -> None:
    await bench.put(threshold=0.7)
    result = await bench.set(threshold=0.2, rollout={"groups": ["1", "rest"]})
    last = UpdateReport("failed", 99, (result.rollout,), reason_key="crashed", reason="the worker ended")
    await bench.say(bench.report("cam-100", last=last, agent_version="0.2.0"))
    assert await bench.state(result.rollout) is RolloutState.FAILED
    assert await bench.configs() == {f"cam-{n}00": {"threshold": 0.7} for n in range(1, 5)}
    assert await bench.standing() == 1
    shown = await bench.views.show("digits")
    assert shown.newest is not None
    assert (shown.newest.revision, shown.newest.rollouts) == (2, (result.rollout,))
    again = await bench.set(mode="fast")  # made from what stands, not from what failed
    assert (again.revision, again.base) == (3, 1)
    assert (await bench.configs())["cam-100"] == {"threshold": 0.7, "mode": "fast"}


async def test_a_fleet_that_is_rolled_back_has_what_stood_before_and_so_has_the_module(bench: Bench) -> None:
    await bench.put(threshold=0.7)
    result = await bench.set(threshold=0.2)
    for device in await bench.configs():
        await bench.has(device)
    assert await bench.standing() == 2
    await bench.rollouts.roll_back(result.rollout, "ann", "no good")
    assert await bench.configs() == {f"cam-{n}00": {"threshold": 0.7} for n in range(1, 5)}
    for device in await bench.configs():
        await bench.has(device)
    assert await bench.state(result.rollout) is RolloutState.ROLLED_BACK
    assert await bench.standing() == 1


async def test_a_candidate_gets_the_configuration_of_the_version_beside_it_with_the_same_change(bench: Bench) -> None:
    await bench.put(threshold=0.7)
    shadow = await bench.beside(3)
    assert await bench.shadows() == [(3, {"threshold": 0.7}, shadow)] * 4
    result = await bench.set("site=yard", threshold=0.2)
    changed = [(3, {"threshold": 0.7}, shadow)] * 2 + [(3, {"threshold": 0.2}, shadow)] * 2
    assert await bench.shadows() == changed, "it is still its own rollout's"
    for device in ("cam-300", "cam-400"):
        await bench.has(device)
    assert await bench.state(result.rollout) is RolloutState.FINISHED
    await bench.rollouts.roll_back(result.rollout, "ann", "worse")
    assert await bench.shadows() == [(3, {"threshold": 0.7}, shadow)] * 4


async def test_a_configuration_that_a_candidate_s_schema_refuses_is_refused_before_anything_is_made(
    bench: Bench,
) -> None:
    draft = await bench.set(threshold=0.9, draft=True)
    await bench.build(4, {"type": "object", "properties": {"threshold": {"maximum": 0.5}}})
    await bench.beside(4)
    with pytest.raises(Conflict, match=r"0\.9 is greater than the maximum of 0\.5 \(4 with version 4 for"):
        await bench.set(threshold=0.9)
    with pytest.raises(Conflict, match=r"0\.9 is greater than the maximum of 0\.5 \(2 with version 4 for"):
        await bench.set("site=yard", threshold=0.9, dry_run=True)
    assert [one.revision for one in await bench.views.history("digits", 10)] == [draft.revision]
    with pytest.raises(Conflict, match=r"0\.9 is greater than the maximum of 0\.5 \(4 with version 4 for"):
        await bench.rollouts.create(NewRollout("digits", 0, "all", config=draft.revision), "ann")
    await bench.put(threshold=0.3)
    assert [config for _, config, _ in await bench.shadows()] == [{"threshold": 0.3}] * 4


async def test_an_earlier_candidate_that_comes_back_has_the_configuration_of_now(bench: Bench) -> None:
    await bench.put(threshold=0.7)
    earlier = await bench.beside(3)
    await bench.build(4, None)
    later = await bench.beside(4)
    await bench.put(threshold=0.2)
    await bench.rollouts.roll_back(later, "ann", "worse")
    assert await bench.shadows() == [(3, {"threshold": 0.2}, earlier)] * 4
    for device in await bench.configs():
        await bench.has(device)
    assert await bench.state(later) is RolloutState.ROLLED_BACK
    assert {part.state for part in (await bench.rollouts.get(later)).executions} == {ExecutionState.RETURNED}


async def test_a_newer_version_that_ends_a_candidate_brings_what_its_schema_would_refuse(bench: Bench) -> None:
    draft = await bench.set(threshold=0.9, draft=True)
    await bench.build(4, {"type": "object", "properties": {"threshold": {"maximum": 0.5}}})
    await bench.build(5, None)
    await bench.beside(4)
    await bench.run(5, config=draft.revision)
    assert await bench.shadows() == []
    assert await bench.configs() == {f"cam-{n}00": {"threshold": 0.9} for n in range(1, 5)}


async def test_going_back_makes_a_new_revision_of_the_old_content(bench: Bench) -> None:
    await bench.put(threshold=0.7)
    await bench.put(threshold=0.2, mode="fast")
    back = await bench.configurations.change("digits", ConfigurationChange(revision=1, comment="too slow"), "ann")
    assert (back.revision, back.base, back.devices) == (3, 2, 4)
    for device in await bench.configs():
        await bench.has(device)
    assert await bench.standing() == 3
    assert (await bench.configs())["cam-100"] == {"threshold": 0.7}
    history = await bench.views.history("digits", 10)
    assert [(one.revision, one.base, one.comment, one.stands) for one in history] == [
        (3, 2, "too slow", True), (2, 1, "", False), (1, 0, "", False),
    ]  # fmt: skip
    assert await bench.views.diff("digits", 1, 3) == []
    assert [one.path for one in await bench.views.diff("digits", 2, 3)] == ["$.mode", "$.threshold"]


async def test_while_a_rollout_carries_a_configuration_no_other_is_made(bench: Bench) -> None:
    result = await bench.set(threshold=0.7)
    with pytest.raises(Conflict, match=f"rollout {result.rollout} carries one") as refused:
        await bench.set(threshold=0.6)
    assert refused.value.key == "configuration-under-way"
    await bench.rollouts.abort(result.rollout, "ann", "no")
    assert await bench.configs() == {f"cam-{n}00": {} for n in range(1, 5)}
    assert (await bench.set(threshold=0.6)).revision == 2


async def test_a_draft_waits_until_it_is_applied(bench: Bench) -> None:
    draft = await bench.set(threshold=0.7, draft=True)
    assert (draft.revision, draft.rollout, await bench.standing()) == (1, "", 0)
    assert (await bench.configs())["cam-100"] == {}
    applied = await bench.configurations.apply("digits", {"groups": ["1", "rest"]}, "ann")
    assert (applied.revision, applied.devices) == (1, 4)
    assert [group.size for group in (await bench.rollouts.get(applied.rollout)).groups] == [1, 3]


async def test_a_device_that_belongs_elsewhere_by_now_gets_its_part_when_the_revision_is_applied(bench: Bench) -> None:
    await bench.put(target="site=lab", threshold=0.7)
    async with bench.store.write() as connection:
        await connection.execute(update(devices).where(devices.c.id == "cam-400").values(tags={"site": "lab"}))
    seen = await bench.views.of_device("digits", "cam-400")
    assert (seen.resolved, seen.assigned) == ({"threshold": 0.7}, {})
    applied = await bench.configurations.apply("digits", {}, "ann")
    assert (applied.revision, applied.examples) == (1, ("cam-400",))
    await bench.has("cam-400")
    assert (await bench.configurations.apply("digits", {}, "ann")).devices == 0


async def test_where_no_device_changes_a_revision_stands_at_once_and_new_devices_get_it(bench: Bench) -> None:
    result = await bench.set("site=harbour", threshold=0.3)
    assert (result.revision, result.devices, result.rollout) == (1, 0, "")
    assert await bench.standing() == 1
    async with bench.store.write() as connection:
        row = device_row("cam-500", PROFILE, "harbour")
        await connection.execute(insert(devices).values(**row, agent_version="0.2.0"))
    await bench.rollouts.create(NewRollout("digits", 1, "id=cam-500", start=True), "ann")
    (given,) = await bench.desired.of("cam-500")
    assert given.config == {"threshold": 0.3}


async def test_the_same_again_and_a_dry_run_keep_nothing(bench: Bench) -> None:
    await bench.put(threshold=0.7)
    assert (await bench.set(threshold=0.7)).revision == 0
    dry = await bench.set(threshold=0.1, dry_run=True)
    assert (dry.revision, dry.devices, dry.examples) == (0, 4, ("cam-100", "cam-200", "cam-300", "cam-400"))
    assert len(await bench.views.history("digits", 10)) == 1


async def test_a_rollout_that_cannot_be_made_takes_its_revision_back(bench: Bench) -> None:
    await bench.rollouts.create(NewRollout("digits", 3, "id=cam-100", start=True), "ann")
    with pytest.raises(Conflict, match="another rollout of digits is under way on cam-100"):
        await bench.set(threshold=0.7)
    assert await bench.views.history("digits", 10) == []
    kinds = [event.kind for event in await bench.events.list() if event.kind.startswith("configuration.")]
    assert kinds == ["configuration.withdrawn", "configuration.changed"]


async def test_an_agent_that_could_not_say_what_it_has_gets_no_configuration(bench: Bench) -> None:
    await bench.has("cam-100", agent="0.1.0")
    result = await bench.set(threshold=0.7)
    parts = {part.device: part for part in (await bench.rollouts.get(result.rollout)).executions}
    assert (parts["cam-100"].state, parts["cam-100"].reason_key) == ("rejected", "agent-outdated")


@pytest.mark.parametrize(
    ("change", "kind", "key"),
    [
        (ConfigurationChange(LayerChange("online", set={"a": 1})), BadRequest, "target-changes"),
        (ConfigurationChange(LayerChange("module.digits >= 1", set={"a": 1})), BadRequest, "target-changes"),
        (ConfigurationChange(LayerChange("query = mine", set={"a": 1})), BadRequest, "target-changes"),
        (ConfigurationChange(LayerChange("group = nobody", set={"a": 1})), BadRequest, "group-unknown"),
        (ConfigurationChange(LayerChange("site=", set={"a": 1})), BadRequest, "query-invalid"),
        (ConfigurationChange(LayerChange(device="cam-999", set={"a": 1})), NotFound, "device-not-found"),
        (ConfigurationChange(revision=7), NotFound, "configuration-not-found"),
        (ConfigurationChange(LayerChange(set={"mode": "fast"}), base=9), Conflict, "configuration-changed"),
        (ConfigurationChange(LayerChange(set={"mode": "fast"}), rollout={"groups": ["x"]}), BadRequest, "plan-invalid"),
        (ConfigurationChange(LayerChange(set={"mode": "fast"}), rollout={"pace": 1}), BadRequest, "plan-invalid"),
        (ConfigurationChange(LayerChange(set={"mode": "fast"}), rollout={"version": 2}), BadRequest, "plan-invalid"),
    ],
)
async def test_a_change_that_cannot_be_is_refused_and_nothing_is_kept(
    bench: Bench, change: ConfigurationChange, kind: type[Exception], key: str
) -> None:
    with pytest.raises(kind) as refused:
        await bench.configurations.change("digits", change, "ann")
    assert getattr(refused.value, "key", "") == key
    assert await bench.views.history("digits", 10) == []
    with pytest.raises(NotFound, match="no module other"):
        await bench.configurations.change("other", change, "ann")


async def test_a_whole_document_is_set_at_once_and_its_order_counts(bench: Bench) -> None:
    both = (Override("site=lab", {"threshold": 0.1}), Override("profile=generic*", {"threshold": 0.2}))
    await bench.configurations.change("digits", ConfigurationChange(document=Document(targets=both)), "ann")
    assert {config["threshold"] for config in (await bench.configs()).values()} == {0.2}
    for device in await bench.configs():
        await bench.has(device)
    turned = Document(targets=both[::-1])
    result = await bench.configurations.change("digits", ConfigurationChange(document=turned), "ann")
    assert result.devices == 2
    assert {d: c["threshold"] for d, c in (await bench.configs()).items()} == {
        "cam-100": 0.1, "cam-200": 0.1, "cam-300": 0.2, "cam-400": 0.2,
    }  # fmt: skip


async def test_a_schema_that_takes_too_much_to_check_keeps_nothing(bench: Bench) -> None:
    await bench.build(4, {"$ref": "#"})
    with pytest.raises(Unprocessable, match="simplify its schema"):
        await bench.rollouts.create(NewRollout("digits", 4, "all", start=True), "ann")
