"""The resolving state: what the hub wants, verified, held against what this device has.

Decides whether there is anything to do, admits new modules, and tells being offline from being attacked. Called by
`agent.update.engine`, also during an update to ask whether it is still wanted.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import msgspec

from agent.errors import AgentError, TrustError
from agent.installed import ModuleSet, carry_verified, changes
from agent.trust import Desired
from agent.update.attacks import Attacks
from agent.update.bell import Bell
from agent.update.record import Ledger, Record
from agent.update.states import Event
from agent.update.steps import Steps, to_set

# Room may come back by itself: looked for at every poll, also after the update's final word.
ASKED_AGAIN = frozenset({"disk-budget", "memory-budget"})
ASK_AGAIN_S = 15.0  # whether an update under way is still wanted, where the hub gave no answer
MAX_REFUSALS = 3  # refusals in a row before the update is called rejected: the channel, not the hub, may be at fault

_logger = logging.getLogger(__name__)


class Resolver:
    """Writes what it finds into the ledger's record; the engine persists it with the state that follows."""

    def __init__(self, ledger: Ledger, steps: Steps, attacks: Attacks, bell: Bell, changed: Callable[[], None]) -> None:
        self._ledger = ledger
        self._steps = steps
        self._attacks = attacks
        self._bell = bell
        self._changed = changed
        self._refusals = 0  # in a row
        self._unreached = 0  # in a row
        self.look_again = False  # something newer was announced during an update

    async def resolve(self) -> Event:
        """Raises UpdateError when a module does not fit, TrustError when verification has refused for good."""
        self._bell.look()
        self.look_again = False
        try:
            desired = await self._steps.desired(await self._ledger.counters())
        except TrustError as error:
            return await self._refused(error)
        self._refusals = self._unreached = 0
        return await self._plan(desired)

    async def withdrawn(self) -> None:
        """Returns once the hub no longer wants what is under way; asked only when the bell has rung."""
        record = self._ledger.record
        new = changes(self._ledger.current, record.target)
        while True:
            await self._bell.newer(record.director_version)
            self.look_again, announced = True, self._bell.rung
            try:
                desired = await self._steps.desired(await self._ledger.counters())
            except AgentError as error:
                _logger.info("not known whether the update is still wanted", extra={"why": str(error)})
                await asyncio.sleep(ASK_AGAIN_S)
                continue
            if self._bell.rung == announced:
                self._bell.look()  # only now: who asks may be cancelled before there is an answer
            wanted = to_set(desired)
            served = {module.proof for module in wanted.modules if module.serves}
            if any(m.proof not in served for m in new.trial) or {m.manifest_sha256 for m in new.fetch} - wanted.digests:
                return

    async def _plan(self, desired: Desired) -> Event:
        before, current = self._ledger.record, self._ledger.current
        again = desired.director_version == before.director_version
        if again and before.ended and before.reason_key not in {"", *ASKED_AGAIN} and not before.refused:
            return Event.NOTHING  # this version has had its final word
        target = carry_verified(current, to_set(desired))
        between = changes(self._steps.whole(current), target)
        if between.same and between.settled:
            return await self._note_versions(desired)
        self._ledger.believe(
            target=target,
            director_version=desired.director_version,
            about_version=desired.director_version,
            image_version=desired.image_version,
            deployments=tuple(sorted(set(target.deployments) - set(current.deployments))),
            attempt=_attempt(before) if again else 1,
            ended=False,
            refused=False,
            reverted=False,
            reason_key="",
            reason="",
            before={},
        )
        self._steps.done_bytes = self._steps.total_bytes = 0
        if between.settled:
            return Event.SETTLED
        self._steps.admit(desired, current)
        await self._steps.make_room(desired, self._steps.whole(current), self._ledger.previous)
        await self._steps.receive(desired)
        return Event.OK

    async def _note_versions(self, desired: Desired) -> Event:
        """The same modules under newer metadata: only the versions are kept."""
        current = self._ledger.current
        if (current.director_version, current.image_version) != (desired.director_version, desired.image_version):
            versions = {"director_version": desired.director_version, "image_version": desired.image_version}
            await self._ledger.commit(msgspec.structs.replace(current, **versions))
            await self._steps.clean(current, self._ledger.previous, all_staging=True)  # of what is wanted no more
            self._ledger.believe(**versions, ended=True, refused=False, reason_key="", reason="", attempt=0)
            self._changed()
        return Event.NOTHING

    async def _refused(self, error: TrustError) -> Event:
        """Being offline is nobody's fault; an attack is reported at once, and final when it repeats itself."""
        if not error.attack:
            self._unreached += 1
            self._bell.retry_later(self._unreached)
            _logger.info("desired state not checked", extra={"key": error.key, "why": str(error)})
            return Event.LATER
        await self._attacks.add(error.key, str(error))
        _logger.warning("refused by verification", extra={"key": error.key, "why": str(error)})
        self._changed()
        self._refusals += 1
        self._bell.retry_later(self._refusals)
        if self._refusals < MAX_REFUSALS:
            return Event.LATER
        about = max(self._bell.rung, self._ledger.record.director_version)
        self._ledger.believe(target=ModuleSet(), deployments=(), about_version=about, refused=True, reverted=False)
        raise error


def _attempt(before: Record) -> int:
    """The number of the next try. One that was left without blame is the same try still."""
    return before.attempt + 1 if before.reason_key else max(before.attempt, 1)
