"""`mooring labels` and `mooring quality` against a real hub: files of all kinds, bad rows, and processes that die."""

import asyncio
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner, Result

from cloud_hub.blobs import FolderBlobs
from cloud_hub.clock import system_clock
from cloud_hub.config import HubConfig, HubPaths
from cloud_hub.events import Events
from cloud_hub.initialise import free_ports, initialise
from cloud_hub.operator.cli import app
from cloud_hub.store.engine import Store
from support.fleets import add_device
from support.labels import CLASSES, Labelled, build_classifier, sample, scores_of, window
from support.waiting import until_blocking

HUB_COMMAND = str(Path(sys.executable).with_name("mooring-hub"))
COMMAND = str(Path(sys.executable).with_name("mooring"))
ROWS = 1200


@dataclass
class Operator:
    """Types commands to one hub, which may be killed and started again."""

    paths: HubPaths
    process: subprocess.Popen[bytes] | None = None

    @property
    def environment(self) -> dict[str, str]:
        return {"MOORING_CONTEXT": str(self.paths.context), "COLUMNS": "160"}

    def run(self, *arguments: object, status: int = 0, given: str = "") -> Result:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments], env=self.environment, input=given)
        assert result.exit_code == status, f"{arguments}: {result.exit_code}\n{result.output}\n{result.exception!r}"
        return result

    def json(self, *arguments: object, status: int = 0, given: str = "") -> Any:
        return json.loads(self.run(*arguments, "-o", "json", status=status, given=given).stdout)

    def start(self) -> None:
        root = self.paths.root
        ready = root.with_name("ready.json")
        ready.unlink(missing_ok=True)
        with root.with_name("log").open("ab") as log:
            arguments = [HUB_COMMAND, "serve", str(root), "--ready-file", str(ready)]
            self.process = process = subprocess.Popen(arguments, stdout=log, stderr=log, start_new_session=True)
        until_blocking(lambda: ready.exists() or process.poll() is not None, "the hub to be ready", 60)
        assert process.poll() is None, root.with_name("log").read_text()

    def end(self, how: signal.Signals) -> None:
        if self.process is None:
            return
        self.process.send_signal(how)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(30)
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


async def fill(paths: HubPaths) -> None:
    """ROWS predictions of one classifier on two devices, all sampled; a window of what they were."""
    store = await Store.open(paths.database_url)
    blobs = FolderBlobs(paths.blobs)
    try:
        hub = Labelled(store, blobs, Events(store, system_clock), system_clock)
        built = await build_classifier(store, blobs)
        scores, now = scores_of(np.random.default_rng(2), ROWS, 1.5), time.time() - 7200
        rooms: Any = SimpleNamespace(store=store)
        for device, place in (("cam-1", 0), ("cam-2", 1)):
            await add_device(rooms, device, {"site": ("north", "south")[place]})
            mine = range(place, ROWS, 2)
            items = [sample(built, f"p{i}", now + i, {"scores": scores[i]}) for i in mine]
            for start in range(0, len(items), 400):
                await hub.send(device, *items[start : start + 400])
            await hub.send(device, window(built, scores[list(mine)], now))
    finally:
        await store.close()


@pytest.fixture(scope="module")
def operator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operator]:
    root = tmp_path_factory.mktemp("labels") / "hub"
    api, mqtt = free_ports(2)
    config = HubConfig(dev=True, api_host="127.0.0.1", api_port=api, mqtt_host="127.0.0.1", mqtt_port=mqtt)
    paths = asyncio.run(initialise(root, config))
    asyncio.run(fill(paths))
    operator = Operator(paths)
    try:
        operator.start()
        yield operator
    finally:
        operator.end(signal.SIGTERM)


def csv_file(folder: Path, rows: Sequence[str], header: str = "prediction_id,label") -> Path:
    file = folder / "labels.csv"
    file.write_text("\n".join([header, *rows]) + "\n")
    return file


