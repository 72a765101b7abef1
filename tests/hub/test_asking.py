"""The hub asks devices for what they keep, changes their sampling policy, and puts large tensors together."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import numpy as np
import pytest
from sqlalchemy import func, select, update

from cloud_hub.asking import words
from cloud_hub.asking.commands import AGAIN_S, FORGET_S, Commands, NewSampleRequest
from cloud_hub.asking.pieces import INCOMPLETE_S, SampleBlobs
from cloud_hub.asking.policies import Policies, PolicyChange
from cloud_hub.blobs import FolderBlobs
from cloud_hub.config import HubPaths
from cloud_hub.desired import Assignment
from cloud_hub.errors import BadRequest, Conflict, HubError, NotFound, Unprocessable
from cloud_hub.monitoring.samples import SampleQuery, Samples
from cloud_hub.store.tables import blob_pieces, devices, sample_blobs
from modules.commands import AskSamples, Command, CommandResult, decode_asked
from modules.manifest import SamplingPolicy
from modules.messages import AgentEvent, encode
from modules.pieces import PIECE_BYTES, Withheld, cut
from modules.sampling import Stratum
from support.clock import SetClock
from support.devices import PROFILE
from support.monitoring import Monitored, build_module, make_sample
from support.trust import OPERATOR, TrustWorld, trust_world

DAY_S = 86_400.0
RING: dict[str, Any] = {"ring_rows": 100}
RANDOM = np.random.default_rng(5)


class Bench:
    """A hub with three devices that hold digits, and what it has said to them."""

    def __init__(self, world: TrustWorld, clock: SetClock) -> None:
        self.world, self.clock = world, clock
        self.said: list[tuple[str, Command]] = []
        self.rung: list[tuple[str, int]] = []
        room = (world.store, world.blobs, world.events)
        self.commands = Commands(*room, clock, self.send)
        self.policies = Policies(*room, world.desired, self.ring, clock)
        self.monitored = Monitored(world.store, world.blobs, world.events, clock)

    async def send(self, device: str, command: Command) -> None:
        self.said.append((device, command))

    async def ring(self, device: str, version: int) -> None:
        self.rung.append((device, version))

    async def runs(self, device: str, agent: str) -> None:
        report = msgspec.json.encode({"agent_version": agent})
        async with self.world.store.write() as connection:
            await connection.execute(update(devices).where(devices.c.id == device).values(report=report))

    async def set(self, target: str = "", *, dry_run: bool = False, **fields: Any) -> list[str]:
        change = PolicyChange("digits", target, fields, dry_run=dry_run)
        return [one.device for one in await self.policies.change(change, OPERATOR)]

    async def of(self, device: str) -> SamplingPolicy:
        (found,) = await self.policies.show("digits", f"id={device}")
        return found.policy

    async def answers(self, device: str, result: CommandResult) -> None:
        event = AgentEvent(self.clock(), "info", "command", "done", command=result)
        await self.monitored.send(device, encode(event), stream="event")

    async def kinds(self) -> list[str]:
        return [event.kind for event in await self.world.events.list(kind="", subject="", before=0, limit=100)]


@pytest.fixture
async def bench(hub_paths: HubPaths, clock: SetClock) -> AsyncIterator[Bench]:
    async with trust_world(hub_paths, clock) as world:
        await world.add_signed("digits")
        for device, site in (("cam-1", "lab"), ("cam-2", "lab"), ("cam-3", "yard")):
            await world.enrol(device, site=site)
            await world.assign(device, "digits")
        bench = Bench(world, clock)
        for device in ("cam-1", "cam-2", "cam-3"):
            await bench.runs(device, "0.2.0")
        yield bench


# --- policies ---------------------------------------------------------------------------------------------------
async def test_a_policy_is_changed_in_part_for_the_devices_that_are_meant(bench: Bench) -> None:
    assert await bench.set("site=lab", rate=0.5, strata={"odd": {"rate": 1.0, "when": "missing"}}) == ["cam-1", "cam-2"]
    assert await bench.set("id=cam-1", strata={"low": {"rate": 1.0, "when": "low_margin", "below": 0.1}}) == ["cam-1"]
    assert await bench.set("id=cam-1", redact={"x[0]": {"action": "drop"}}, **RING) == ["cam-1"]
    policy = await bench.of("cam-1")
    assert (policy.rate, policy.ring_rows) == (0.5, 100)
    assert [one.name for one in policy.strata or ()] == ["odd", "low"]
    assert await bench.set("id=cam-1", strata={"odd": None}, redact=None, ring_rows=None) == ["cam-1"]
    policy = await bench.of("cam-1")
    assert [one.name for one in policy.strata or ()] == ["low"]
    assert not policy.redact
    assert not policy.ring_rows
    assert (await bench.of("cam-2")).rate == 0.5
    assert (await bench.of("cam-3")) == SamplingPolicy()
    assert bench.rung == [("cam-1", 3), ("cam-2", 3), ("cam-1", 4), ("cam-1", 5), ("cam-1", 6)]
    assert (await bench.kinds()).count("sampling.changed") == 4


async def test_a_dry_run_says_what_would_change_and_changes_nothing(bench: Bench) -> None:
    change = PolicyChange("digits", "site=lab", {"rate": 0.5, "quota_bytes_per_day": 10_000}, dry_run=True)
    found = await bench.policies.change(change, OPERATOR)
    assert [(one.device, one.changed) for one in found] == [
        (device, {"quota_bytes_per_day": [None, 10_000], "rate": [0.01, 0.5]}) for device in ("cam-1", "cam-2")
    ]
    assert await bench.of("cam-1") == SamplingPolicy()
    assert bench.rung == []


async def test_the_same_again_changes_nothing_and_the_default_comes_back(bench: Bench) -> None:
    await bench.set("id=cam-1", rate=0.5)
    assert await bench.set("id=cam-1", rate=0.5) == []
    back = PolicyChange("digits", "", default=True)
    assert [one.device for one in await bench.policies.change(back, OPERATOR)] == ["cam-1"]
    assert (await bench.world.desired.of("cam-1"))[0].sampling is None


async def test_a_policy_that_cannot_be_is_refused_for_all(bench: Bench) -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"rate": 2}, "from 0 to 1"),
        ({"rat": 0.1}, "rat"),
        ({"rate": "x"}, "float"),
        ({"strata": {"base": {"rate": 1, "when": "missing"}}}, "of its own"),
        ({"strata": {"a": {"rate": 1, "when": "missing", "feature": "z"}}}, "got 'z'"),
        ({"strata": {"a": 5}}, "expected objects"),
        ({"strata": [1]}, "by name"),
        ({"redact": {"z": {"action": "drop"}}}, "got 'z'"),
        ({"redact": {"x": {"action": "burn"}}}, "burn"),
        ({"quota_bytes_per_day": 1}, "1024"),
        ({"ring_rows": 10**9}, "0 to 200000"),
    ]
    for fields, text in wrong:
        with pytest.raises(BadRequest, match=text) as refused:
            await bench.set("", **fields)
        assert refused.value.key == "policy-invalid"
    assert bench.rung == []


async def test_an_agent_that_is_too_old_for_a_policy_is_named_and_nothing_changes(bench: Bench) -> None:
    await bench.runs("cam-2", "0.1.0")
    with pytest.raises(Conflict, match=r"cam-2 \(0.1.0\)") as refused:
        await bench.set("site=lab", **RING)
    assert refused.value.key == "agent-outdated"
    assert bench.rung == []
    assert await bench.set("site=lab", rate=0.2) == ["cam-1", "cam-2"]  # which asks for nothing new
    async with bench.world.store.write() as connection:
        wanted = Assignment("digits", 1, PROFILE, "r-2", sampling=SamplingPolicy(ring_rows=5))
        with pytest.raises(Conflict, match=r"needs agent 0\.2\.0, it has 0\.1\.0"):
            await bench.world.desired.assign(connection, "cam-2", wanted)


async def test_a_policy_for_nobody_is_refused(bench: Bench) -> None:
    with pytest.raises(Unprocessable, match="no device that matches"):
        await bench.set("site=moon", rate=0.1)
    with pytest.raises(Unprocessable, match="holds module"):
        await bench.policies.change(PolicyChange("other", "", {"rate": 0.1}), OPERATOR)
    assert await bench.policies.change(PolicyChange("digits", "", {"rate": 0.1}), OPERATOR, {"cam-3"}) != []
    assert (await bench.of("cam-1")) == SamplingPolicy()  # out of the scope of whoever asked


# --- commands ---------------------------------------------------------------------------------------------------
async def ask(bench: Bench, device: str = "cam-1", expires_s: float = DAY_S, **asked: Any) -> str:
    new = NewSampleRequest(device, AskSamples("digits", **asked), expires_s)
    return (await bench.commands.ask_samples(new, OPERATOR)).id


async def test_a_question_is_sent_until_it_is_answered(bench: Bench) -> None:
    await bench.set("", **RING)
    id_ = await ask(bench, limit=5)
    ((device, sent),) = bench.said
    assert (device, sent.id, sent.kind, decode_asked(sent.body)) == (
        "cam-1",
        id_,
        "samples",
        AskSamples("digits", limit=5),
    )
    await bench.commands.tick()
    assert len(bench.said) == 1  # just now
    bench.clock.advance(AGAIN_S + 1)
    await bench.commands.tick()
    bench.clock.advance(2)
    await bench.commands.heard("cam-1")
    await bench.commands.heard("cam-2")
    assert [said for said in bench.said if said[0] == "cam-1"] == [("cam-1", sent)] * 3
    await bench.answers("cam-1", CommandResult(id_, "done", count=3, found=4, text="some could not be sent"))
    bench.clock.advance(AGAIN_S + 1)
    await bench.commands.tick()
    assert len(bench.said) == 3
    found = await bench.commands.get(id_)
    assert (found.state, found.count, found.found, found.asked) == ("done", 3, 4, {"limit": 5})
    assert found.ended_at == bench.clock() - AGAIN_S - 1


async def test_only_the_device_that_was_asked_can_answer_and_only_once(bench: Bench) -> None:
    await bench.set("", **RING)
    id_ = await ask(bench)
    await bench.answers("cam-2", CommandResult(id_, "done", count=9))
    assert (await bench.commands.get(id_)).state == "pending"
    await bench.answers("cam-1", CommandResult(id_, "refused", "not-serving", "module digits does not serve"))
    await bench.answers("cam-1", CommandResult(id_, "done", count=9))
    await bench.answers("cam-1", CommandResult("\0", "done"))  # which a database may not take
    found = await bench.commands.get(id_)
    assert (found.state, found.key, found.count) == ("refused", "not-serving", 0)
    bench.clock.advance(FORGET_S + 1)
    await bench.commands.tick()
    with pytest.raises(NotFound, match="no command"):
        await bench.commands.get(id_)


async def test_a_question_that_nobody_answers_in_time_expires_and_a_late_answer_still_counts(bench: Bench) -> None:
    await bench.set("", **RING)
    id_ = await ask(bench, expires_s=60)
    bench.clock.advance(61)
    await bench.commands.tick()
    found = await bench.commands.get(id_)
    assert (found.state, found.text) == ("expired", "the device did not answer in time")
    assert "command.ended" in await bench.kinds()
    said = len(bench.said)
    await bench.commands.heard("cam-1")
    assert len(bench.said) == said
    await bench.answers("cam-1", CommandResult(id_, "done", count=1))  # it was offline with what it had done
    assert (await bench.commands.get(id_)).state == "done"


async def test_what_a_device_may_not_give_is_not_asked(bench: Bench) -> None:
    async def refused(device: str = "cam-1", module: str = "digits", **asked: Any) -> str:
        with pytest.raises(HubError) as error:
            await bench.commands.ask_samples(NewSampleRequest(device, AskSamples(module, **asked)), OPERATOR)
        return error.value.key

    assert await refused() == "no-ring"
    await bench.set("id=cam-1", **RING)
    assert await refused("cam-2") == "no-ring"
    assert await refused(stratum="no-such") == "unknown-stratum"
    assert await refused(module="other") == "not-assigned"
    assert await refused("cam-9") == "not-assigned"
    await bench.runs("cam-1", "0.1.0")
    assert await refused() == "agent-outdated"
    assert bench.said == []


async def test_a_device_is_asked_only_so_much_at_a_time(bench: Bench) -> None:
    await bench.set("", **RING)
    for _ in range(100):
        await ask(bench)
    with pytest.raises(Conflict, match="100 commands wait"):
        await ask(bench)
    assert len(await bench.commands.listed("cam-1", "", "pending", 500)) == 100
    assert await bench.commands.listed("", "", "", 500, {"cam-2"}) == []


async def test_samples_that_were_asked_for_are_counted_and_found_by_the_question(bench: Bench) -> None:
    world = bench.world
    built = await build_module(world.store, world.blobs, RANDOM.normal(size=(50, 2)), version=7)
    await bench.set("", **RING)
    id_ = await ask(bench)
    for number in range(3):
        sample = make_sample(built, f"p-{number}", bench.clock(), np.array([number, 0.5]))
        asked = msgspec.structs.replace(sample, stratum="asked", probability=1.0, request=id_ if number else "")
        await bench.monitored.send("cam-1", asked)
    assert (await bench.commands.get(id_)).arrived == 2
    rows = await Samples(world.store).list(SampleQuery(request=id_))
    assert [row.prediction_id for row in rows] == ["p-1", "p-2"]
    assert {row.request for row in rows} == {id_}


# --- blobs of samples -------------------------------------------------------------------------------------------
@pytest.fixture
def sample_blobs_of(bench: Bench, hub_paths: HubPaths) -> SampleBlobs:
    world = bench.world
    return SampleBlobs(world.store, FolderBlobs(hub_paths.sample_blobs), world.events, bench.clock, 30 * DAY_S)


def image(seed: int, size: int = 3 * PIECE_BYTES - 100) -> tuple[str, bytes, list[bytes]]:
    data = np.random.default_rng(seed).bytes(size)
    sha256 = hashlib.sha256(data).hexdigest()
    return sha256, data, cut(sha256, data)


async def rows(bench: Bench) -> tuple[int, int]:
    """Pieces and blobs in the database."""
    async with bench.world.store.read() as connection:
        counts = [await connection.scalar(select(func.count()).select_from(t)) for t in (blob_pieces, sample_blobs)]
    return counts[0] or 0, counts[1] or 0


async def test_pieces_are_put_together_once_all_are_here_also_when_they_come_twice(
    bench: Bench, sample_blobs_of: SampleBlobs
) -> None:
    sha256, data, pieces = image(1)
    await bench.monitored.send("cam-1", *pieces[:2], stream="blob")
    assert await sample_blobs_of.assemble() == 0
    with pytest.raises(NotFound, match="no blob"):
        await sample_blobs_of.size(sha256)
    await bench.monitored.send("cam-1", pieces[1], pieces[2], stream="blob")
    assert await sample_blobs_of.assemble() == 1
    assert await sample_blobs_of.read(sha256) == data
    assert b"".join([part async for part in sample_blobs_of.pages(sha256, 1000)]) == data
    await bench.monitored.send("cam-2", *pieces, stream="blob")  # another device, the same picture
    assert await rows(bench) == (0, 1)


async def test_bytes_without_their_digest_and_nonsense_are_refused_and_hold_up_nothing(
    bench: Bench, sample_blobs_of: SampleBlobs
) -> None:
    _, data, _ = image(2)
    sha256, _, pieces = image(3)
    wrong = cut(sha256, data)
    await bench.monitored.send("cam-1", b"nonsense", *wrong, b"\x81\xa6sha256\x01", stream="blob")
    await bench.monitored.send("cam-2", *pieces, stream="blob")
    assert await sample_blobs_of.assemble() == 2
    assert await sample_blobs_of.read(sha256) == image(3)[1]
    assert await rows(bench) == (0, 1)
    assert (await bench.kinds()).count("blob.refused") == 2


async def test_a_hub_that_ended_before_it_put_a_blob_together_does_it_after(
    bench: Bench, hub_paths: HubPaths, sample_blobs_of: SampleBlobs
) -> None:
    sha256, data, pieces = image(4)
    await bench.monitored.send("cam-1", *pieces, stream="blob")
    await FolderBlobs(hub_paths.sample_blobs).put(data)  # as far as it came
    assert await sample_blobs_of.assemble() == 1
    assert (await rows(bench), await sample_blobs_of.read(sha256)) == ((0, 1), data)


async def test_blobs_go_with_the_samples_and_pieces_that_never_became_whole_go_too(
    bench: Bench, sample_blobs_of: SampleBlobs
) -> None:
    old, new, part = image(5), image(6), image(7)
    await bench.monitored.send("cam-1", *old[2], stream="blob")
    await sample_blobs_of.assemble()
    await bench.monitored.send("cam-1", part[2][0], stream="blob")
    bench.clock.advance(20 * DAY_S)
    await bench.monitored.send("cam-1", *new[2], stream="blob")
    await sample_blobs_of.assemble()
    assert INCOMPLETE_S < 20 * DAY_S
    assert await sample_blobs_of.sweep() == (0, 1)
    bench.clock.advance(11 * DAY_S)
    assert await sample_blobs_of.sweep() == (1, 0)
    assert (await sample_blobs_of.here(old[0]), await sample_blobs_of.here(new[0])) == (False, True)


async def test_a_sample_says_what_it_does_not_hold(bench: Bench) -> None:
    world = bench.world
    built = await build_module(world.store, world.blobs, RANDOM.normal(size=(50, 2)), version=7)
    sample = make_sample(built, "p", bench.clock(), np.array([1.0, 0.5]))
    apart = Withheld("picture", "input", "UINT8", (1, 300, 300), "blob", "a" * 64, 90_000)
    await bench.monitored.send("cam-1", msgspec.structs.replace(sample, withheld=(apart,), redacted={"x[0]": "hash"}))
    (row,) = await Samples(world.store).list(SampleQuery())
    assert [(one.name, one.why, one.sha256, one.size) for one in row.withheld] == [
        ("picture", "blob", "a" * 64, 90_000)
    ]
    assert row.redacted == {"x[0]": "hash"}
    found, device = await Samples(world.store).sample(row.id)
    assert (found.withheld, device) == ((apart,), "cam-1")
    with pytest.raises(NotFound, match="no sample"):
        await Samples(world.store).sample(row.id + 1)


# --- words ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("hot=0.5:x[temp]>=30", {"rate": 0.5, "when": "between", "feature": "x[temp]", "at_least": 30.0}),
        ("mid=1:1<=x[3]<2.5", {"rate": 1.0, "when": "between", "feature": "x[3]", "at_least": 1.0, "below": 2.5}),
        ("odd=1:out-of-range", {"rate": 1.0, "when": "out_of_range"}),
        ("odd=1:missing(x[3])", {"rate": 1.0, "when": "missing", "feature": "x[3]"}),
        ("low=0.2:confidence<0.6", {"rate": 0.2, "when": "low_confidence", "below": 0.6}),
        ("low=0.2:margin < 0.1", {"rate": 0.2, "when": "low_margin", "below": 0.1}),
        ("cats=1:class=cat", {"rate": 1.0, "when": "equals", "equals": "cat"}),
        ("red=1:word=red wine", {"rate": 1.0, "when": "equals", "feature": "word", "equals": "red wine"}),
    ],
)
def test_a_stratum_is_read_as_it_is_written(text: str, found: dict[str, object]) -> None:
    assert words.stratum(text) == (text.partition("=")[0], found)
    assert SamplingPolicy(strata=(msgspec.convert({"name": "a", **found}, Stratum),)).strata


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("x[0]=drop", ("x[0]", {"action": "drop"})),
        ("name=hash", ("name", {"action": "hash"})),
        ("x=coarsen:0.5", ("x", {"action": "coarsen", "step": 0.5})),
        ("img=blur:0,1,20,30/8", ("img", {"action": "blur", "region": [0, 1, 20, 30], "step": 8.0})),
        ("img=blur", ("img", {"action": "blur"})),
        ("x=none", ("x", None)),
    ],
)
def test_a_redaction_is_read_as_it_is_written(text: str, found: object) -> None:
    assert words.redaction(text) == found


@pytest.mark.parametrize(("text", "count"), [("5MB", 5_000_000), ("2MiB", 2 * 2**20), ("4096", 4096), ("none", None)])
def test_a_size_is_read_as_it_is_written(text: str, count: int | None) -> None:
    assert words.size(text) == count


@pytest.mark.parametrize(
    ("parse", "text"),
    [
        (words.stratum, "hot"), (words.stratum, "hot=1"), (words.stratum, "hot=x:missing"), (words.stratum, "a=1:what"),
        (words.redaction, "x"), (words.redaction, "x=burn"), (words.redaction, "x=hash:3"),
        (words.redaction, "x=blur:1,2"), (words.size, "5 apples"), (words.size, ""), (words.seconds, "5w"),
        (words.count, "-1"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused_with_what_does(parse: Any, text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        parse(text)


def test_times_are_read_as_they_are_written() -> None:
    assert [words.seconds(text) for text in ("90", "90s", "15m", "6h", "2d", "none")] == [
        90,
        90,
        900,
        21_600,
        172_800,
        None,
    ]
