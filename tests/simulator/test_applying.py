"""A fleet file whose changes rest on each other, on devices that take what they are given."""

import asyncio
import sys
from pathlib import Path

import pytest

from cloud_hub.config import HubPaths
from cloud_hub.simulator.fleet import Fleet
from cloud_hub.simulator.profile import Profile, Steps
from support.simulated import MODULE, hub_with_module, members
from support.waiting import until

STEPS = Steps(resolving=0.05, verifying=0.05, staging=0.05, trying=0.1, activating=0.05)
FILE = f"""
mooring: 1
rollouts:
  - {{module: {MODULE}, version: 1, target: site = lab}}
  - {{module: {MODULE}, version: 2, target: site = lab}}
"""
PATIENT_S = 60.0


async def apply(paths: HubPaths, file: Path, *more: str) -> tuple[int | None, str]:
    """Exit status, and what it says beside its output."""
    command = (
        str(Path(sys.executable).with_name("mooring")),
        "--context",
        str(paths.context),
        "apply",
        "-f",
        str(file),
    )
    process = await asyncio.create_subprocess_exec(
        *command, "--yes", *more, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(PATIENT_S):
        _, said = await process.communicate()
    return process.returncode, said.decode()


@pytest.mark.timeout(180)
async def test_with_wait_a_rollout_has_ended_before_the_next_begins_and_without_the_step_that_cannot_be_is_named(
    tmp_path: Path,
) -> None:
    file = tmp_path / "fleet.yaml"
    file.write_text(FILE)
    async with hub_with_module(tmp_path / "hub", (1, 2)) as (paths, client):
        place, fleet_members = await members(paths.root, 5)
        status, said = await apply(paths, file)  # no device is there yet: the first one goes on and on
        assert status == 1
        assert f"rollout {MODULE}:2 to site = lab: " in said
        assert "(1 change made; the same command goes on from here)" in said
        await client.abort_rollout("r1")
        async with Fleet(place, fleet_members, Profile(report_every_s=1, steps=STEPS)) as fleet:
            await until(lambda: fleet.summary.connected == 5, "5 devices to connect", PATIENT_S)
            status, said = await apply(paths, file, "--wait")
            states = {one.id: one.state for one in await client.rollouts()}
    assert (status, states) == (0, {"r1": "aborted", "r2": "finished", "r3": "finished"}), said
    assert said.index("rollout r2: finished") < said.index(f"rollout {MODULE}:2")


@pytest.mark.timeout(180)
async def test_with_wait_nothing_follows_a_rollout_that_failed(tmp_path: Path) -> None:
    file = tmp_path / "fleet.yaml"
    file.write_text(FILE.replace("site = lab}", "site = lab, device_deadline_s: 1}"))
    async with hub_with_module(tmp_path / "hub", (1, 2)) as (paths, client):
        await members(paths.root, 2)  # which nobody runs
        status, said = await apply(paths, file, "--wait")
        assert status == 1
        assert "rollout r1 is failed; look at it with: mooring rollout status r1" in said
        assert [one.id for one in await client.rollouts()] == ["r1"]
