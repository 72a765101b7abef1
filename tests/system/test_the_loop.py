"""From a registered model to a device that serves it, and back: predictions, windows, samples, the next version."""

from __future__ import annotations

import json

import numpy as np
import pytest

from cloud_hub.building.request import BuildRequest
from cloud_hub.operator.errors import Refused
from cloud_hub.rollouts.new import NewRollout
from cloud_hub.rollouts.states import ExecutionState, RolloutState
from modules.manifest import Health
from mooring_client import AsyncClient
from support.built import rows
from support.predict import served_version
from system.traffic import Traffic, json_request, post, predict
from system.world import DEADLINE_S, MODEL, PROFILE, World

pytestmark = pytest.mark.asyncio(loop_scope="session")
INFER = f"/v2/models/{MODEL}/infer"


async def test_a_released_model_is_served_on_a_device_and_every_prediction_comes_back_once(world: World) -> None:
    async with world.device("loop-1") as device:
        address = await world.roll_out(device, 1)
        status, (_, body) = await post(address, INFER, json_request("json-1"), {})
        assert status == 200
        answer = json.loads(body)
        assert (answer["model_name"], answer["model_version"], answer["id"]) == (MODEL, "1", "json-1")
        labels = {output["name"]: output["data"] for output in answer["outputs"]}["label"]
        assert await _binary(address, "binary-1") == labels == [0]
        async with AsyncClient(MODEL, state=device.state, transport="shared-memory") as client:
            assert (await client.ask({"X": rows(1)}, id="shared-1"))["label"].tolist() == labels
        more = await predict(address, "more", 40)
        await world.arrived(device, (1,), ["json-1", "binary-1", "shared-1", *more])


async def _binary(address: str, id_: str) -> list[int]:
    """The label of the first row of iris, asked for and answered in bytes."""
    row = rows(1)
    tensor = {
        "name": "X", "shape": [1, 4], "datatype": "FP32", "parameters": {"binary_data_size": row.nbytes}
    }  # fmt: skip
    output = {"name": "label", "parameters": {"binary_data": True}}
    head = json.dumps({"id": id_, "inputs": [tensor], "outputs": [output]}).encode()
    status, (headers, body) = await post(
        address, INFER, head + row.tobytes(), {"Inference-Header-Content-Length": str(len(head))}
    )
    assert status == 200, body
    length = int({name.lower(): value for name, value in headers.items()}["inference-header-content-length"])
    assert json.loads(body[:length])["outputs"][0]["parameters"] == {"binary_data_size": 8}
    return [int(label) for label in np.frombuffer(body[length:], "<i8")]


async def test_the_next_version_takes_over_without_one_failed_request(world: World) -> None:
    async with world.device("loop-2") as device:
        address = await world.roll_out(device, 1)
        async with (
            Traffic(address, "fresh", kept=False) as fresh,
            Traffic(address, "kept", kept=True) as kept,
        ):
            assert await world.roll_out(device, 2) == address
            answered = len(fresh.answered), len(kept.answered)
            await device.until(
                "both go on", lambda _: len(fresh.answered) > answered[0] + 5 and len(kept.answered) > answered[1] + 5
            )
        assert fresh.failed == kept.failed == []
        assert fresh.versions == kept.versions == ["1", "2"]
        await world.arrived(device, (1, 2), fresh.answered + kept.answered)


async def test_a_version_in_an_active_deployment_cannot_be_deleted(world: World) -> None:
    async with world.device("loop-3") as device:
        await world.roll_out(device, 1)
        with pytest.raises(Refused, match="iris version 1") as caught:
            await world.client.delete_model(MODEL, 1)
    assert (caught.value.status, caught.value.key) == (409, "model-in-use")


async def test_what_does_not_exist_is_named_in_a_404(world: World) -> None:
    client = world.client
    cases = (
        (client.model("no-such-model", 1), "no-such-model"),
        (client.model(MODEL, 999), "999"),
        (client.module(MODEL, 999, PROFILE), "999"),
        (client.sign(MODEL, 1, "no-such-profile"), "no-such-profile"),
        (client.build(BuildRequest(MODEL, 1, "no-such-profile", reference="0" * 64)), "no-such-profile"),
        (client.device("no-such-device"), "no-such-device"),
        (client.set_tags("no-such-device", {"a": "b"}), "no-such-device"),
        (client.rollout("no-such-rollout"), "no-such-rollout"),
    )
    for call, name in cases:
        with pytest.raises(Refused, match=name) as caught:
            await call
        assert caught.value.status == 404, name


async def test_a_canary_slower_than_promised_is_reverted_and_the_fleet_stays_on_the_old_version(world: World) -> None:
    impossible = Health(probation_s=0.5, probation_inferences=20, latency_bound_ms=0.000001)
    version = await world.release(3, health=impossible)
    fleet = {"test": "canary"}
    async with world.device("canary-1", tags=fleet) as canary, world.device("canary-2", tags=fleet) as rest:
        address = await world.roll_out(canary, 1)
        await world.roll_out(rest, 1)
        new = NewRollout(MODEL, version, "test=canary", ("1", "rest"), device_deadline_s=DEADLINE_S, start=True)
        async with Traffic(address, "slow", kept=False) as traffic:
            status = await world.outcome((await world.client.create_rollout(new)).rollout.id)
            await canary.serves(1)
        assert status.rollout.state is RolloutState.FAILED
        first, second = sorted(status.executions, key=lambda execution: execution.device)
        assert (first.state, first.reason_key) == (ExecutionState.REVERTED, "latency")
        assert "expected a 99th percentile of at most 1e-06 ms" in first.reason
        assert (second.state, second.started_at) == (ExecutionState.CANCELLED, None)
        assert traffic.failed == []
        assert traffic.versions[:2] == ["1", str(version)]
        for device in (canary, rest):
            assert [(a.module, a.version) for a in (await world.client.device(device.name)).desired] == [(MODEL, 1)]
            assert await served_version(await device.serves(1)) == 1


async def test_status_and_doctor_print_json(world: World) -> None:
    async with world.device("loop-5") as device:
        await world.roll_out(device, 1)
        status = json.loads(await device.ask("status", "--json"))
        assert status["running"] is True
        assert status["link"]["connected"] is True
        assert [(m["name"], m["state"], m["verified"]) for m in status["report"]["modules"]] == [
            (MODEL, "serving", True)
        ]
        checks = json.loads(await device.ask("doctor", "--json"))
        assert {check["name"] for check in checks} >= {"identity", "broker", "clock", "disk"}
        assert [check for check in checks if check["result"] == "fail"] == []
