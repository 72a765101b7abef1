"""Walks the update table: persists each state, does its work under a deadline, and lets the table say what follows.

One unit of the supervisor. What a state does is known by `agent.update.steps` and `resolve`, what follows by
`states`, when to look by `bell`.

For tests of power cuts, `crash_at` ("fetching:before", "fetching:after", ...) kills this process with SIGKILL when the
state's work is about to begin or has just ended; the service takes it from MOORING_CRASH_AT, empty in production.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import msgspec

from agent.config import UpdateLimits
from agent.errors import AgentError, FetchError, TrustError, UpdateError
from agent.installed import ModuleSet, all_verified
from agent.news import Level, Tell, nobody
from agent.update.attacks import Attacks
from agent.update.bell import Bell
from agent.update.patience import finished, run_out
from agent.update.record import Ledger, Record
from agent.update.resolve import Resolver
from agent.update.states import Event, State, after, bounded, row
from agent.update.steps import Steps
from modules.messages import UpdateReport

COMMIT_PAUSE_S = 5.0
# Failures that another attempt may not meet: the way was bad, not the module.
RETRIED = frozenset({
    "chunk-mismatch", "deadline", "disk", "disk-budget", "disk-full", "endpoint", "file-mismatch", "io",
    "length-or-hash", "link-count", "memory-budget", "not-found", "not-regular", "offline", "refused", "spawn-failed",
    "stalled", "store", "worker-timeout",
})  # fmt: skip
ATTACKS_ON_FILES = frozenset({"chunk-mismatch", "file-mismatch"})

_logger = logging.getLogger(__name__)


class Engine:
    """`open` says what to serve at start; then `run`."""

    def __init__(
        self,
        ledger: Ledger,
        steps: Steps,
        attacks: Attacks,
        bell: Bell,
        limits: UpdateLimits,
        changed: Callable[[], None],
        crash_at: str = "",
        tell: Tell = nobody,
    ) -> None:
        self._ledger = ledger
        self._steps = steps
        self._attacks = attacks
        self._bell = bell
        self._limits = limits
        self._changed = changed
        self._crash_at = crash_at
        self._tell = tell
        self._resolver = Resolver(ledger, steps, attacks, bell, changed)
        self._work: dict[State, Callable[[], Awaitable[Event | None]]] = {
            State.IDLE: lambda: bell.wait(self._ledger.record.director_version),
            State.RESOLVING: self._resolver.resolve,
            State.FETCHING: self._fetch,
            State.VERIFYING: lambda: self._while_wanted(steps.verify(self._target, self._held)),
            State.STAGING: lambda: self._while_wanted(steps.stage(self._target, self._held)),
            State.TRYING: lambda: self._while_wanted(steps.try_out(self._target, self._held)),
            State.ACTIVATING: self._activate,
            State.PROBATION: self._watch,
            State.COMMITTED: self._commit,
            State.REVERTING: self._revert,
            State.REJECTED: self._clean,
            State.FAILED: self._clean,
        }

    async def open(self) -> ModuleSet:
        """The set to serve now, by the row of the state that the last run died in: the old one unless it says so."""
        await self._ledger.open()
        await self._attacks.open()
        return self.serving

    @property
    def serving(self) -> ModuleSet:
        """The set that an agent which starts now serves."""
        record = self._ledger.record
        return record.target if row(record.state).serves_new else self._ledger.current

    def current(self) -> UpdateReport:
        """The update under way, for the device's report. One that waits for its next attempt has state failed."""
        record = self._ledger.record
        waits = record.state in (State.IDLE, State.RESOLVING)
        if waits and (record.ended or not record.reason_key):
            return UpdateReport(state="idle", director_version=record.director_version)
        return self._report(record, State.FAILED if waits else record.state)

    async def run(self) -> None:
        """Until cancelled. A machine that was interrupted goes on as its row says."""
        state = self._ledger.record.state
        if state is not State.IDLE:
            _logger.info("update resumes", extra={"state": state, "as": row(state).resume_as})
            self._forgive(state)
            await self._enter(row(state).resume_as)
        try:
            while True:
                await self._step()
        finally:
            await self._steps.discard()

    def _forgive(self, state: State) -> None:
        """A download that got further since the last cut is no loop, however often the power goes."""
        staged, record = self._steps.staged_bytes(), self._ledger.record
        if state is State.FETCHING:
            self._ledger.believe(staged=staged, writes=record.writes - (staged > record.staged))

    async def _step(self) -> None:
        state = self._ledger.record.state
        self._crash(state, "before")
        event = await self._perform(state)
        self._crash(state, "after")
        if state is State.COMMITTED and event is Event.FAIL:
            await asyncio.sleep(COMMIT_PAUSE_S)
        else:
            await self._enter(after(state, event))

    async def _perform(self, state: State) -> Event:
        try:
            async with asyncio.timeout(self._deadline_s(state)):
                return await self._work[state]() or Event.OK
        except AgentError as error:
            self._blame(error.key, str(error))
            if error.key in ATTACKS_ON_FILES:
                await self._attacks.add(error.key, str(error))
            if isinstance(error, TrustError):
                return Event.FAIL
        except TimeoutError:
            self._blame("deadline", f"{state}: its deadline passed; given up")
        except Exception as error:
            _logger.exception("update step failed for a reason nobody foresaw", extra={"state": state})
            self._blame("internal", f"{state}: {type(error).__name__}: {error}")
        if state is State.RESOLVING and self._ledger.record.reason_key in RETRIED:
            return Event.NOT_NOW
        return Event.FAIL

    async def _enter(self, state: State) -> None:
        """Persists `state`. Too many writes since idle are a loop: the state's row says where that leads."""
        record = self._ledger.record
        before, wanted, writes = record.state, state, record.writes + 1
        state = bounded(before, wanted, writes)
        if state is not wanted:
            record = record.blamed("loop", f"the update changed its state {writes} times and did not end")
        record = msgspec.structs.replace(record, state=state, writes=0 if state is State.IDLE else writes)
        if state is State.REVERTING:
            record = msgspec.structs.replace(record, reverted=True)
            record = record.blamed("interrupted", "the agent ended while the new modules took over")
        record, last = self._conclude(record)
        known = self._ledger.last
        await self._ledger.enter(record, last)
        if last is not None and _gist(last) != _gist(known):  # the same again, after a restart or a poll, is no news
            self._tell(*_outcome(last, record))
        if not {before, state} <= {State.IDLE, State.RESOLVING}:
            values = {"state": state, "version": record.about_version, "key": record.reason_key}
            _logger.info("update state", extra=values)
            self._changed()

    def _conclude(self, record: Record) -> tuple[Record, UpdateReport | None]:
        """The final word about an update, in the write that says so; none while another attempt is to follow."""
        if record.state not in (State.COMMITTED, State.REJECTED, State.FAILED):
            return record, None
        may_retry = record.reason_key in RETRIED and not record.reverted
        if record.state is State.FAILED and may_retry and record.attempt < self._limits.max_attempts:
            self._bell.retry_later(record.attempt)
            return record, None
        if self._resolver.look_again:
            self._bell.due_s = 0.0
        elif not record.refused:
            self._bell.poll_later()
        record = msgspec.structs.replace(record, ended=True)
        return record, self._report(record, State.REVERTING if record.reverted else record.state)

    async def _fetch(self) -> Event:
        """The download, unless the hub wants something newer meanwhile: what has arrived stays in staging."""
        known = self._ledger.record.director_version
        fetch = self._steps.fetch(self._target, self._held, self._changed)
        deadline = run_out(row(State.FETCHING).deadline_s, self._may_arrive)
        try:
            if await finished(fetch, self._bell.newer(known), deadline):
                return Event.OK
        except FetchError as error:
            if error.key == "offline":
                return self._leave()
            if error.key == "stalled" and self._steps.arrived_bytes:
                self._ledger.believe(attempt=1)  # tries that came nearer are not counted
            raise
        if not self._bell.news(known) and not self._steps.arrived_bytes:
            raise TimeoutError
        return self._leave()  # also a large file over a slow link: it goes on after a look at what is wanted

    def _may_arrive(self) -> bool:
        return self._bell.reachable and not self._steps.waiting

    async def _while_wanted(self, work: Coroutine[Any, Any, None]) -> Event:
        """`work`, unless the hub no longer wants what it is for: then it is cancelled, and left without blame."""
        if await finished(work, self._resolver.withdrawn()):
            return Event.OK
        await self._steps.discard()
        return self._leave()

    def _leave(self) -> Event:
        """For what is wanted instead, as soon as the hub can be asked."""
        self._bell.due_s = 0.0
        return Event.LATER

    async def _watch(self) -> None:
        """Raises UpdateError."""
        work = self._steps.watch(self._target, self._held, self._ledger.record.before)
        if await self._while_wanted(work) is Event.LATER:
            raise UpdateError("the hub wants another module before this one was through probation", "superseded")

    async def _activate(self) -> None:
        self._ledger.believe(before=await self._steps.activate(self._target, self._held))

    async def _commit(self) -> None:
        await self._ledger.commit(all_verified(self._target))
        await self._steps.commit(self._ledger.current)
        await self._steps.clean(self._ledger.current, self._ledger.previous, all_staging=True)

    async def _revert(self) -> None:
        await self._steps.revert(self._ledger.current)

    async def _clean(self) -> None:
        await self._steps.discard()
        await self._steps.clean(self._ledger.current, self._ledger.previous, all_staging=self._ledger.record.ended)

    @property
    def _target(self) -> ModuleSet:
        return self._ledger.record.target

    @property
    def _held(self) -> ModuleSet:
        return self._steps.whole(self._ledger.current)

    def _blame(self, key: str, text: str) -> None:
        _logger.warning("update step failed", extra={"state": self._ledger.record.state, "key": key, "why": text})
        self._ledger.believe(reason_key="", reason="")
        self._ledger.record = self._ledger.record.blamed(key, text)

    def _report(self, record: Record, state: State) -> UpdateReport:
        return UpdateReport(
            state=state.value,
            director_version=record.about_version,
            deployments=record.deployments,
            attempt=record.attempt,
            reason_key=record.reason_key,
            reason=record.reason or (self._steps.waiting if state is State.FETCHING else ""),
            done_bytes=self._steps.done_bytes,
            total_bytes=self._steps.total_bytes,
        )

    def _deadline_s(self, state: State) -> float | None:
        if state is State.TRYING:
            return self._steps.trial_deadline_s(self._target, self._held)
        if state is State.FETCHING:
            return None  # not all of its time counts, see _fetch
        if state is State.PROBATION:
            return self._steps.probation_deadline_s(self._target, self._held)
        return row(state).deadline_s or None

    def _crash(self, state: State, moment: str) -> None:
        if self._crash_at == f"{state}:{moment}":
            os.kill(os.getpid(), signal.SIGKILL)


_LEVELS: dict[str, Level] = {"committed": "info", "failed": "warning"}


def _gist(report: UpdateReport) -> tuple[str, int, str]:
    return report.state, report.director_version, report.reason_key


def _outcome(last: UpdateReport, record: Record) -> tuple[Level, str, str, str]:
    """How an update ended, in words, with the modules that it was about."""
    word = "reverted" if record.reverted else last.state
    modules = ", ".join(f"{module.name} {module.version}" for module in record.target.modules) or "no module"
    text = f"director version {last.director_version} ({modules})"
    if last.reason_key:
        text += f": {last.reason_key}: {last.reason}"
    return _LEVELS.get(word, "error"), f"update-{word}", text, ""
