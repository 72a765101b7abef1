"""Another worker for a module, asked for by the hub: nobody who asks the module notices, and nothing else changes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import msgspec
import pytest

from agent.asked.restart import Restarts
from agent.config import ServingSettings, StatePaths
from agent.errors import UpdateError, WorkerError
from agent.installed import Installed, ModuleSet
from agent.runtimes.keeper import Keeper
from agent.runtimes.process import ProcessRuntime
from agent.runtimes.unit import Unit
from agent.slots import Slots
from agent.store import AgentStore
from modules.commands import RESTART, AskRestart, Command, CommandResult, encode_asked
from support.built import Built, build, build_script, install
from support.predict import predict
from support.waiting import until

QUICK = ServingSettings(confine=False, drain_s=3.0, ping_every_s=0.2, restart_first_s=0.01, restart_ceiling_s=0.05)
# Loads the first time only.
ONCE = """
import os, pathlib
MARK = pathlib.Path("{mark}")
def init():
    if MARK.exists():
        raise ValueError("not again")
    MARK.write_text("loaded")
def run(data):
    return 1
"""


class Bench:
    """A keeper with one module, and what answers the command `restart`."""

    def __init__(self, paths: StatePaths, store: AgentStore) -> None:
        self.slots, self.paths = Slots(paths.slots), paths
        self.runtime = ProcessRuntime(paths, QUICK, store, self.slots, lambda *_: None)
        self.keeper = Keeper(self.runtime, QUICK, lambda: None)
        self.update, self.room, self.ways = "idle", True, 0
        self.restarts = Restarts(self.keeper, lambda: self.update, self._check_room, self._make_way)

    async def begin(self, module: Built) -> str:
        install(self.slots, module, self.paths.staging)
        held = Installed(module.manifest.name, 1, module.sha256, 1, "d", verified=True)
        await self.keeper.start(ModuleSet(1, 1, (held,)))
        await until(lambda: self.keeper.reports()[0].state == "serving", "the module to serve")
        return self.runtime.address(module.manifest.name)

    def pid(self, name: str = "iris") -> int:
        unit = self.keeper.unit(name)
        assert unit is not None
        assert unit._worker is not None
        return unit._worker.pid

    async def ask(self, module: str = "iris") -> CommandResult:
        answer = await self.restarts.do(Command("c-1", RESTART, 0.0, encode_asked(AskRestart(module))))
        if answer.then is not None:
            answer.then()
        return answer.result

    def _check_room(self, unit: Unit) -> None:
        if not self.room:
            raise UpdateError("no memory for two", "memory-budget")

    def _make_way(self) -> None:
        self.ways += 1


@pytest.fixture
async def bench(state_dir: StatePaths, agent_store: AgentStore) -> AsyncIterator[Bench]:
    bench = Bench(state_dir, agent_store)
    yield bench
    await bench.keeper.close()


async def test_requests_go_on_while_another_worker_takes_over(bench: Bench) -> None:
    address = await bench.begin(build())
    before, answers, over = bench.pid(), [], asyncio.Event()

    async def use() -> None:
        while not over.is_set():
            answers.extend(await predict(address))

    using = asyncio.create_task(use())
    result = await bench.ask()
    over.set()
    await using
    assert (result.outcome, result.count) == ("done", 1)
    assert "another worker serves" in result.text
    assert bench.pid() != before
    assert set(answers) == {0}
    report = bench.keeper.reports()[0]
    assert (report.restarts, report.version, report.verified) == (0, 1, True)
    assert await predict(address) == [0]


async def test_where_there_is_no_memory_for_two_the_old_worker_drains_first(bench: Bench) -> None:
    address = await bench.begin(build())
    before, bench.room = bench.pid(), False
    result = await bench.ask()
    assert result.outcome == "done"
    assert "drained" in result.text
    await until(lambda: bench.keeper.reports()[0].state == "serving", "the module to serve again")
    assert bench.pid() != before
    assert await predict(address) == [0]


async def test_a_worker_that_does_not_load_again_leaves_the_one_that_serves(bench: Bench) -> None:
    mark = bench.paths.root / "mark"
    await bench.begin(build_script(ONCE.format(mark=mark), name="once"))
    before = bench.pid("once")
    result = await bench.ask("once")
    assert (result.outcome, result.key) == ("failed", "load-failed")
    assert "not again" in result.text
    assert bench.pid("once") == before
    assert bench.keeper.reports()[0].state == "serving"


@pytest.mark.parametrize("state", ["trying", "activating", "probation", "committed", "reverting"])
async def test_while_an_update_decides_what_serves_nothing_is_restarted(bench: Bench, state: str) -> None:
    bench.update = state
    assert (await bench.ask()).key == "updating"
    assert (await bench.ask("")).key == "updating"
    assert bench.ways == 0


async def test_only_what_is_desired_is_restarted_and_the_agent_itself_makes_way(bench: Bench) -> None:
    await bench.begin(build())
    assert ((await bench.ask("other")).outcome, (await bench.ask("other")).key) == ("refused", "not-serving")
    result = await bench.ask("")
    assert (result.outcome, bench.ways) == ("done", 1)


async def test_a_module_that_changed_while_its_other_worker_loaded_is_left_as_it_is_now(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bench.begin(build())
    unit = bench.keeper.unit("iris")
    assert unit is not None
    loading, going_on, load = asyncio.Event(), asyncio.Event(), bench.keeper.spare

    async def slowly(module: Installed) -> object:
        loading.set()
        await going_on.wait()
        return await load(module)

    monkeypatch.setattr(bench.keeper, "spare", slowly)  # a load that takes its time
    restarting = asyncio.create_task(bench.keeper.replace("iris"))
    await loading.wait()
    changed = msgspec.structs.replace(bench.keeper.set.modules[0], config={"threshold": 1})
    monkeypatch.setattr(bench.keeper, "spare", load)
    await bench.keeper.switch(ModuleSet(2, 1, (changed,)), {})
    after = bench.pid()
    going_on.set()
    with pytest.raises(WorkerError, match="changed meanwhile"):
        await restarting
    assert bench.pid() == after
