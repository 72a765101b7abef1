"""A shadow and an arm from the hub's word to the hub's figures: a real hub, a real device, two models."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from agent.config import ReportLimits
from cloud_hub.arms.candidate import Candidate, CandidateReport, NewCandidate, Promotion
from cloud_hub.monitoring.samples import SampleQuery
from cloud_hub.rollouts.states import RolloutState
from support.predict import get, served_version
from support.waiting import until
from system.world import MODEL, Device, World

# Several steps, each with a deadline of its own: on a busy machine they take longer together than one test usually may.
pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(240)]


async def beside(world: World, device: Device, **wanted: object) -> Candidate:
    """Starts version 2 beside version 1, and waits until the device runs it."""
    new = NewCandidate(MODEL, 2, target=f"id={device.name}", device_deadline_s=world.deadline_s, **wanted)  # type: ignore[arg-type]
    candidate = await world.client.start_candidate(new)
    state, execution = await world.ended(candidate.id)
    assert state is RolloutState.FINISHED, execution
    return candidate


@asynccontextmanager
async def talkative(world: World, name: str) -> AsyncIterator[tuple[Device, str]]:
    """A device that says every second what it counts, and the address of its version 1."""
    async with world.device(name, start=False) as device:
        device.configure(report=ReportLimits(debounce_s=0.05, every_s=1.0))
        await device.start()
        yield device, await world.roll_out(device, 1)


async def ask(address: str, number: int) -> str:
    """The version that answers. Raises OSError where none does."""
    x = {"name": "X", "datatype": "FP32", "shape": [1, 4], "data": [float(number % 7), 1.0, 2.0, 3.0]}
    body = json.dumps({"id": f"p-{number}", "inputs": [x]}).encode()
    return str((await get(f"{address}/v2/models/{MODEL}/infer", body))["model_version"])


async def sampled(world: World, device: Device) -> dict[str, dict[str, object]]:
    """Values of what went in, by build and prediction id."""
    found: dict[str, dict[str, object]] = {}
    for row in await world.client.samples(SampleQuery(module=MODEL, device=device.name, limit=500)):
        found.setdefault(row.manifest_sha256, {})[row.prediction_id] = row.inputs
    return found


async def test_a_shadow_s_answers_come_to_the_hub_in_pairs_and_go_to_nobody(world: World) -> None:
    async with talkative(world, "beside-1") as (device, address):
        candidate = await beside(world, device)
        assert {await ask(address, number) for number in range(30)} == {"1"}

        async def paired() -> bool:
            taken = list((await sampled(world, device)).values())
            return len(taken) == 2 and taken[0] == taken[1] and len(taken[0]) == 30

        await world.until("both versions' samples of the same predictions", paired)
        found: list[CandidateReport] = []

        async def compared() -> bool:
            found.append(await world.client.candidate_report(candidate.id, baseline=1))
            comparison = found[-1].comparison
            return found[-1].outcomes.compared >= 30 and comparison is not None and comparison.candidate_rows >= 30

        await world.until("the comparison of both", compared)
        assert found[-1].comparison is not None
        assert found[-1].comparison.design == "paired"
        assert found[-1].outcomes.errors == 0
        assert (await world.client.drop_candidate(candidate.id, "seen enough")).state == "dropped"
        assert (await world.outcome(candidate.id)).rollout.state is RolloutState.ROLLED_BACK
        await device.until("no candidate left", lambda s: not any(m.candidate for m in s.report.modules))
        assert await served_version(address) == 1


async def test_an_arm_answers_its_share_until_it_is_promoted_and_no_request_is_lost(world: World) -> None:
    async with talkative(world, "beside-2") as (device, address):
        candidate = await beside(world, device, way="arm", share=0.5)
        done, answers = asyncio.Event(), list[str]()

        async def traffic() -> None:
            while not done.is_set():
                answers.append(await ask(address, len(answers)))
                await asyncio.sleep(0.01)

        busy = asyncio.create_task(traffic())
        try:
            await until(lambda: set(answers[-50:]) == {"1", "2"}, "answers of both", world.deadline_s)
            await world.client.change_candidate_share(candidate.id, 1.0)
            await until(lambda: answers[-20:] == ["2"] * 20, "the new share", world.deadline_s)
            promoted = await world.client.promote_candidate(candidate.id, Promotion())
            assert (await world.outcome(promoted.promoted_by)).rollout.state is RolloutState.FINISHED
        finally:
            done.set()
            await busy  # raises for a request that was not answered
        assert await served_version(await device.serves(2)) == 2
        assert [one.state for one in await world.client.candidates(MODEL) if one.id == candidate.id] == ["promoted"]
