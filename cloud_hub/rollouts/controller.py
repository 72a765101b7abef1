"""Moves rollouts: acts on device reports, on deadlines and on what operators ask for.

Every change is one transaction over the rollout, its executions, the devices' assignments and the audit trail; the
devices are rung after the commit. A crash in between loses only a ring, which the first tick after a start makes up
for, as it makes up for reports that were stored but not acted on. Called by `link` (reports), the API, and the ticker
of `service`; SQL is in `records`, policy in `plan` and `judge`.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from typing import Annotated

import msgspec

from cloud_hub.bounds import Version
from cloud_hub.clock import Clock
from cloud_hub.desired import Desired
from cloud_hub.errors import BadRequest, Conflict, HubError
from cloud_hub.events import Events
from cloud_hub.roles import EVERYTHING, Scope
from cloud_hub.rollouts import records
from cloud_hub.rollouts.gate import CompareGate, GateState
from cloud_hub.rollouts.plan import Group, Plan, Rollout, RolloutState
from cloud_hub.rollouts.status import RolloutStatus, status
from cloud_hub.rollouts.targeting import executions_for
from cloud_hub.rollouts.turn import Turn
from cloud_hub.store.engine import Store
from modules.manifest import SamplingPolicy
from modules.messages import DeviceReport

# Tells a device that its director stands at a version. Best effort: the link rings again when it reconnects.
Ring = Callable[[str, int], Awaitable[None]]
_log = logging.getLogger(__name__)


class NewRollout(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What an operator asks for. `groups` are texts such as "1", "20%" and "rest"; the rest as in `Plan`."""

    module: str
    version: Version
    target: str
    groups: tuple[str, ...] = ("rest",)
    success_threshold: float = 100.0
    error_threshold: float = 0.0
    min_count: Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)] = 1
    device_deadline_s: float = 3600.0
    deadline_s: float = 7 * 86_400.0
    sampling: SamplingPolicy | None = None
    gate: CompareGate | None = None
    start: bool = False

    def plan(self) -> Plan:
        """Raises BadRequest `plan-invalid` naming the value."""
        try:
            return Plan(
                groups=tuple(Group.parse(text) for text in self.groups),
                success_threshold=self.success_threshold,
                error_threshold=self.error_threshold,
                min_count=self.min_count,
                device_deadline_s=self.device_deadline_s,
                deadline_s=self.deadline_s,
                sampling=self.sampling,
                gate=self.gate,
            )
        except ValueError as error:
            raise BadRequest("plan-invalid", f"{error}; nothing was created") from error


