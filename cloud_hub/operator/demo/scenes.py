"""The order of the acts, and what the demo claims: from a trained model to a drift alert, and back.

Every number in a claim was measured in this run on the processes that are up. Called by `command`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from cloud_hub.monitoring.alert_book import Alert
from cloud_hub.operator.client import HubClient
from cloud_hub.operator.context import HubContext
from cloud_hub.operator.demo import acts
from cloud_hub.operator.demo.digits import (
    Classifier,
    Parts,
    accuracy,
    affected_pixels,
    broken_camera,
    load,
    train,
)
from cloud_hub.operator.demo.fleet import AgentProcess, HubProcess
from cloud_hub.operator.demo.story import Story
from cloud_hub.rollouts.states import ExecutionState
from cloud_hub.rollouts.status import RolloutStatus

LOOK_S = 2.0
FIRST_RATE, SECOND_RATE = 0.75, 0.1  # share of predictions sampled
REPEATS = 3  # how often a collected image counts against an original one in the second training
GOOD = 0.85  # accuracy that the retrained model must reach on what the broken camera sees
FEW_DEVICES, MANY_DEVICES = 3, 20


def device_names(count: int) -> tuple[str, ...]:
    return tuple(f"cam-{number}" for number in range(1, count + 1))


def same_batch(devices: tuple[str, ...]) -> tuple[str, ...]:
    """The devices whose cameras come from one batch: the later half, at least two."""
    return devices[-max(2, len(devices) // 2) :]


async def play(world: acts.World) -> None:
    """The whole story. Raises ClaimError when a claim fails that the rest builds on."""
    story, batch = world.story, same_batch(world.devices)
    with story.stage("train", "Train a classifier on handwritten digits and convert it to ONNX"):
        parts = await asyncio.to_thread(load)
        first = await asyncio.to_thread(train, parts.training)
        story.say(f"{accuracy(first.predict(parts.calm), parts.calm):.1%} of {len(parts.calm)} held-out images right")
    with story.stage("enrol", f"Enrol {len(world.devices)} devices, each with a key of its own"):
        await acts.enrol(world, {name: {"camera": "b" if name in batch else "a"} for name in world.devices})
    with story.stage("release", "Register version 1, build and sign its module, roll it out"):
        one = await acts.release(world, first, parts.reference, FIRST_RATE, "trained on clean images")
        _claim_verified(story, await acts.roll_out(world, one, "all", ("1", "rest")), len(world.devices))
    with story.stage("serve", "Send held-out images through every device's endpoint"):
        await _calm(world, one, first, parts)
    with story.stage("fault", f"Dirt and dusk come over the camera of {batch[0]}"):
        await _fault(world, one, first, parts, batch[0])
    with story.stage("label", "Send in what a person has read off the samples that came back"):
        await _labels(world, one, batch[0])
    with story.stage("retrain", "Train again with the labelled samples that came back"):
        kept = await acts.collected(world, batch[0], one, f"{batch[0]}-fault")
        held_out, lesson = kept.part(0, len(kept) // 3), kept.part(len(kept) // 3, len(kept))
        second = await asyncio.to_thread(train, parts.training.joined(lesson, REPEATS))
        story.say(f"{len(lesson)} labelled samples of {batch[0]} to learn from, {len(held_out)} held out as reference")
    with story.stage("canary", f"Roll version 2 out to the cameras of that batch, {batch[0]} first"):
        two = await acts.release(world, second, held_out, SECOND_RATE, "trained on clean and broken images")
        status = await acts.roll_out(world, two, "camera=b", ("1", "rest"))
        _claim_verified(story, status, len(batch))
        _claim_canary(story, status)
    with story.stage("recover", "Send images that no one has seen, through the broken cameras"):
        await _recover(world, two, first, second, parts)


async def _calm(world: acts.World, version: int, classifier: Classifier, parts: Parts) -> None:
    labels, images = await acts.predict_everywhere(world, world.devices, version, parts.calm, "calm")
    acts.claim_same_answers(world, "devices", labels, classifier.predict(images), images)
    acts.claim_equal(world, "every prediction is counted exactly once", await acts.everything_arrived(world, version))
    await asyncio.sleep(2 * LOOK_S)
    _claim_quiet(world.story, "nothing alarms while nothing is wrong", await acts.open_alerts(world))


async def _fault(world: acts.World, version: int, classifier: Classifier, parts: Parts, device: str) -> None:
    seen = broken_camera(parts.faulty)
    alert, answers, needed = await acts.until_alert(world, device, version, seen)
    before, now = accuracy(classifier.predict(parts.calm), parts.calm), accuracy(answers.labels, seen)
    world.story.claim("the fault costs accuracy", now < before - 0.2, f"{before:.1%} before, {now:.1%} now")
    evidence = f"after {needed} images" if alert is not None else "no alert"
    world.story.claim(f"a drift alert names {device}", alert is not None, evidence, needed=True)
    if alert is not None:
        _claim_pixels(world.story, alert)
    others = [a for a in await acts.open_alerts(world) if a.scope not in (f"device:{device}", "fleet")]
    _claim_quiet(world.story, "no other device is blamed", others)


async def _labels(world: acts.World, version: int, device: str) -> None:
    """Accuracy by device, from samples alone: each counts for those that were not sampled."""
    found = await acts.labelled(world, version)
    others = [share for name, share in found.items() if name != device]
    told = ", ".join(f"{name} {share:.1%}" for name, share in sorted(found.items()))
    broken = found.get(device, 1.0)
    world.story.claim("labels of the samples show where accuracy was lost", broken < min(others, default=0) - 0.2, told)


def _claim_pixels(story: Story, alert: Alert) -> None:
    """Named in the evidence are the strongest, inputs and outputs."""
    alarming = [feature for feature in alert.evidence.features if feature.alarm and feature.role == "input"]
    named = [feature.name.split("[")[-1].rstrip("]") for feature in alarming]
    covered = [name for name in named if name in affected_pixels()]
    dimmed = [name for name in named if name not in affected_pixels()]
    story.claim(
        "the alert names the pixels under the dirt, and dimmed ones",
        bool(covered) and bool(dimmed),
        f"covered: {', '.join(covered[:4]) or 'none'}; dimmed: {', '.join(dimmed[:4]) or 'none'}",
    )


async def _recover(world: acts.World, version: int, first: Classifier, second: Classifier, parts: Parts) -> None:
    seen = broken_camera(parts.last)
    batch = same_batch(world.devices)
    labels, images = await acts.predict_everywhere(world, batch, version, seen, "last")
    acts.claim_same_answers(world, "broken cameras", labels, second.predict(images), images)
    old, new = accuracy(first.predict(images), images), accuracy(labels, images)
    world.story.claim("accuracy is back", new >= GOOD, f"{new:.1%} with version 2; version 1 would have {old:.1%}")
    arrived = await acts.everything_arrived(world, version)
    acts.claim_equal(world, "every prediction is counted exactly once again", arrived)

    async def calm() -> bool:
        return not await acts.open_alerts(world)

    await acts.eventually("evidence is calm", calm)
    await asyncio.sleep(2 * LOOK_S)
    _claim_quiet(world.story, "evidence is calm again", await acts.open_alerts(world))


def _claim_verified(story: Story, status: RolloutStatus, devices: int) -> None:
    verified = sum(execution.state is ExecutionState.VERIFIED for execution in status.executions)
    reasons = "; ".join(f"{e.device}: {e.reason}" for e in status.executions if e.reason and e.finished_at)
    evidence = f"{verified} of {devices} devices" + (f" ({reasons})" if verified < devices else "")
    version = status.rollout.version
    story.claim(f"version {version} is verified healthy after probation", verified == devices, evidence, needed=True)


def _claim_canary(story: Story, status: RolloutStatus) -> None:
    """No device of the second group was touched before the canary was verified."""
    canary = [e.finished_at or 0.0 for e in status.executions if e.group_index == 0]
    rest = [e.started_at or 0.0 for e in status.executions if e.group_index == 1]
    gap = min(rest) - max(canary) if canary and rest else -1.0
    story.claim("the canary was verified before the rest began", gap >= 0.0, f"{gap:.2f} s between")


def _claim_quiet(story: Story, claim: str, alerts: list[Alert]) -> None:
    names = "; ".join(f"{a.kind} of {a.scope}: {', '.join(f.name for f in a.evidence.features[:3])}" for a in alerts)
    story.claim(claim, not alerts, names or "no open alert")


@asynccontextmanager
async def fleet_in(folder: Path, count: int, story: Story) -> AsyncIterator[acts.World]:
    """A hub with its broker and `count` devices (not enrolled yet) in `folder`; all stopped at the end."""
    hub = HubProcess(folder / "hub")
    with story.stage("hub", "Make keys, start hub and broker"):
        await hub.init("--look", str(LOOK_S))
    async with AsyncExitStack() as running:
        running.push_async_callback(hub.service.stop)
        await hub.start()
        client = await running.enter_async_context(HubClient(HubContext.load(hub.context)))
        agents = {name: AgentProcess(name, folder) for name in device_names(count)}
        for agent in agents.values():
            running.push_async_callback(agent.service.stop)
        yield acts.World(story, hub, client, agents)
