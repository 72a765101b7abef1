"""Builds what does the hub's commands. Called by `agent.service`."""

from __future__ import annotations

from collections.abc import Callable

from agent.asked.diagnostics import Diagnostics
from agent.asked.logs import LogRequests
from agent.asked.restart import Restarts
from agent.asking import SampleRequests
from agent.commands import Commands, Doer
from agent.config import AgentConfig, StatePaths
from agent.outbox import Outbox
from agent.runtimes.keeper import Keeper
from agent.runtimes.unit import Unit
from agent.slots import Slots
from agent.store import AgentStore
from agent.transfer.fetch import Fetcher
from agent.update.budget import Budget
from agent.update.engine import Engine
from modules.commands import DIAGNOSTICS, LOGS, RESTART, SAMPLES


def commands(
    config: AgentConfig,
    paths: StatePaths,
    store: AgentStore,
    outbox: Outbox,
    keeper: Keeper,
    engine: Engine,
    slots: Slots,
    fetcher: Fetcher,
    make_way: Callable[[], None],
    crash_at: str = "",
) -> Commands:
    budget = Budget(config, paths.staging, slots, fetcher)

    def check_room(unit: Unit) -> None:
        budget.check_memory([slots.open(unit.module.manifest_sha256).manifest])

    kinds: dict[str, Doer] = {
        SAMPLES: SampleRequests(keeper).do,
        LOGS: LogRequests(paths.logs).do,
        RESTART: Restarts(keeper, lambda: engine.current().state, check_room, make_way).do,
        DIAGNOSTICS: Diagnostics(paths.root).do,
    }
    return Commands(store, outbox, kinds, left_out=config.commands.refuse, crash_at=crash_at)
