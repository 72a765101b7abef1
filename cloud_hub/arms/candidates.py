"""Candidates: versions that run beside what serves, from their start to their promotion or drop. Called by the API.

A rollout brings a candidate to its devices, in groups and with every safety that rollouts have; another rollout makes
it the main version; the first one's fleet rollback takes it away again. Only its share is changed here: nothing has to
prove itself again for that.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Final

import msgspec

from cloud_hub.arms import candidate_rows as rows
from cloud_hub.arms.candidate import Candidate, CandidateReport, CandidateState, NewCandidate, Promotion
from cloud_hub.arms.compare import Comparison
from cloud_hub.arms.comparisons import Comparisons, Question
from cloud_hub.blobs import Blobs
from cloud_hub.bounds import AnyVersion
from cloud_hub.clock import Clock
from cloud_hub.errors import Conflict, HubError, NotFound
from cloud_hub.events import Events
from cloud_hub.roles import EVERYTHING, Scope
from cloud_hub.rollouts import targets
from cloud_hub.rollouts.controller import Controller
from cloud_hub.rollouts.new import NewRollout
from cloud_hub.rollouts.states import RolloutState
from cloud_hub.store.engine import Store
from modules.arms import why_not_beside
from modules.manifest import decode_manifest

SLICE: Final = 500  # devices whose share is changed in one transaction
_UNDER_WAY: Final = frozenset({RolloutState.DRAFT, RolloutState.RUNNING, RolloutState.PAUSED})
_GOING: Final = frozenset({RolloutState.ROLLING_BACK, RolloutState.ROLLED_BACK})
Ring = Callable[[Mapping[str, int]], Awaitable[None]]


class Candidates:
    """`ring` tells devices that their desired state has a new version."""

    def __init__(
        self,
        store: Store,
        blobs: Blobs,
        events: Events,
        rollouts: Controller,
        comparisons: Comparisons,
        ring: Ring,
        clock: Clock,
    ) -> None:
        self._store, self._blobs, self._events, self._clock = store, blobs, events, clock
        self._rollouts, self._comparisons, self._ring = rollouts, comparisons, ring

    async def start(self, new: NewCandidate, actor: str, scope: Scope = EVERYTHING) -> Candidate:
        """With its rollout under way. Raises as `Controller.create`, and Conflict `unlike-candidate` for a version that
        no device could run beside its own.
        """
        asked = new.rollout(new.salt or f"{new.module}-{new.version}-{secrets.token_hex(4)}"[-64:])
        assert asked.candidate is not None  # noqa: S101 - that is what makes it one
        if asked.candidate.on_device:
            await self._refuse_unlike(new)
        made = await self._rollouts.create(asked, actor, scope)
        candidate = Candidate(
            id=made.rollout.id, module=new.module, version=new.version, way=new.way, split=new.split, share=new.share,
            salt=asked.candidate.salt, target=new.target, state="running", promoted_by="",
            created_at=self._clock(), creator=actor, ended_at=None,
        )  # fmt: skip
        async with self._store.write() as connection:
            await rows.add(connection, candidate)
            said = {"way": new.way, "split": new.split, "share": new.share, "salt": candidate.salt}
            await self._events.record(
                connection, "candidate.started", actor, candidate.id, module=new.module, version=new.version, **said
            )
        try:
            await self._rollouts.start(candidate.id, actor)
        except HubError as error:  # a device was taken just now
            await self._rollouts.abort(candidate.id, actor, "the candidate could not be started")
            await self._end(candidate, "dropped", actor, reason=error.message)
            raise
        return candidate

    async def get(self, id_: str) -> Candidate:
        """Raises NotFound `candidate-not-found`."""
        async with self._store.read() as connection:
            return await rows.load(connection, id_)

    async def list(
        self,
        module: str = "",
        state: str = "",
        after: str = "",
        limit: int = 100,
        among: Collection[str] | None = None,
    ) -> list[Candidate]:
        """Newest first; only those `among` the ids where given."""
        async with self._store.read() as connection:
            return await rows.page(connection, module, state, after, limit, among)

    async def change_share(self, id_: str, share: float, actor: str) -> Candidate:
        """On every device that has it, without a trial; those that get it later get it so. Raises Conflict
        `candidate-state`, `candidate-split`.
        """
        candidate = await self._running(id_)
        if candidate.split != "request":
            text = (
                f"candidate {id_} is the main version of its devices: for more of them start another one with the salt "
                f"{candidate.salt}, for fewer drop it; nothing was changed"
            )
            raise Conflict("candidate-split", text, id=id_)
        async with self._store.write() as connection:
            await rows.change_share(connection, candidate, share)
            await self._events.record(
                connection, "candidate.share-changed", actor, id_, before=candidate.share, after=share
            )
        while True:
            async with self._store.write() as connection:
                rings = await rows.share_some(connection, id_, share, SLICE)
            if not rings:
                break
            await self._ring(rings)
        return msgspec.structs.replace(candidate, share=share)

    async def promote(self, id_: str, how: Promotion, actor: str, scope: Scope = EVERYTHING) -> Candidate:
        """The main version of all devices of its target, by a rollout of its own that starts now; on each of them the
        candidate goes when it takes over. Raises as `Controller.create`, and Conflict `candidate-state`.
        """
        candidate = await self._running(id_)
        made = await self._rollouts.create(
            NewRollout(
                candidate.module, candidate.version, how.target or candidate.target, how.groups,
                error_threshold=how.error_threshold, on_failure=how.on_failure,
                device_deadline_s=how.device_deadline_s, deadline_s=how.deadline_s, conflict="supersede", start=True,
            ),
            actor,
            scope,
        )  # fmt: skip
        return await self._end(candidate, "promoted", actor, promoted_by=made.rollout.id)

    async def drop(self, id_: str, reason: str, actor: str) -> Candidate:
        """Taken from every device, which goes on with what it had. Raises Conflict `candidate-state` and as
        `Controller.roll_back`. After a failure it may be asked for again.
        """
        candidate = await self._running(id_)
        state = (await self._rollouts.get(id_)).rollout.state
        if state in _UNDER_WAY:
            await self._rollouts.abort(id_, actor, reason or "the candidate was dropped", roll_back=True)
        elif state not in _GOING:
            await self._rollouts.roll_back(id_, actor, reason or "the candidate was dropped")
        return await self._end(candidate, "dropped", actor, reason=reason)

    async def report(self, id_: str, baseline: AnyVersion = 0, mine: Collection[str] | None = None) -> CandidateReport:
        """How it does, on devices among `mine` where given. Raises NotFound `candidate-not-found`."""
        async with self._store.read() as connection:
            candidate = await rows.load(connection, id_)
            state, verified = await rows.standing(connection, id_)
            outcomes, partial = await rows.outcomes(connection, candidate, mine)
        comparison = await self._compared(candidate, baseline, mine)
        return CandidateReport(candidate, RolloutState(state), verified, outcomes, partial, comparison)

    async def _compared(
        self, candidate: Candidate, baseline: AnyVersion, mine: Collection[str] | None
    ) -> Comparison | None:
        devices = None if mine is None else frozenset(mine)
        try:
            found = await self._comparisons.ask(Question(candidate.module, candidate.version, baseline, devices))
        except NotFound:  # no version below it
            if baseline:
                raise
            return None
        return found if found.differences else None

    async def _running(self, id_: str) -> Candidate:
        candidate = await self.get(id_)
        if candidate.state != "running":
            text = f"candidate {id_}: expected it running, it is {candidate.state}; nothing was changed"
            raise Conflict("candidate-state", text, id=id_, state=candidate.state)
        return candidate

    async def _end(
        self, candidate: Candidate, state: CandidateState, actor: str, promoted_by: str = "", reason: str = ""
    ) -> Candidate:
        now = self._clock()
        async with self._store.write() as connection:
            await rows.end(connection, candidate.id, state, now, promoted_by)
            await self._events.record(
                connection, f"candidate.{state}", actor, candidate.id, module=candidate.module,
                version=candidate.version, reason=reason, rollout=promoted_by,
            )  # fmt: skip
        return msgspec.structs.replace(candidate, state=state, ended_at=now, promoted_by=promoted_by)

    async def _refuse_unlike(self, new: NewCandidate) -> None:
        """Devices look for themselves; here only what fits beside nothing that is out is refused."""
        async with self._store.read() as connection:
            builds = await targets.builds(connection, new.module, new.version)
            mains = await rows.main_builds(connection, new.module)
        whys: list[str] = []
        for profile in builds.keys() & mains.keys():
            ours = decode_manifest(await self._blobs.read(builds[profile].manifest_sha256))
            for sha256 in sorted(mains[profile]):
                main = decode_manifest(await self._blobs.read(sha256))
                whys.append(
                    why_not_beside(main, ours) and f"beside version {main.version}: {why_not_beside(main, ours)}"
                )
        if whys and all(whys):
            text = f"{new.module} version {new.version}: {whys[0]}; nothing was created"
            raise Conflict("unlike-candidate", text, module=new.module, version=new.version)
