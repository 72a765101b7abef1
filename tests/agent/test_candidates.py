"""A candidate beside the version that serves, with real workers: fed and never served, or answering a share."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import pytest

from agent.config import ServingSettings, StatePaths
from agent.installed import Installed, ModuleSet
from agent.runtimes.heat import Warmth
from agent.runtimes.keeper import Keeper
from agent.runtimes.process import ProcessRuntime
from agent.sandbox.host import WorkerProcess
from agent.slots import Slots
from agent.store import AgentStore
from modules.arms import chosen
from modules.manifest import SamplingPolicy
from modules.messages import ModuleReport, Sample, Stream, decode_sample
from modules.targets import Mode
from modules.windows import Window, decode_window
from mooring_client import Client
from support.built import Built, build, build_script, install, rows
from support.waiting import until, until_async

QUICK = ServingSettings(
    confine=False, drain_s=3.0, ping_every_s=0.1, ping_timeout_s=5.0, restart_first_s=0.01, restart_ceiling_s=0.05
)
EVERYTHING = SamplingPolicy(rate=1.0, window_s=3600.0)
CANDIDATE = "iris.candidate"
SALT = "x1"
# Answers with a class that no model of iris knows.
SEVENS = """
def init():
    pass


def predict(inputs):
    n = len(inputs["X"])
    return {"label": [7] * n, "probabilities": [[0, 0, 1]] * n}