def test_a_csv_is_imported_row_by_row_and_what_is_wrong_is_told_with_its_line(
    operator: Operator, tmp_path: Path
) -> None:
    rows = ["p0,cat", "p1,horse", "p2,", "nobody,dog", "p3,1", "p0,cat", '"p4","dog"', ",cat", "p5,cat,extra"]
    found = operator.json("labels", "import", csv_file(tmp_path, rows), status=1)
    counts = {name: found[name] for name in ("rows", "accepted", "waiting", "unchanged", "empty", "refused_rows")}
    assert counts == {"rows": 9, "accepted": 3, "waiting": 1, "unchanged": 1, "empty": 1, "refused_rows": 3}
    assert [(one["line"], one["key"]) for one in found["refused"]] == [
        (9, "value"), (10, "columns"), (3, "unknown-class"),
    ]  # fmt: skip
    text = operator.run("labels", "import", csv_file(tmp_path, rows), status=1).stdout
    assert "line 3" in text
    assert "expected one of cat, dog, owl, got 'horse'" in text


def test_a_dry_run_tells_and_keeps_nothing(operator: Operator, tmp_path: Path) -> None:
    file = csv_file(tmp_path, ["p10,cat", "p11,dog"])
    assert operator.json("labels", "import", "--dry-run", file)["accepted"] == 2
    assert operator.json("labels", "list", "--prediction", "p10") == []
    assert "nothing was kept" in operator.run("labels", "import", "--dry-run", file).stdout


def test_ndjson_comes_from_a_file_or_from_standard_input(operator: Operator, tmp_path: Path) -> None:
    lines = [
        '{"prediction_id": "p20", "label": "owl", "device": "cam-1", "at": "2026-01-02T03:04:05Z", "note": "x"}',
        '{"prediction_id": "p21", "label": 2.0, "weight": 0.5}',
        '{"prediction_id": "p22", "label": NaN}',
        "",
        '{"prediction_id": "p23", "label": {"cat": 1}}',
        '{"prediction_id": "p24", "label": "cat", "at": "yesterday"}',
    ]
    given = "\n".join(lines)
    found = operator.json("labels", "import", "--format", "ndjson", "-", given=given, status=1)
    assert (found["accepted"], found["ignored_columns"]) == (2, ["note"])
    assert [(one["line"], one["key"]) for one in found["refused"]] == [(3, "not-json"), (5, "value"), (6, "time")]
    (label,) = operator.json("labels", "list", "--prediction", "p20")
    assert (label["value"], label["device"], label["at"], label["state"]) == ("owl", "cam-1", 1767323045.0, "joined")
    file = tmp_path / "labels.ndjson"
    file.write_text(given)
    assert operator.json("labels", "import", file, status=1)["unchanged"] == 2


def test_parquet_is_read_with_its_types(operator: Operator, tmp_path: Path) -> None:
    file = tmp_path / "labels.parquet"
    columns = {"prediction_id": ["p30", "p31", "p32", "p33"], "label": [0.0, 1.0, None, float("nan")]}
    pq.write_table(pa.table(columns), file)
    found = operator.json("labels", "import", file, "--module", "digits", status=1)
    assert (found["accepted"], found["empty"], found["refused_rows"]) == (2, 1, 1)
    assert [one["value"] for one in operator.json("labels", "list", "--module", "digits")] == [0.0, 1.0]


@pytest.mark.parametrize(
    ("content", "name", "words"),
    [
        (b"id,truth\na,b\n", "a.csv", "expected the columns prediction_id, label"),
        (b"", "a.csv", "expected the columns prediction_id, label"),
        (b"prediction_id,label\n\xff\xfe,cat\n", "a.csv", "expected UTF-8"),
        (
            b"prediction_id,label\n" + b"a" * 1_100_000 + b",cat\n",
            "a.csv",
            "line 1: expected at most 1048576 bytes in a line",
        ),
        (b"not parquet", "a.parquet", "Parquet magic bytes not found"),
        (None, "a.csv", "No such file"),
    ],
)
def test_a_file_that_cannot_be_read_says_why(
    operator: Operator, tmp_path: Path, content: bytes | None, name: str, words: str
) -> None:
    file = tmp_path / name
    if content is not None:
        file.write_bytes(content)
    result = operator.run("labels", "import", file, status=1)
    assert words in result.stderr
    assert "Traceback" not in result.stderr


