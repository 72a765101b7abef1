"""What a fleet makes the hub ask of its database all day is found by an index: nothing there reads a whole table."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from cloud_hub.config import HubPaths
from cloud_hub.operator.client import HubClient
from cloud_hub.rollouts.new import NewRollout
from cloud_hub.simulator.fleet import Fleet
from cloud_hub.simulator.profile import Profile, Steps
from support.simulated import MODULE, hub_with_module, members
from support.statements import noted
from support.waiting import until, until_async

GROWING = frozenset(
    [
        "devices",
        "assignments",
        "executions",
        "director_files",
        "reported_modules",
        "streams",
        "windows",
        "looks",
        "look_scopes",
        "events",
        "samples",
        "alerts",
        "commands",
    ]
)
# Once per tick, look or batch, of everything there is.
WHOLE = (
    "FROM devices LEFT OUTER JOIN director_files",  # what has to be signed again soon
    "FROM devices \nWHERE devices.retired_at IS NULL",  # which patches are wished for: what everyone has
    "version \nFROM assignments",  # and is to have
    "FROM executions JOIN rollouts ON rollouts.id = executions.rollout \nWHERE (rollouts.state",  # or will
)
STEPS = Steps(resolving=0.05, verifying=0.05, staging=0.05, trying=0.1, activating=0.05)
PATIENT_S = 60.0


@pytest.mark.timeout(180)
async def test_nothing_that_devices_make_the_hub_ask_reads_a_whole_table(tmp_path: Path) -> None:
    async with hub_with_module(tmp_path / "hub") as (paths, client):
        place, fleet_members = await members(paths.root, 20)
        profile = Profile(report_every_s=1, window_every_s=1, files="none", steps=STEPS)
        with noted() as statements:
            async with Fleet(place, fleet_members, profile) as fleet:
                await until(lambda: fleet.summary.connected == 20, "20 devices to connect", PATIENT_S)
                await rolled_out(client)
                await until(lambda: fleet.summary.windows >= 60, "windows to be acknowledged", PATIENT_S)
    asked = set(statements)
    assert any("json_each" in statement for statement in asked)
    assert {statement: plan for statement in asked if (plan := whole_tables(paths, statement))} == {}


async def rolled_out(client: HubClient) -> None:
    made = await client.create_rollout(NewRollout(MODULE, 1, start=True))

    async def over() -> bool:
        return (await client.rollout(made.rollout.id)).rollout.state != "running"

    await until_async(over, "the rollout to end", PATIENT_S)


def whole_tables(paths: HubPaths, statement: str) -> list[str]:
    """The steps of SQLite's plan that read all of a table that grows with the fleet."""
    if not statement.startswith(("SELECT", "UPDATE", "DELETE")) or any(text in statement for text in WHOLE):
        return []
    if "LIMIT" in statement and "WHERE" not in statement:
        return []  # the first or last few
    with closing(sqlite3.connect(paths.database)) as database:
        plan = database.execute(f"EXPLAIN QUERY PLAN {statement}", [None] * statement.count("?")).fetchall()
    steps = [str(row[3]) for row in plan]
    return [step for step in steps if step.startswith("SCAN") and step.split()[1] in GROWING]