class Controller:
    """All rollouts of the hub."""

    def __init__(self, store: Store, events: Events, desired: Desired, ring: Ring, clock: Clock) -> None:
        self._store = store
        self._events = events
        self._desired = desired
        self._ring = ring
        self._clock = clock
        self._recovered = False

    async def create(self, new: NewRollout, actor: str, scope: Scope = EVERYTHING) -> RolloutStatus:
        """A draft, or running at once with `start`, on devices in `scope` only.

        Raises as `targeting.executions_for` and `NewRollout.plan`.
        """
        plan, now = new.plan(), self._clock()
        async with self._store.write() as connection:
            parts = await executions_for(connection, new.module, new.version, new.target, plan, now, scope)
            rollout = Rollout(
                id=await records.next_id(connection),
                module=new.module,
                version=new.version,
                target=new.target,
                plan=plan,
                state=RolloutState.DRAFT,
                created_at=now,
            )
            await records.add(connection, rollout, parts)
            await self._events.record(
                connection,
                "rollout.created",
                actor,
                rollout.id,
                module=new.module,
                version=new.version,
                target=new.target,
                devices=len(parts),
            )
        return await self.start(rollout.id, actor) if new.start else status(rollout, parts)

    async def get(self, rollout_id: str) -> RolloutStatus:
        """Raises NotFound `rollout-not-found`."""
        async with self._store.read() as connection:
            return status(*await records.load(connection, rollout_id))

    async def list(self, state: str = "", limit: int = 100, among: Collection[str] | None = None) -> list[Rollout]:
        """Newest first; only those `among` the ids where given."""
        async with self._store.read() as connection:
            return await records.newest(connection, state, limit, among)

    async def start(self, rollout_id: str, actor: str) -> RolloutStatus:
        """Raises Conflict `rollout-state` unless it is a draft, `device-in-rollout` when devices are taken by now."""
        async with self._turn(rollout_id) as turn:
            _expect(turn.rollout, "start", RolloutState.DRAFT)
            await turn.refuse_overlap()
            await turn.change(RolloutState.RUNNING, actor, "rollout.started")
        return turn.status

    async def pause(self, rollout_id: str, actor: str) -> RolloutStatus:
        """Opens no further group; devices in progress go on. Raises Conflict `rollout-state` unless it is running."""
        async with self._turn(rollout_id) as turn:
            _expect(turn.rollout, "pause", RolloutState.RUNNING)
            await turn.change(RolloutState.PAUSED, actor, "rollout.paused")
        return turn.status

    async def resume(self, rollout_id: str, actor: str) -> RolloutStatus:
        """Raises Conflict `rollout-state` unless it is paused."""
        async with self._turn(rollout_id) as turn:
            _expect(turn.rollout, "resume", RolloutState.PAUSED)
            await turn.change(RolloutState.RUNNING, actor, "rollout.resumed")
        return turn.status

    async def abort(self, rollout_id: str, actor: str, reason: str = "") -> RolloutStatus:
        """Cancels what waits and what is in progress; those devices go back. Verified devices keep the module.

        Raises Conflict `rollout-state` when the rollout has ended.
        """
        async with self._turn(rollout_id) as turn:
            _expect(turn.rollout, "abort", RolloutState.DRAFT, RolloutState.RUNNING, RolloutState.PAUSED)
            await turn.abort(actor, reason)
        return turn.status

    async def on_report(self, device: str, report: DeviceReport) -> None:
        """A report that was checked and stored. The same report again, or an old one, changes nothing."""
        deployments = {module.deployment for module in report.modules}
        async with self._store.read() as connection:
            concerned = await records.concerned_ids(connection, device, deployments)
        try:
            for rollout_id in concerned:
                await self._take_in(rollout_id, {device: report})
        except BaseException:
            # The report is stored and does not come again: the next tick takes it in, as after a start.
            self._recovered = False
            raise

    async def answer_gate(self, rollout_id: str, answer: GateState) -> None:
        """The word of a rollout's gate, with what follows from it. An old one changes nothing."""
        async with self._turn(rollout_id) as turn:
            await turn.answer_gate(answer)

    async def tick(self) -> None:
        """Deadlines; after a start also the reports and rings that the last process may have left undone."""
        if not self._recovered:
            self._recovered = True  # first, so that a report which fails meanwhile asks for another round
            try:
                await self._recover()
            except BaseException:
                self._recovered = False
                raise
        async with self._store.read() as connection:
            due = await records.due_ids(connection, self._clock())
        for rollout_id in due:
            async with self._turn(rollout_id):
                pass

    async def _recover(self) -> None:
        async with self._store.read() as connection:
            reports = {t.id: t.report for t in await records.targets(connection) if t.report is not None}
            active = await records.active_ids(connection)
        for rollout_id in active:
            await self._take_in(rollout_id, reports)
        async with self._store.read() as connection:
            unheard = await records.unheard(connection)
        await self._tell(unheard)

    async def _take_in(self, rollout_id: str, reports: Mapping[str, DeviceReport]) -> None:
        async with self._turn(rollout_id) as turn:
            for device, report in reports.items():
                await turn.report(device, report)

    @asynccontextmanager
    async def _turn(self, rollout_id: str) -> AsyncIterator[Turn]:
        """A transaction on one rollout; afterwards what follows is carried out and the devices are rung."""
        async with self._store.write() as connection:
            standing = await records.load(connection, rollout_id)
            builds = await records.builds(connection, standing[0].module, standing[0].version)
            turn = Turn(connection, self._desired, self._events, standing, builds, self._clock())
            yield turn
            await turn.settle()
            await turn.save()
        await self._tell(turn.rings)

    async def _tell(self, rings: Mapping[str, int]) -> None:
        for device, version in rings.items():
            try:
                await self._ring(device, version)
            except (HubError, OSError, TimeoutError):
                _log.warning("doorbell not rung, the link rings when it is back", extra={"device": device})


def _expect(rollout: Rollout, act: str, *states: RolloutState) -> None:
    if rollout.state not in states:
        raise Conflict(
            "rollout-state",
            f"cannot {act} rollout {rollout.id}: expected it {' or '.join(states)}, it is {rollout.state}",
            id=rollout.id,
            state=str(rollout.state),
        )
