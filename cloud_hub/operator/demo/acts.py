"""The demo's story, act by act: each does one thing a person would do, and checks what it claims about it.

A world (hub, devices, API client) goes in, claims come out through the story. The order is `scenes.play`'s.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from cloud_hub.building.request import BuildRequest
from cloud_hub.claims import NewToken
from cloud_hub.labels.report import QualityQuery
from cloud_hub.labels.rows import MAX_ROWS, NewLabel, NewLabels
from cloud_hub.monitoring.alert_book import Alert
from cloud_hub.monitoring.samples import SampleQuery, SampleRow
from cloud_hub.operator.client import HubClient
from cloud_hub.operator.demo.digits import CLASSES, INPUT, PIXELS, Array, Classifier, Images, accuracy
from cloud_hub.operator.demo.fleet import AgentProcess, HubProcess, local_profile
from cloud_hub.operator.demo.processes import ProcessFailed
from cloud_hub.operator.demo.story import Story
from cloud_hub.operator.demo.traffic import Answers, send
from cloud_hub.registry import NewModel
from cloud_hub.rollouts.new import NewRollout
from cloud_hub.rollouts.states import ENDED, RolloutState
from cloud_hub.rollouts.status import RolloutStatus
from modules.manifest import Health, SamplingPolicy

MODEL = "digits"
WINDOW_S = 1.0
PROBATION_S = 2.0
DEADLINE_S = 60.0
POLL_S = 0.25
BATCH = 20  # images between two looks at the alerts


@dataclass
class World:
    """Everything that is up. `sent` counts predictions by device, `ids` keeps the truth by prediction id."""

    story: Story
    hub: HubProcess
    client: HubClient
    agents: dict[str, AgentProcess]
    endpoints: dict[str, str] = field(default_factory=dict)
    sent: dict[tuple[str, int], int] = field(default_factory=dict)
    truth: dict[str, int] = field(default_factory=dict)

    @property
    def devices(self) -> tuple[str, ...]:
        return tuple(self.agents)


async def eventually(what: str, found: Callable[[], Awaitable[bool]], deadline_s: float = DEADLINE_S) -> None:
    """Ask until the answer is yes. Raises ProcessFailed at the deadline."""
    end = asyncio.get_running_loop().time() + deadline_s
    while not await found():
        if asyncio.get_running_loop().time() > end:
            raise ProcessFailed(f"{what}: not so after {deadline_s:.0f} s")
        await asyncio.sleep(POLL_S)


async def enrol(world: World, tags: dict[str, dict[str, str]]) -> None:
    """One token, one key, one certificate and one process for each device; done when all have reported."""

    async def one(agent: AgentProcess) -> None:
        token = await world.client.create_token(NewToken(device=agent.name, tags=tags[agent.name]))
        await agent.enrol(world.client.context.url, token, local_profile())
        agent.show_at_once()
        await agent.start()

    await asyncio.gather(*(one(agent) for agent in world.agents.values()))

    async def reported() -> bool:
        for agent in world.agents.values():
            agent.service.check()
        return all(device.report is not None for device in await world.client.devices())

    await eventually("every device has reported", reported)


async def release(world: World, classifier: Classifier, reference: Images, rate: float, note: str) -> int:
    """Register the classifier, build its module with held-out images as reference, sign it. Returns the version."""
    with tempfile.TemporaryDirectory() as folder:
        model, sample = Path(folder) / "model.onnx", Path(folder) / "reference.npz"
        model.write_bytes(classifier.onnx)
        _save_arrays(sample, {INPUT: reference.pixels})
        registered = await world.client.register(
            NewModel(MODEL, description=note, author="mooring demo", tags={"data": "digits"}), {"model.onnx": model}
        )
        uploaded = await world.client.upload(sample)
    request = BuildRequest(
        model=MODEL,
        version=registered.version,
        profile=local_profile(),
        reference=uploaded.sha256,
        labels={INPUT: PIXELS, "label": CLASSES},
        sampling=SamplingPolicy(rate=rate, window_s=WINDOW_S),
        health=Health(probation_s=PROBATION_S),
    )
    built = await world.client.build(request)
    signed = await world.client.sign(MODEL, registered.version, built.profile)
    world.story.say(
        f"{MODEL} version {signed.version}: {signed.size / 1000:.0f} kB, manifest {signed.manifest_sha256[:12]}, "
        f"release counter {signed.release_counter}"
    )
    return registered.version


def _save_arrays(target: Path, arrays: dict[str, Any]) -> None:
    """Any, because NumPy's type stubs take every keyword for one of its own options."""
    np.savez_compressed(target, **arrays)


async def roll_out(world: World, version: int, target: str, groups: tuple[str, ...]) -> RolloutStatus:
    """Create, start and watch a rollout until it has ended; then note where each device's endpoint is."""
    new = NewRollout(
        MODEL, version, target, groups, device_deadline_s=DEADLINE_S, deadline_s=3 * DEADLINE_S, start=True
    )
    status = await world.client.create_rollout(new)

    async def ended() -> bool:
        nonlocal status
        status = await world.client.rollout(status.rollout.id)
        return status.rollout.state in ENDED

    await eventually(f"the rollout of {MODEL} version {version} has ended", ended, 3 * DEADLINE_S)
    if status.rollout.state is RolloutState.FINISHED:
        await _find_endpoints(world, version, [execution.device for execution in status.executions])
    return status


async def _find_endpoints(world: World, version: int, devices: Sequence[str]) -> None:
    for name in devices:
        report = (await world.client.device(name)).device.report
        modules = report.modules if report is not None else ()
        world.endpoints[name] = next(m.endpoint for m in modules if (m.name, m.version) == (MODEL, version))


