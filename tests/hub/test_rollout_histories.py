"""Any history of reports, silences, duplicates, restarts, people and clocks: no rollout is stuck or contradicts itself.

A Hypothesis state machine over the real controller and a real database. What must hold is checked after every step:
the counts are those of the executions, an execution that ended changes only by a person's word or another attempt, no
group opens before its time, nobody is directed to what no rollout or history explains, and at the end everything ends.
Source of the method: Hypothesis, stateful testing (rule-based state machines).
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from sqlalchemy import select

from cloud_hub.errors import Conflict
from cloud_hub.events import Events
from cloud_hub.rollouts.plan import FailureThreshold
from cloud_hub.rollouts.rate import Rate
from cloud_hub.rollouts.records import counts
from cloud_hub.rollouts.states import DONE, ENDED, IN_PROGRESS, Execution, ExecutionState, RolloutState
from cloud_hub.store.engine import Store
from cloud_hub.store.tables import executions
from modules.messages import DeviceReport, ModuleReport, UpdateReport, UpdateState
from support.clock import SetClock
from support.history import read_history
from support.invariants import violations
from support.reporting import DIGESTS, Fleet
from support.rollouts import counted

IDS = tuple(f"cam-{number}00" for number in range(1, 6))
DEADLINE_S = 600.0
_T = TypeVar("_T")
FATES = (
    "verified",
    "unverified",
    "fetching",
    "probation",
    "failed",
    "rejected",
    "reverted",
    "nothing",
    "older",
    "back",
)
devices_drawn = st.sampled_from(IDS)
plans = st.fixed_dictionaries(
    {
        "groups": st.sampled_from([("rest",), ("1", "rest"), ("1", "50%", "rest"), ("2", "2")]),
        "success_threshold": st.sampled_from([0.0, 50.0, 100.0]),
        "error_threshold": st.sampled_from([0.0, 30.0, 100.0]),
        "min_count": st.integers(1, 3),
        "on_failure": st.sampled_from(["stop", "pause", "roll_back"]),
        "retries": st.integers(0, 2),
        "retry_after_s": st.sampled_from([0.0, 100.0]),
        "rate": st.sampled_from([None, Rate(1.0), Rate(60.0, factor=2, after=1)]),
        "thresholds": st.sampled_from([(), (FailureThreshold("silent", 20.0),)]),
        "soak_s": st.sampled_from([0.0, 50.0]),
        "conflict": st.sampled_from(["refuse", "skip", "supersede"]),
        "joining": st.booleans(),
        "deadline_s": st.sampled_from([2000.0, 50_000.0]),
    }
)


class Histories(RuleBasedStateMachine):
    """Five devices that run version 1, rollouts of version 2 and 1, and whatever comes to them."""

    database: bytes

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.folder = Path(tempfile.mkdtemp())
        (self.folder / "hub.sqlite3").write_bytes(self.database)
        self.clock = SetClock()
        self.said: dict[str, DeviceReport] = {}
        self.before: dict[tuple[str, str], Execution] = {}
        self.told = False  # whether a person has spoken since the last look

    def do(self, work: Coroutine[Any, Any, _T]) -> _T:
        return self.loop.run_until_complete(asyncio.wait_for(work, 30))

    def teardown(self) -> None:
        self.ends()
        self.do(self.fleet.store.close())
        self.loop.close()
        shutil.rmtree(self.folder)

    @initialize()
    def furnish(self) -> None:
        store = self.do(Store.open(f"sqlite+aiosqlite:///{self.folder}/hub.sqlite3", migrate=False))
        self.fleet = Fleet(store, Events(store, self.clock), self.clock)
        self.do(self.fleet.furnish())

    # --- what happens ---------------------------------------------------------------------------------------------
    @rule(plan=plans, version=st.sampled_from([1, 2]), some=st.sampled_from(["all", *IDS[:2]]))
    def create(self, plan: dict[str, Any], version: int, some: str) -> None:
        target = "profile=generic-x86_64" if some == "all" else f"id={some}"
        try:
            self.do(self.fleet.create(version=version, target=target, device_deadline_s=DEADLINE_S, **plan))
        except Conflict as error:
            self.refused(error)

    @rule(device=devices_drawn, fate=st.sampled_from(FATES), again=st.booleans(), newest=st.booleans())
    def report(self, device: str, fate: str, again: bool, newest: bool) -> None:
        report = self.said[device] if again and device in self.said else self.made(device, fate, newest)
        self.said[device] = report
        self.do(self.fleet.say(report))

    @rule(seconds=st.sampled_from([0.0, 1.0, 30.0, 120.0, DEADLINE_S]))
    def tick(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.do(self.fleet.rollouts.tick())

    @rule()
    def restart(self) -> None:
        self.fleet.rollouts = self.fleet.restarted()
        self.do(self.fleet.rollouts.tick())

    @rule(act=st.sampled_from(["pause", "resume", "abort", "roll_back", "retry", "finish"]), number=st.integers(0, 3))
    def ask(self, act: str, number: int) -> None:
        rollouts = self.do(self.fleet.rollouts.list())
        if not rollouts:
            return
        self.told = True
        try:
            self.do(getattr(self.fleet.rollouts, act)(rollouts[number % len(rollouts)].id, "ann"))
        except Conflict as error:
            self.refused(error)

    def refused(self, error: Conflict) -> None:
        """For a reason that people can understand, and never because of a failure inside."""
        assert error.key in ("rollout-state", "nothing-to-retry", "device-in-rollout", "no-device-eligible")

    def made(self, device: str, fate: str, newest: bool) -> DeviceReport:
        """A report about what the device is directed to; an old one knows an older director."""
        (given,) = self.do(self.fleet.desired.of(device)) or (None,)
        version, deployment = (given.version, given.deployment) if given else (1, "r0")
        module = ModuleReport("digits", version, DIGESTS[version], version, deployment, "serving", fate == "verified")
        modules = (module,) if fate in ("verified", "unverified") else ()
        if fate == "back":
            modules = (ModuleReport("digits", 1, DIGESTS[1], 1, deployment, "serving", True),)
        steps: dict[str, UpdateState] = {"fetching": "fetching", "probation": "probation"}
        current = UpdateReport(steps[fate], 99, (deployment,)) if fate in steps else UpdateReport("idle")
        ends: dict[str, UpdateState] = {"failed": "failed", "rejected": "rejected", "reverted": "reverting"}
        last = UpdateReport(ends[fate], 99, (deployment,)) if fate in ends else UpdateReport("idle")
        return self.fleet.report(
            device, modules=modules, current=current, last=last, director_version=99 if newest else 1
        )

    # --- what must hold -------------------------------------------------------------------------------------------
    @invariant()
    def nothing_contradicts(self) -> None:
        if not hasattr(self, "fleet"):
            return
        self.do(self._check())
        self.told = False

    async def _check(self) -> None:
        taken: dict[str, str] = {}
        for rollout in await self.fleet.rollouts.list():
            parts = [part for part in await self.fleet.rollouts.executions(rollout.id) if part.group_index >= 0]
            async with self.fleet.store.read() as connection:
                kept = await counts(connection, rollout.id)
            there = counted(parts)
            assert {g: +c for g, c in kept.items() if +c} == {g: +c for g, c in there.items()}
            for part in parts:
                self._check_part(rollout.id, part)
                if part.state in IN_PROGRESS:
                    assert part.device not in taken, "two rollouts are at work on one device"
                    taken[part.device] = rollout.id
                    assert part.deadline_at is not None
                    assert part.group_index <= rollout.group_index, "it began before its group was open"
            if rollout.state in ENDED:
                assert all(part.state in DONE for part in parts), "it has ended and an execution has not"
            if rollout.state is RolloutState.FINISHED and not rollout.pardoned:
                failed = sum(part.state not in (ExecutionState.VERIFIED, ExecutionState.CANCELLED) for part in parts)
                ended = sum(part.state is not ExecutionState.CANCELLED for part in parts)
                threshold = rollout.plan.error_threshold
                assert ended < rollout.plan.min_count or 100 * failed <= threshold * max(1, ended)
        await self._check_desired()

    def _check_part(self, rollout: str, part: Execution) -> None:
        old = self.before.get((rollout, part.device))
        self.before[rollout, part.device] = part
        if old is None or old.state not in DONE or self.told:
            return
        goes_back = {ExecutionState.RETURNING, ExecutionState.RETURNED, ExecutionState.STUCK}
        if old.state is ExecutionState.VERIFIED and part.state in goes_back:
            return  # an automatic rollback
        assert part.state is old.state, f"{part.device} had ended as {old.state} and is {part.state}"

    async def _check_desired(self) -> None:
        """What a device is directed to is what a rollout is at, has reached, or the device itself has kept."""
        async with self.fleet.store.read() as connection:
            rows = (await connection.execute(select(executions))).all()
        explained = {(row.device, row.rollout) for row in rows if row.group_index >= 0}
        for device in IDS:
            for given in await self.fleet.desired.of(device):
                assert (device, given.deployment) in explained

    def ends(self) -> None:
        """With time alone everything comes to an end, but what a person has paused until its deadline."""
        for _ in range(15):
            self.clock.advance(5000.0)
            self.do(self.fleet.rollouts.tick())
        self.nothing_contradicts()
        for rollout in self.do(self.fleet.rollouts.list()):
            assert rollout.state in ENDED, f"{rollout.id} is {rollout.state} for ever"
        assert violations(self.do(read_history(self.fleet.store))) == []


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("campaign", [False, pytest.param(True, marks=pytest.mark.soak)])
def test_no_history_leads_to_a_rollout_that_is_stuck_or_contradicts_itself(
    migrated_database: bytes, campaign: bool
) -> None:
    Histories.database = migrated_database
    run_state_machine_as_test(
        Histories,
        settings=settings(
            max_examples=1500 if campaign else 25, stateful_step_count=20, deadline=None,
            # The same histories every time, and no search for the shortest: a campaign looks for new ones.
            derandomize=not campaign, phases=tuple(Phase) if campaign else (Phase.explicit, Phase.generate),
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        ),
    )  # fmt: skip
