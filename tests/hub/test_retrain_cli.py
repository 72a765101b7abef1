"""`mooring retrain`, `mooring dataset` and the exports against a hub that runs: the operator's machine trains."""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner, Result

from cloud_hub.operator.cli import app
from cloud_hub.retraining.hub_runner import hub_runner
from cloud_hub.retraining.records import ENDED
from cloud_hub.service import open_hub
from support.hubs import serving
from support.retraining import EXAMPLE, MODULE, PROFILE, Loop, prepared

PLAN = f"""
name = "nightly"
module = "{MODULE}"

[training]
command = [{json.dumps(sys.executable)}, "train.py"]

[judging]
accept = ["accuracy > champion"]

[data]
days = 1

[rollout]
target = "site=lab"
groups = ["rest"]
"""
OFFLINE = "mooring module sign gate:2 --key KEY"

pytestmark = pytest.mark.timeout(180)  # real trainings, on machines that are busy


class Mooring:
    """The command, as an operator calls it, in a thread of this process: starting Python takes longer than it does."""

    def __init__(self, context: Path) -> None:
        self._context = context

    async def __call__(self, *arguments: object, status: int = 0) -> str:
        words = ["--context", str(self._context), *map(str, arguments)]
        result: Result = await asyncio.to_thread(CliRunner().invoke, app, words)
        assert result.exit_code == status, result.output
        return result.stdout

    async def json(self, *arguments: object) -> Any:
        return json.loads(await self(*arguments, "-o", "json"))


def june(built: Any) -> str:
    return f"dataset:june:1@{built['digest']}"


async def test_an_operator_trains_on_their_own_machine_and_reads_everything_by_command(tmp_path: Path) -> None:
    paths = await prepared(tmp_path / "hub", commands=False)
    async with open_hub(paths) as rooms:
        world = Loop(rooms)
        await world.release()
        await world.sample(400)
    (tmp_path / "plan.toml").write_text(PLAN)
    async with serving(paths):
        mooring = Mooring(paths.context)
        made = await mooring.json("retrain", "create", tmp_path / "plan.toml", "--file", str(EXAMPLE))
        assert list(made["plan"]["training"]["files"]) == ["train.py"]
        run = await mooring.json("retrain", "run", "nightly", "--why", "to see it work")
        assert (run["state"], run["result"]["version"]) == ("canary", 2), run
        assert "@" in run["runner"]
        assert run["result"]["verdict"]["accepted"]
        shown = await mooring("retrain", "show", run["id"])
        assert "accuracy > champion" in shown
        assert "trained on" in shown
        assert run["id"] in await mooring("retrain", "runs", "--plan", "nightly")
        assert "nightly" in await mooring("retrain", "list")
        assert "no such" not in await mooring("retrain", "stop", "nightly")
        (dataset,) = await mooring.json("dataset", "list")
        assert dataset["rows"] == 400
        await mooring("dataset", "download", "nightly:1", tmp_path / "data")
        assert pq.read_table(tmp_path / "data" / "train.parquet").num_rows == 400 - dataset["heldout_rows"]
        assert json.loads((tmp_path / "data" / "dataset.json").read_text())["digest"] == dataset["digest"]
        built = await mooring.json(
            "dataset", "build", "june", "--module", MODULE, "--since-hours", "24", "--append", str(EXAMPLE)
        )
        assert built["files"][0]["path"] == "base.py"
        known = (
            "--dataset",
            "dataset:june:1",
            "--mlflow-run",
            "4f1c",
            "--mlflow-uri",
            "https://m",
            "--parent",
            "gate:1",
        )
        model = await mooring.json("model", "register", MODULE, EXAMPLE, *known)
        assert (model["datasets"], model["mlflow_run"], model["parent"]) == ([june(built)], "4f1c", "gate:1")
        await mooring("model", "delete", "gate:3")
        await mooring("dataset", "delete", "nightly:1", status=1)
        await mooring("dataset", "delete", "june:1")
        await mooring("samples", "export", tmp_path / "samples.parquet", "--module", MODULE)
        count = duckdb.sql(f"select count(*), sum(weight) from '{tmp_path / 'samples.parquet'}'")
        assert count is not None
        assert count.fetchall() == [(400, 800.0)]
        await mooring("windows", "export", tmp_path / "windows.parquet", "--module", MODULE)
        assert pq.read_table(tmp_path / "windows.parquet").num_rows == 0
        await mooring("samples", "export", tmp_path / "samples.parquet", status=1)


async def test_without_the_publishers_key_a_run_waits_and_says_the_command(tmp_path: Path) -> None:
    paths = await prepared(tmp_path / "hub", commands=False)
    async with open_hub(paths) as rooms:
        world = Loop(rooms)
        await world.release()
        await world.sample(600)
        await world.plan()
    for key in paths.keys.glob("publisher-*"):
        key.rename(tmp_path / key.name)
    async with open_hub(paths) as rooms:
        room = rooms.retraining
        run = await room.triggers.start("nightly", "by hand", "alice")
        while run.state not in ("waiting", *ENDED):
            run = await room.runs.step(run)
        job = await room.desk.claim("hub")
        assert job is not None
        run = await hub_runner(rooms.blobs, room.desk, "").do(job)
        while run.state not in ("unsigned", *ENDED):
            run = await room.runs.step(run)
        assert (run.state, run.result.next) == ("unsigned", OFFLINE), run.result.reason
        assert (await room.runs.step(run)).state == "unsigned"
    for key in tmp_path.glob("publisher-*"):
        key.rename(paths.keys / key.name)
    async with open_hub(paths) as rooms:
        await rooms.image.sign_module(MODULE, 2, PROFILE, "publisher")
        while run.state not in ("canary", *ENDED):
            run = await rooms.retraining.runs.step(run)
        assert (run.state, run.result.next) == ("canary", "")