"""
DIES = SEVENS.replace("    n =", "    import os; os._exit(3)\n    n =")
HANGS = SEVENS.replace("    n =", "    import time; time.sleep(60)\n    n =")
FAILS = SEVENS.replace("    n =", "    raise ValueError('no')\n    n =")


class Device:
    """A keeper, and what its workers said of their predictions."""

    def __init__(self, paths: StatePaths, store: AgentStore) -> None:
        self.items: list[tuple[Stream, bytes]] = []
        self.slots, self.paths = Slots(paths.slots), paths
        self.told: list[tuple[str, str, str]] = []
        self.runtime = ProcessRuntime(paths, QUICK, store, self.slots, lambda s, p: self.items.append((s, p)))
        self.keeper = Keeper(self.runtime, QUICK, lambda: None, lambda *told: self.told.append(told[:3]))

    def installed(self, module: Built, mode: Mode = "serve", share: float = 1.0) -> Installed:
        install(self.slots, module, self.paths.staging)
        held = Installed(module.manifest.name, module.manifest.version, module.sha256, 1, "d", verified=True)
        return msgspec.structs.replace(held, mode=mode, share=share, salt=SALT, sampling=EVERYTHING)

    async def run(self, *modules: Installed) -> str:
        """Waits until they serve; the address."""
        await self.keeper.switch(ModuleSet(1, 1, modules), {})
        for module in modules:
            await until(lambda key=module.key: self.state(key) == "serving", f"{module.key} to serve")  # type: ignore[misc]
        return self.runtime.address("iris")

    def state(self, key: str) -> str:
        unit = self.keeper.unit(key)
        return unit.state if unit is not None else ""

    def worker(self, key: str) -> WorkerProcess:
        unit = self.keeper.unit(key)
        assert unit is not None
        assert unit._worker is not None
        return unit._worker

    def candidate(self) -> ModuleReport:
        return next(report for report in self.keeper.reports() if report.candidate)

    async def counts(self, **wanted: int) -> dict[str, int]:
        """Waits until the device reports at least these; all that it reports."""

        def so() -> bool:
            beside = self.candidate().beside
            return all(beside.get(word.replace("_", "-"), 0) >= count for word, count in wanted.items())

        await until(so, f"{wanted}, got {self.candidate().beside}")
        return self.candidate().beside

    def samples(self, module: Built) -> list[Sample]:
        found = [decode_sample(item) for stream, item in self.items if stream == "sample"]
        return [sample for sample in found if sample.manifest_sha256 == module.sha256]

    def windows(self, module: Built) -> list[Window]:
        found = [decode_window(item) for stream, item in self.items if stream == "window"]
        return [window for window in found if window.manifest_sha256 == module.sha256]


@pytest.fixture
async def device(state_dir: StatePaths, agent_store: AgentStore) -> AsyncIterator[Device]:
    device = Device(state_dir, agent_store)
    yield device
    await device.keeper.close()


async def ask(address: str, id_: str, count: int = 1, key: str = "") -> tuple[int, str, list[int], str]:
    """Status, version that answered, labels, and the header that tells of a candidate."""
    data = rows(count)
    tensor = {"name": "X", "shape": list(data.shape), "datatype": "FP32", "data": data.ravel().tolist()}
    body = json.dumps({"id": id_, "inputs": [tensor]})
    where = urlsplit(address)

    def once() -> tuple[int, str, list[int], str]:
        connection = http.client.HTTPConnection(str(where.hostname), where.port, timeout=30)
        try:
            headers = {"Mooring-Arm-Key": key} if key else {}
            connection.request("POST", "/v2/models/iris/infer", body, headers)
            answer = connection.getresponse()
            said = json.loads(answer.read())
            labels = next(([int(v) for v in o["data"]] for o in said.get("outputs", ()) if o["name"] == "label"), [])
            return answer.status, said.get("model_version", ""), labels, answer.headers.get("Mooring-Candidate", "")
        finally:
            connection.close()

    return await asyncio.to_thread(once)


async def test_a_shadow_is_fed_the_same_inputs_and_answers_nobody(device: Device) -> None:
    one, two = build(version=1), build_script(SEVENS, version=2)
    address = await device.run(device.installed(one), device.installed(two, "shadow"))
    ids = [f"p{number}" for number in range(10)]
    for id_ in ids:
        assert (await ask(address, id_))[:3] == (200, "1", [0])
    counts = await device.counts(fed=10, compared=10)
    assert counts["agreed"] == 0
    await until(lambda: device.candidate().requests == 10, "the candidate's own count")
    assert device.candidate().errors == 0
    assert device.candidate().endpoint == ""
    await until(lambda: len(device.samples(two)) == 10, "the shadow's samples")
    taken = [{s.prediction_id: s.inputs[0].data for s in device.samples(module)} for module in (one, two)]
    assert taken[0] == taken[1]
    assert sorted(taken[1]) == sorted(ids)
    await device.run(device.installed(one))
    assert [window.rows for window in device.windows(two)] == [10]
    assert (await ask(address, "after"))[:3] == (200, "1", [0])


async def test_versions_that_say_the_same_agree_row_by_row(device: Device) -> None:
    one, two = build(version=1), build(version=2)
    address = await device.run(device.installed(one), device.installed(two, "shadow"))
    await ask(address, "batch", count=150)
    counts = await device.counts(compared=150)
    assert 100 < counts["agreed"] <= 150


async def test_a_share_of_the_predictions_goes_to_the_shadow_and_both_sample_the_same_ones(device: Device) -> None:
    one, two = build(version=1), build(version=2)
    half = SamplingPolicy(rate=0.5, window_s=3600.0)
    main, shadow = (
        msgspec.structs.replace(installed, sampling=half)
        for installed in (device.installed(one), device.installed(two, "shadow", 0.5))
    )
    address = await device.run(main, shadow)
    ids = [f"q{number}" for number in range(60)]
    for id_ in ids:
        await ask(address, id_)
    fed = [id_ for id_ in ids if chosen(id_, SALT, 0.5)]
    counts = await device.counts(fed=len(fed), compared=len(fed))
    assert counts["offered"] == counts["fed"] == len(fed)
    await device.run(device.installed(one))
    both = {sample.prediction_id for sample in device.samples(one)} & set(fed)
    assert {sample.prediction_id for sample in device.samples(two)} == both
    assert 0 < len(both) < len(fed)


async def test_a_shadow_is_fed_what_clients_ask_over_shared_memory_too(device: Device) -> None:
    one, two = build(version=1), build(version=2)
    quiet = SamplingPolicy(rate=0.0, window_s=3600.0)
    modules = [device.installed(one), device.installed(two, "shadow")]
    await device.run(*(msgspec.structs.replace(module, sampling=quiet) for module in modules))

    def predict_often() -> None:
        with Client(device.paths.endpoints / "iris.sock", model="iris", transport="shared-memory") as client:
            for number in range(40):
                client.ask({"X": rows(1)}, id=f"s{number}")

    await asyncio.to_thread(predict_often)
    counts = await device.counts(fed=40, compared=40)
    assert (counts["offered"], counts["agreed"]) == (40, 40)


@pytest.mark.parametrize("source", [DIES, FAILS, HANGS], ids=["dies", "fails", "hangs"])
async def test_whatever_a_shadow_does_the_version_that_serves_answers(device: Device, source: str) -> None:
    one, two = build(version=1), build_script(source, version=2)
    address = await device.run(device.installed(one), device.installed(two, "shadow"))
    pid = device.worker("iris").pid
    for number in range(30):
        assert (await ask(address, f"r{number}"))[:3] == (200, "1", [0])
    assert device.worker("iris").pid == pid
    unit = device.keeper.unit("iris")
    assert unit is not None
    assert (unit.stats.errors, unit.restarts) == (0, 0)
    if source is DIES:
        await until(lambda: device.candidate().restarts > 0, "the shadow to be started again")
        assert all(level == "warning" and key.startswith("candidate-") for level, key, _ in device.told)


async def test_a_shadow_goes_first_when_memory_runs_out_and_has_no_address(device: Device) -> None:
    one, two = build(version=1), build(version=2)
    await device.run(device.installed(one), device.installed(two, "shadow"))
    pids = [device.worker(key).pid for key in ("iris", CANDIDATE)]
    scores = [int(Path(f"/proc/{pid}/oom_score_adj").read_text()) for pid in pids]
    assert scores == [500, 1000]
    assert not (device.paths.endpoints / f"{CANDIDATE}.sock").exists()


async def test_a_shadow_that_was_killed_is_fed_again(device: Device) -> None:
    one, two = build(version=1), build(version=2)
    address = await device.run(device.installed(one), device.installed(two, "shadow"))
    await ask(address, "before")
    await device.counts(compared=1)
    os.kill(device.worker(CANDIDATE).pid, signal.SIGKILL)
    await until(lambda: device.candidate().restarts == 1, "it to be missed")
    await until(lambda: device.state(CANDIDATE) == "serving", "it to come back")
    await _fed_again(device, address)


async def test_a_serving_version_that_was_killed_feeds_its_shadow_again(device: Device) -> None:
    one, two = build(version=1), build(version=2)
    address = await device.run(device.installed(one), device.installed(two, "shadow"))
    unit = device.keeper.unit("iris")
    assert unit is not None
    os.kill(device.worker("iris").pid, signal.SIGKILL)
    await until(lambda: unit.restarts == 1 and unit.state == "serving", "it to come back")
    await _fed_again(device, address)


async def test_a_version_that_takes_over_feeds_the_shadow_that_stays(device: Device) -> None:
    one, two, three = build(version=1), build(version=2), build(version=3)
    address = await device.run(device.installed(one), device.installed(three, "shadow"))
    pid = device.worker(CANDIDATE).pid
    await device.run(device.installed(two), device.installed(three, "shadow"))
    assert device.worker(CANDIDATE).pid == pid
    await _fed_again(device, address)


async def _fed_again(device: Device, address: str) -> None:
    before = device.candidate().requests

    async def more() -> bool:
        await ask(address, "again")
        return device.candidate().requests > before

    await until_async(more, "the candidate to be fed again")


async def test_an_arm_answers_its_share_and_says_so(device: Device) -> None:
    one, two = build(version=1), build_script(SEVENS, version=2)
    address = await device.run(device.installed(one), device.installed(two, "arm", 0.5))
    for number in range(40):
        id_ = f"a{number}"
        status, version, labels, told = await ask(address, id_)
        wanted = ("2", [7], "2") if chosen(id_, SALT, 0.5) else ("1", [0], "")
        assert (status, version, labels, told) == (200, *wanted)
    counts = await device.counts(answered=sum(chosen(f"a{number}", SALT, 0.5) for number in range(40)))
    assert not [word for word in counts if word.startswith(("fell-back", "kept"))]
    await until(lambda: device.candidate().requests == counts["answered"], "the candidate's own count")
    await device.run(device.installed(one))
    assert {s.prediction_id for s in device.samples(one)} & {s.prediction_id for s in device.samples(two)} == set()


async def test_requests_with_one_key_go_one_way(device: Device) -> None:
    one, two = build(version=1), build(version=2)
    address = await device.run(device.installed(one), device.installed(two, "arm", 0.5))
    for key in ("ada", "bob", "eve", "joe", "kim"):
        versions = {(await ask(address, f"{key}{number}", key=key))[1] for number in range(4)}
        assert versions == {"2" if chosen(key, SALT, 0.5) else "1"}


async def test_a_share_changes_without_a_new_worker(device: Device) -> None:
    one, two = build(version=1), build(version=2)
    main = device.installed(one)
    address = await device.run(main, device.installed(two, "arm", 0.0))
    pids = [device.worker(key).pid for key in ("iris", CANDIDATE)]
    assert (await ask(address, "x"))[1] == "1"
    await device.run(main, device.installed(two, "arm", 1.0))

    async def changed() -> bool:
        return (await ask(address, "x"))[1] == "2"

    await until_async(changed, "the new share")
    assert [device.worker(key).pid for key in ("iris", CANDIDATE)] == pids


@pytest.mark.parametrize(
    ("source", "word"),
    [(DIES, "fell-back-lost"), (FAILS, "fell-back-failed"), (HANGS, "fell-back-late")],
    ids=["dies", "fails", "hangs"],
)
async def test_where_an_arm_fails_in_mid_request_the_serving_version_answers(
    device: Device, source: str, word: str
) -> None:
    one, two = build(version=1), build_script(source, version=2)
    address = await device.run(device.installed(one), device.installed(two, "arm"))
    assert await ask(address, "m") == (200, "1", [0], "")
    await device.counts(**{word.replace("-", "_"): 1})
    assert (await ask(address, "n"))[:2] == (200, "1")


async def test_an_arm_that_goes_on_failing_is_asked_nothing_for_a_while(device: Device) -> None:
    one, two = build(version=1), build_script(FAILS, version=2)
    address = await device.run(device.installed(one), device.installed(two, "arm"))
    for number in range(6):
        assert (await ask(address, f"m{number}"))[:2] == (200, "1")
    counts = await device.counts(kept_resting=1)
    assert counts["fell-back-failed"] == 3


async def test_an_arm_is_dropped_while_requests_run_and_none_is_lost(device: Device) -> None:
    one, two = build(version=1), build(version=2)
    main = device.installed(one)
    address = await device.run(main, device.installed(two, "arm", 0.5))
    done, answers = asyncio.Event(), list[tuple[int, str]]()

    async def client(name: str) -> None:
        number = 0
        while not done.is_set():
            answers.append((await ask(address, f"{name}{number}"))[:2])
            number += 1

    clients = [asyncio.create_task(client(name)) for name in ("c", "d", "e")]
    await until(lambda: "2" in {version for _, version in answers}, "the arm to answer")
    await device.run(main)
    after = len(answers)
    await until(lambda: len(answers) > after + 20, "requests after it")
    done.set()
    await asyncio.gather(*clients)
    assert {status for status, _ in answers} == {200}
    assert {version for _, version in answers[after + 5 :]} == {"1"}


async def test_a_candidate_gives_way_to_heat_before_everything_else(device: Device) -> None:
    one, two = build(version=1), build(version=2)
    address = await device.run(device.installed(one), device.installed(two, "arm"))
    assert (await ask(address, "cool"))[1] == "2"
    await device.keeper.endure(Warmth.WARM)
    assert (await ask(address, "warm"))[:2] == (200, "1")
    await device.keeper.endure(Warmth.COOL)

    async def again() -> bool:
        return (await ask(address, "cool again"))[1] == "2"

    await until_async(again, "the candidate to be asked again")


def test_a_growing_share_keeps_everybody_who_was_in_it() -> None:
    keys = [f"k{number}" for number in range(2000)]
    small, large = ({key for key in keys if chosen(key, "s", share)} for share in (0.1, 0.3))
    assert small < large
    assert 120 < len(small) < 280
    assert 480 < len(large) < 720
    assert {key for key in keys if chosen(key, "t", 0.1)} != small