def test_quality_is_shown_with_parts_and_the_estimate_says_that_it_is_one(operator: Operator, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    rows = [f"p{i},{CLASSES[rng.integers(3)]}" for i in range(100, 400)]
    operator.run("labels", "import", csv_file(tmp_path, rows))
    (report,) = operator.json("quality", "show", "digits:1", "--by", "site")
    assert report["total"]["rows"] >= 300
    assert {part["name"] for part in report["parts"]} == {"north", "south"}
    assert 0.2 < report["total"]["accuracy"]["value"] < 0.5
    assert report["total"]["accuracy"]["low"] < report["total"]["accuracy"]["dummy"] < 0.6
    assert (report["estimate"]["estimated"], report["estimate"]["rows"]) == (True, ROWS)
    text = operator.run("quality", "show", "digits", "--by", "device").stdout
    for words in ("accuracy", "cam-1", "ESTIMATED, not measured", "was called", "calibration error", "without a model"):
        assert words in text
    (one,) = operator.json("quality", "show", "digits", "--device", "cam-1", "--of-output", "scores")
    assert 100 <= one["total"]["rows"] < report["total"]["rows"]
    assert "no device cam-9" in operator.run("quality", "show", "digits", "--device", "cam-9", status=1).stderr
    assert "no module faces" in operator.run("quality", "show", "faces", status=1).stderr


def test_a_bound_is_asked_for_listed_and_taken_back(operator: Operator) -> None:
    assert "accuracy at least 0.9" in operator.run("quality", "ask", "digits", "--accuracy", 0.9).stdout
    assert [one["bound"] for one in operator.json("quality", "bounds")] == [0.9]
    assert "between 0 and 1" in operator.run("quality", "ask", "digits", "--accuracy", 9, status=1).stderr
    operator.run("quality", "ask", "digits", status=2)
    operator.run("quality", "ask", "digits", "--nothing")
    assert operator.json("quality", "bounds") == []


def kept(operator: Operator) -> int:
    with closing(sqlite3.connect(f"file:{operator.paths.database}?mode=ro", uri=True)) as database:
        query = "select count(*) from labels where prediction_id like 'killed-%'"
        return int(database.execute(query).fetchone()[0])


@pytest.mark.timeout(180)  # the importer asks again for a while after the hub is gone
def test_an_import_that_was_killed_is_done_again_without_a_label_too_many(operator: Operator, tmp_path: Path) -> None:
    """The importer is killed in its middle, then the hub. What was answered is kept, and nothing counts twice."""
    rows = 4000
    file = csv_file(tmp_path, [f"killed-{i},cat" for i in range(rows)])
    environment = {**os.environ, **operator.environment}
    with subprocess.Popen([COMMAND, "labels", "import", str(file)], env=environment) as process:
        until_blocking(lambda: process.poll() is not None or kept(operator) >= 500, "some labels", 60)
        process.kill()
    before = kept(operator)
    assert before >= 500
    assert before % 500 == 0
    with subprocess.Popen([COMMAND, "labels", "import", str(file)], env=environment, stderr=subprocess.PIPE) as again:
        more = min(before + 500, rows)
        until_blocking(lambda: again.poll() is not None or kept(operator) >= more, "some more", 60)
        operator.end(signal.SIGKILL)
        again.wait(60)
    operator.start()
    found = operator.json("labels", "import", file)
    assert (found["rows"], found["waiting"] + found["unchanged"], found["refused_rows"]) == (rows, rows, 0)
    assert found["unchanged"] >= before
    assert kept(operator) == rows
