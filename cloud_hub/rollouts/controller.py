"""Moves rollouts: acts on device reports, on deadlines and on what operators ask for.

Every change is one transaction over the rollout, its executions, the devices' assignments and the audit trail; the
devices are rung after the commit. A crash in between loses only a ring, which the first tick after a start makes up
for, as it makes up for reports that were stored but not acted on. Called by the intake of reports, the API, and the
ticker of `service`; SQL is in `records`, policy in `decide` and `judge`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Final

import msgspec
from sqlalchemy.ext.asyncio import AsyncConnection

from cloud_hub.clock import Clock
from cloud_hub.desired import Desired
from cloud_hub.errors import Conflict, HubError
from cloud_hub.events import Events
from cloud_hub.roles import EVERYTHING, Role, Scope
from cloud_hub.rollouts import reading, records, targets
from cloud_hub.rollouts.gate import GateState
from cloud_hub.rollouts.new import NewRollout
from cloud_hub.rollouts.older import notes_of
from cloud_hub.rollouts.states import ENDED, Execution, Rollout, RolloutState
from cloud_hub.rollouts.status import MAX_SHOWN, RolloutStatus, status
from cloud_hub.rollouts.targeting import Chosen, Targeting, refuse
from cloud_hub.rollouts.turn import Standing, Turn
from cloud_hub.rollouts.waits import waits
from cloud_hub.store.bulk import in_slices
from cloud_hub.store.engine import Store
from modules.messages import DeviceReport

TICK_S: Final = 1.0  # for how long one tick goes on with what is left to do
DUE_AT_ONCE: Final = 100
# Tells devices that their directors stand at these versions. Best effort: the link rings again when it reconnects.
Ring = Callable[[Mapping[str, int]], Awaitable[None]]
# Signs a module (name, version, profile) again, so that devices may go back to it. Raises HubError where it cannot.
SignAgain = Callable[[str, int, str], Awaitable[object]]
# Raises HubError for a rollout that the chosen devices could not take (schemas of configurations).
Fits = Callable[[AsyncConnection, NewRollout, Chosen], Awaitable[None]]
_log = logging.getLogger(__name__)


async def _cannot_sign(_module: str, _version: int, _profile: str) -> None:
    """Where publishers sign on their own machines."""


async def _fits(_connection: AsyncConnection, _new: NewRollout, _chosen: Chosen) -> None:
    """Where nothing is checked beside what every rollout is."""


class Controller:
    """All rollouts of the hub."""

    def __init__(
        self,
        store: Store,
        events: Events,
        desired: Desired,
        ring: Ring,
        clock: Clock,
        targeting: Targeting | None = None,
        sign_again: SignAgain = _cannot_sign,
        fits: Fits = _fits,
    ) -> None:
        self._store = store
        self._events = events
        self._desired = desired
        self._ring = ring
        self._clock = clock
        self._targeting = targeting or Targeting(clock)
        self._sign_again = sign_again
        self._fits = fits
        self._recovered = False

    # --- what people ask for --------------------------------------------------------------------------------------
    async def create(self, new: NewRollout, actor: str, scope: Scope = EVERYTHING) -> RolloutStatus:
        """A draft, or running at once with `start`, on devices in `scope` only.

        Raises as `Targeting.chosen`, `targeting.refuse` and `NewRollout.plan`.
        """
        plan, now = new.plan(), self._clock()
        async with self._store.read() as connection:
            chosen = await self._targeting.chosen(connection, new, plan, scope)
            await self._fits(connection, new, chosen)
            notes = await notes_of(connection, new.module, new.version, chosen.groups)
        if plan.conflict == "refuse":
            refuse(new.module, chosen.elsewhere)
        parts = chosen.executions()
        async with self._store.write() as connection:
            rollout = Rollout(
                id=await records.next_id(connection), module=new.module, version=new.version, target=new.target,
                plan=plan, state=RolloutState.DRAFT, created_at=now, creator=actor, config=new.config,
            )  # fmt: skip
            await records.add(connection, rollout, parts)
            await self._events.record(
                connection, "rollout.created", actor, rollout.id, module=new.module, version=new.version,
                target=new.target, config=new.config, devices=len(parts),
            )  # fmt: skip
        made = await self.start(rollout.id, actor) if new.start else await self.get(rollout.id)
        return msgspec.structs.replace(made, notes=notes)

    async def start(self, rollout_id: str, actor: str) -> RolloutStatus:
        """Raises Conflict `rollout-state` unless it is a draft, `device-in-rollout` when devices are taken by now."""
        async with self._turn(rollout_id) as turn:
            _expect(turn.rollout, "start", RolloutState.DRAFT)
            await self._make_room(turn)
            turn.change(RolloutState.RUNNING, actor, "rollout.started")
        return await self.get(rollout_id)

    async def pause(self, rollout_id: str, actor: str) -> RolloutStatus:
        """Opens no further group; devices in progress go on. Raises Conflict `rollout-state` unless it is running."""
        async with self._turn(rollout_id) as turn:
            _expect(turn.rollout, "pause", RolloutState.RUNNING)
            turn.change(RolloutState.PAUSED, actor, "rollout.paused")
        return await self.get(rollout_id)

    async def resume(self, rollout_id: str, actor: str) -> RolloutStatus:
        """Goes on; what stood against it before is let pass. Raises Conflict `rollout-state` unless it is paused."""
        async with self._turn(rollout_id) as turn:
            _expect(turn.rollout, "resume", RolloutState.PAUSED)
            turn.change(RolloutState.RUNNING, actor, "rollout.resumed")
        return await self.get(rollout_id)

    async def abort(self, rollout_id: str, actor: str, reason: str = "", roll_back: bool = False) -> RolloutStatus:
        """Cancels what waits and what is in progress; those devices go back. Verified devices keep the module, but
        with `roll_back`. Raises Conflict `rollout-state` when the rollout has ended.
        """
        async with self._turn(rollout_id) as turn:
            _expect(turn.rollout, "abort", RolloutState.DRAFT, RolloutState.RUNNING, RolloutState.PAUSED)
            if roll_back and turn.rollout.state is not RolloutState.DRAFT:
                await turn.roll_back(actor, reason)
            else:
                turn.end(RolloutState.ABORTED, actor, "rollout.aborted", reason)
        return await self.get(rollout_id)

    async def roll_back(self, rollout_id: str, actor: str, reason: str = "") -> RolloutStatus:
        """Every device that took the module gets back what it had. Again, for those that were stuck.

        Raises Conflict `rollout-state` for a draft, and while it does so already; `device-in-rollout` where another
        rollout has the devices.
        """
        async with self._turn(rollout_id) as turn:
            _expect(turn.rollout, "roll back", RolloutState.RUNNING, RolloutState.PAUSED, *ENDED)
            if turn.rollout.state in ENDED:
                await self._refuse_others(turn)
            await turn.roll_back(actor, reason)
        return await self.get(rollout_id)

    async def finish(self, rollout_id: str, actor: str) -> RolloutStatus:
        """Ends a rollout that devices go on to join; what has not ended is cancelled. Raises `rollout-state`."""
        async with self._turn(rollout_id) as turn:
            _expect(turn.rollout, "finish", RolloutState.RUNNING, RolloutState.PAUSED)
            turn.end(RolloutState.FINISHED, actor, "rollout.finished", "")
        return await self.get(rollout_id)

    async def retry(self, rollout_id: str, actor: str) -> RolloutStatus:
        """Devices that failed begin again; in a rollout that has ended also those that it cancelled. Those that another
        rollout of the module has by now stay as they are.

        Raises Conflict `rollout-state` or `nothing-to-retry`.
        """
        async with self._turn(rollout_id) as turn:
            states = (RolloutState.FINISHED, RolloutState.FAILED, RolloutState.ABORTED)
            _expect(turn.rollout, "retry", RolloutState.RUNNING, RolloutState.PAUSED, *states)
            if not await turn.retry(actor):
                text = f"rollout {rollout_id}: no device failed, or others have them now"
                raise Conflict("nothing-to-retry", text, id=rollout_id)
        return await self.get(rollout_id)

    async def approve(
        self, rollout_id: str, principal: str, role: Role, stage: str, comment: str = ""
    ) -> RolloutStatus:
        """Somebody's yes to a stage. Raises Conflict `rollout-state` or `approval-refused`."""
        async with self._turn(rollout_id) as turn:
            _expect(turn.rollout, "approve", RolloutState.DRAFT, RolloutState.RUNNING, RolloutState.PAUSED)
            turn.approve(principal, role, stage, comment)
        return await self.get(rollout_id)

    # --- what people look at --------------------------------------------------------------------------------------
    async def get(self, rollout_id: str, among: Collection[str] | None = None) -> RolloutStatus:
        """With `among` as if there were no other devices. Raises NotFound `rollout-not-found`."""
        async with self._store.read() as connection:
            rollout = await records.load(connection, rollout_id)
            shown = await reading.worth_showing(connection, rollout_id, MAX_SHOWN, among)
            if among is None:
                counts, now = await records.counts(connection, rollout_id), self._clock()
                waiting = waits(rollout, counts, await records.next_ready(connection, rollout, now), now)
                return status(rollout, counts, shown, waiting)
            return status(rollout, await reading.counts_of(connection, rollout_id, among), shown)

    async def executions(
        self,
        rollout_id: str,
        state: str = "",
        group: int | None = None,
        after: str = "",
        limit: int = 100,
        among: Collection[str] | None = None,
    ) -> list[Execution]:
        """By device id, those behind `after`. Raises NotFound `rollout-not-found`."""
        async with self._store.read() as connection:
            await records.load(connection, rollout_id)
            return await reading.page(connection, rollout_id, state, group, after, limit, among)

    async def list(
        self,
        state: str = "",
        limit: int = 100,
        among: Collection[str] | None = None,
        module: str = "",
        after: str = "",
    ) -> list[Rollout]:
        """Newest first, from behind the rollout `after` on; only those `among` the ids where given."""
        async with self._store.read() as connection:
            return await reading.newest(connection, state, limit, among, module, after)

    # --- what devices, gates and time say -------------------------------------------------------------------------
    async def on_report(self, device: str, report: DeviceReport) -> None:
        """As `on_reports`, with one."""
        await self.on_reports([(device, report)])

    async def on_reports(self, reports: Sequence[tuple[str, DeviceReport]]) -> None:
        """Reports that were checked and stored. The same again, or old ones, change nothing."""
        latest = dict(reports)
        deployments = {device: {one.deployment for one in report.modules} for device, report in latest.items()}
        try:
            async with self._store.read() as connection:
                concerned = await records.concerned(connection, deployments)
            for rollout_id, ids in concerned.items():
                await self._take_in(rollout_id, {device: latest[device] for device in ids})
        except BaseException:
            # The reports are stored and do not come again: the next tick takes them in, as after a start.
            self._recovered = False
            raise

    async def answer_gate(self, rollout_id: str, answer: GateState) -> None:
        """The word of a rollout's gate, with what follows from it. An old one changes nothing."""
        async with self._turn(rollout_id) as turn:
            turn.answer_gate(answer)

    async def join(self, *found: str) -> None:
        """Devices that came in, or have changed: rollouts that they may join and whose target they match take them."""
        async with self._store.read() as connection:
            joinable = [one for one in await records.active(connection) if one.plan.joining]
        for rollout in joinable:
            for device in found if rollout.state is RolloutState.RUNNING else ():
                await self._join(rollout.id, device)

    async def tick(self) -> None:
        """Deadlines and what is left to do; after a start also what the last process may have left undone."""
        if not self._recovered:
            self._recovered = True  # first, so that a report which fails meanwhile asks for another round
            try:
                await self._recover()
            except BaseException:
                self._recovered = False
                raise
        until = time.monotonic() + TICK_S
        more = True
        while more and time.monotonic() < until:
            more = False
            async with self._store.read() as connection:
                due = await records.due_ids(connection, self._clock(), DUE_AT_ONCE)
            for rollout_id in due:
                async with self._turn(rollout_id) as turn:
                    pass
                more = more or turn.more

    async def _recover(self) -> None:
        async with self._store.read() as connection:
            busy = await records.busy_devices(connection)
        for ids in in_slices(busy):
            async with self._store.read() as connection:
                reports = await targets.reports(connection, ids)
            await self.on_reports(list(reports.items()))
        async with self._store.read() as connection:
            unheard = await records.unheard(connection)
        await self._tell(unheard)

    async def _take_in(self, rollout_id: str, reports: Mapping[str, DeviceReport]) -> None:
        async with self._turn(rollout_id) as turn:
            await turn.take_in(reports)

    async def _join(self, rollout_id: str, device: str) -> None:
        async with self._turn(rollout_id) as turn:
            if turn.rollout.state is not RolloutState.RUNNING or await turn.has(device):
                return
            index = max(turn.counts, default=0)
            asked = NewRollout(
                turn.rollout.module,
                turn.rollout.version,
                turn.rollout.target,
                config=turn.rollout.config,
            )
            part = await self._targeting.joins(turn.connection, asked, turn.rollout.plan, device, index)
            if part is not None:
                await turn.join([part])

    async def _make_room(self, turn: Turn) -> None:
        """What the plan says about devices that another rollout of the module is under way on."""
        rollout = turn.rollout
        if rollout.plan.conflict == "refuse":
            await self._refuse_others(turn)
            return
        if rollout.plan.conflict == "skip":
            taken = await records.taken(turn.connection, rollout)
            await turn.give_up(taken, "another rollout of the module is under way on the device")
            return
        others = await records.overlap(turn.connection, rollout.id, rollout.module)
        for other, devices in others.items():
            losing = await self._opened(turn.connection, other)
            await losing.give_up(devices, f"rollout {rollout.id} has taken the device over")
            losing.more = True  # what follows for it is the next tick's
            await losing.save()
            turn.rings.update(losing.rings)

    async def _refuse_others(self, turn: Turn) -> None:
        others = await records.overlap(turn.connection, turn.rollout.id, turn.rollout.module)
        refuse(turn.rollout.module, {device: other for other, devices in others.items() for device in devices})

    @asynccontextmanager
    async def _turn(self, rollout_id: str) -> AsyncIterator[Turn]:
        """A transaction on one rollout; afterwards what follows is carried out and the devices are rung."""
        async with self._store.write() as connection:
            turn = await self._opened(connection, rollout_id)
            yield turn
            await turn.settle()
            await turn.save()
        await self._tell(turn.rings)
        if turn.sign_again:
            await self._signed_again(turn.rollout)

    async def _opened(self, connection: AsyncConnection, rollout_id: str) -> Turn:
        rollout = await records.load(connection, rollout_id)
        counts = await records.counts(connection, rollout_id)
        builds = await targets.builds(connection, rollout.module, rollout.version) if rollout.version else {}
        return Turn(connection, self._desired, self._events, Standing(rollout, counts, builds), self._clock())

    async def _signed_again(self, rollout: Rollout) -> None:
        """Signs what devices go back to, where they would refuse it as it is and this hub can; then they go."""
        async with self._store.read() as connection:
            before = await records.previous_kinds(connection, rollout.id)
            newest = await targets.builds(connection, rollout.module, rollout.version)
            kinds = {(one.module, one.version, one.profile) for one in before}
            stand = {kind: (await targets.builds(connection, kind[0], kind[1])).get(kind[2]) for kind in kinds}
        for kind, build in stand.items():
            newer = newest.get(kind[2])
            if build is not None and newer is not None and 0 < build.release_counter < newer.release_counter:
                try:
                    await self._sign_again(*kind)
                except HubError as error:
                    # Devices that need it are told as stuck, with the command that signs it elsewhere.
                    _log.warning("not signed again: module=%s version=%s reason=%s", kind[0], kind[1], error.message)
        async with self._turn(rollout.id) as turn:
            turn.signed_again()

    async def _tell(self, rings: Mapping[str, int]) -> None:
        if not rings:
            return
        try:
            await self._ring(rings)
        except (HubError, OSError, TimeoutError):
            _log.warning("doorbells not rung, the link rings when it is back", extra={"devices": len(rings)})


def _expect(rollout: Rollout, act: str, *states: RolloutState) -> None:
    if rollout.state not in states:
        raise Conflict(
            "rollout-state",
            f"cannot {act} rollout {rollout.id}: expected it {' or '.join(states)}, it is {rollout.state}",
            id=rollout.id,
            state=str(rollout.state),
        )
