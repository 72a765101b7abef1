"""The loop by itself: a world that changes, an alert, labels, a training, a verdict, a canary; and its other ends."""

from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from cloud_hub.monitoring.alert_book import AlertEvidence
from cloud_hub.monitoring.looks import Group
from cloud_hub.monitoring.scopes import FLEET
from cloud_hub.retraining.records import RunState
from support.retraining import DEVICE, MODULE, Loop, loop, working

WORSE = """
import os, shutil
from pathlib import Path
output, base = Path(os.environ["MOORING_OUTPUT"]), Path(os.environ["MOORING_BASE_MODEL"])
shutil.copy(base / "model.onnx", output / "model.onnx")
print("the champion again")
"""

pytestmark = pytest.mark.timeout(180)  # real trainings, on machines that are busy


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[Loop]:
    async with loop(tmp_path / "hub") as made:
        yield made


async def test_a_drift_alert_closes_the_loop_up_to_the_canary(world: Loop) -> None:
    rooms = world.rooms
    await world.sample(600)
    plan = await world.plan(real=True)
    await rooms.retraining.triggers.open()
    async with working(rooms):
        await rooms.alerts.raise_alert("drift", MODULE, Group(world.manifest_sha256, FLEET), AlertEvidence(9.0, 0.0))
        run = await world.until(RunState.CANARY)
    assert run.state is RunState.CANARY, (run.result.reason, run.result.log)
    result = run.result
    assert run.why.startswith("drift alert")
    assert (run.runner, result.champion, result.version) == ("hub", 1, 2)
    assert "trained on 4" in result.log
    assert result.verdict is not None
    assert result.verdict.accepted
    assert result.verdict.candidate["accuracy"] > 0.9 > result.verdict.champion["accuracy"]
    model = await rooms.registry.get(MODULE, 2)
    assert (model.parent, model.datasets, model.tags["retrain.run"]) == (f"{MODULE}:1", (result.dataset,), run.id)
    dataset = await rooms.datasets.book.get(plan.name, 1)
    assert (dataset.reference, dataset.run, dataset.rows) == (result.dataset, run.id, 600)
    (execution,) = (await rooms.rollouts.get(result.rollout)).executions
    assert (execution.device, execution.state) == (DEVICE, "assigned")
    states = [event.kind for event in await rooms.events.list(subject=run.id)]
    assert states[::-1] == [
        f"retrain.{state}"
        for state in (
            "queued", "collecting", "waiting", "training", "judging", "registering", "building", "signing", "starting",
            "canary",
        )
    ]  # fmt: skip


async def test_a_candidate_that_is_no_better_is_refused_with_the_figures(world: Loop) -> None:
    await world.sample(400)
    await world.plan(script=WORSE)
    async with working(world.rooms):
        await world.rooms.retraining.triggers.start("nightly", "by hand", "alice")
        run = await world.until()
    assert run.state is RunState.REFUSED, run.result
    assert "accuracy > champion: sure of" in run.result.reason
    assert [model.version for model in await world.rooms.registry.list(MODULE)] == [1]
    assert await world.rooms.rollouts.list() == []


async def test_too_few_labels_end_a_run_before_it_trains(world: Loop) -> None:
    await world.sample(20)
    await world.sample(100, seed=3, labelled=False)
    await world.plan()
    async with working(world.rooms):
        await world.rooms.retraining.triggers.start("nightly", "by hand", "alice")
        run = await world.until()
    assert run.state is RunState.SKIPPED
    assert "expected at least 50 labelled rows" in run.result.reason


async def test_a_training_that_fails_says_how(world: Loop) -> None:
    await world.sample(100)
    async with working(world.rooms):
        for script, words in (
            ("raise SystemExit(3)", "status 3"),
            ("print('nothing')", "left no file in MOORING_OUTPUT"),
            ("import time; time.sleep(600)", "had not ended after 1 s"),
            ("open(__import__('os').environ['MOORING_OUTPUT'] + '/model.onnx', 'w').write('x')", "not a valid ONNX"),
        ):
            plan = await world.plan(script=script)
            training = msgspec.structs.replace(plan.training, deadline_s=1.0 if "600" in script else 60.0)
            await world.rooms.retraining.triggers.put(msgspec.structs.replace(plan, training=training), "alice")
            await world.rooms.retraining.triggers.start("nightly", "by hand", "alice")
            run = await world.until()
            assert run.state is RunState.FAILED
            assert words in run.result.reason