async def predict(world: World, device: str, version: int, images: Images, phase: str) -> Answers:
    """Send images through the device's endpoint, as an application on it would."""
    answers = await asyncio.to_thread(send, world.endpoints[device], MODEL, images, f"{device}-{phase}")
    key = (device, version)
    world.sent[key] = world.sent.get(key, 0) + len(images)
    world.truth |= zip(answers.ids, images.labels.tolist(), strict=True)
    return answers


async def predict_everywhere(
    world: World, devices: Sequence[str], version: int, images: Images, phase: str
) -> tuple[Array, Images]:
    """Share the images among the devices, all at once. Returns labels and images in the same order."""
    shares = [images.share(index, len(devices)) for index in range(len(devices))]
    jobs = (predict(world, name, version, share, phase) for name, share in zip(devices, shares, strict=True))
    answers = await asyncio.gather(*jobs)
    joined = shares[0]
    for share in shares[1:]:
        joined = joined.joined(share)
    return np.concatenate([answer.labels for answer in answers]), joined


async def counted(world: World, device: str, version: int) -> int:
    """Rows that the hub has counted for this version on this device."""
    looks = await world.client.windows(MODEL, version, device, limit=500)
    return sum(look.rows for look in looks)


async def everything_arrived(world: World, version: int) -> str:
    """Wait until the hub has counted every prediction. Returns the numbers, which must be equal, as a sentence."""
    expected = {device: sent for (device, of), sent in world.sent.items() if of == version}
    arrived: dict[str, int] = {}

    async def all_counted() -> bool:
        for device in expected:
            arrived[device] = await counted(world, device, version)
        return all(arrived[device] >= count for device, count in expected.items())

    await eventually("the hub has counted every prediction", all_counted)
    return f"{sum(expected.values())} sent, {sum(arrived.values())} counted"


def claim_equal(world: World, claim: str, sentence: str) -> None:
    """The two numbers of an "N sent, M counted" sentence are the same."""
    sent, arrived = (int(part.split()[0]) for part in sentence.split(", "))
    world.story.claim(claim, sent == arrived, sentence)


def claim_same_answers(world: World, where: str, labels: Array, offline: Array, images: Images) -> None:
    """Devices answer as scikit-learn does, image by image, so accuracy is the same too."""
    on_devices, on_paper = accuracy(labels, images), accuracy(offline, images)
    different = int(np.sum(labels != offline))
    world.story.claim(
        f"accuracy on the {where} equals accuracy offline",
        different == 0 and on_devices == on_paper,
        f"{on_devices:.1%} and {on_paper:.1%} on {len(images)} images, {different} answers differ",
    )


async def open_alerts(world: World) -> list[Alert]:
    return await world.client.alerts("open", MODEL)


async def until_alert(world: World, device: str, version: int, images: Images) -> tuple[Alert | None, Answers, int]:
    """Send images a few at a time until an alert about the device is open, then the rest.

    Returns the alert with all the evidence there is in the end, every answer in order, and how many images it took.
    """
    parts: list[Answers] = []
    found: Alert | None = None
    needed = 0
    for start in range(0, len(images), BATCH):
        part = images.part(start, start + BATCH)
        parts.append(await predict(world, device, version, part, f"fault{start}"))
        needed += len(part) if found is None else 0
        if found is None:
            await asyncio.sleep(WINDOW_S)
            found = _about(device, await open_alerts(world))
    await everything_arrived(world, version)
    await asyncio.sleep(2 * WINDOW_S)
    found = _about(device, await open_alerts(world)) or found
    labels = np.concatenate([part.labels for part in parts])
    return found, Answers(labels, tuple(id_ for part in parts for id_ in part.ids)), needed


def _about(device: str, alerts: Sequence[Alert]) -> Alert | None:
    return next((alert for alert in alerts if alert.scope == f"device:{device}" and alert.kind == "drift"), None)


async def collected(world: World, device: str, version: int, prefix: str) -> Images:
    """The samples of one device and phase, with the labels that the story knows by prediction id."""
    rows: list[SampleRow] = []

    async def settled() -> bool:
        before = len(rows)
        rows[:] = await _all_samples(world, device, version)
        return before == len(rows) > 0

    await everything_arrived(world, version)
    await eventually("the samples have arrived", settled)
    wanted = [row for row in rows if row.prediction_id.startswith(prefix)]
    pixels = np.array([row.inputs[0].data[0] for row in wanted], dtype=np.float32)
    return Images(pixels, np.array([world.truth[row.prediction_id] for row in wanted], dtype=np.int64))


async def labelled(world: World, version: int) -> dict[str, float]:
    """Send in the truth of every sample; the accuracy of each device that the hub makes of it."""
    rows = [row for device in world.devices for row in await _all_samples(world, device, version)]
    labels = [NewLabel(row.prediction_id, world.truth[row.prediction_id], row.device) for row in rows]
    for start in range(0, len(labels), MAX_ROWS):
        await world.client.add_labels(NewLabels(tuple(labels[start : start + MAX_ROWS])))
    (report, *_) = await world.client.quality(QualityQuery(MODEL, version, by="device"))
    return {part.name: part.accuracy.value for part in report.parts if part.accuracy is not None}


async def _all_samples(world: World, device: str, version: int) -> list[SampleRow]:
    rows: list[SampleRow] = []
    query = SampleQuery(module=MODEL, version=version, device=device, limit=500)
    while page := await world.client.samples(query):
        rows += page
        query = msgspec.structs.replace(query, after=page[-1].id)
    return rows
