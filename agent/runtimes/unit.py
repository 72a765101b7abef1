"""One module's life: a worker that serves, is asked how it does, and is started again when it ends.

Back-off between starts grows with full jitter to a ceiling and never gives up: a module that fails is reported as
failed and still tried. Made by `agent.runtimes.keeper`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import random
import time
from collections.abc import Callable

import msgspec

from agent.backoff import longest_s
from agent.config import ServingSettings
from agent.errors import AgentError, WorkerError
from agent.installed import Installed
from agent.news import Level, Tell, nobody
from agent.runtimes.evidence import Crash, Crashes, Quarantine
from agent.runtimes.heat import Warmth, burden
from agent.runtimes.past import Before, Past
from agent.runtimes.priority import restore, slow
from agent.runtimes.process import ProcessRuntime
from agent.sandbox.ending import in_words
from agent.sandbox.host import WorkerEnded, WorkerProcess
from agent.sandbox.protocol import AskedDone, Ready, Stats
from modules.commands import AskSamples
from modules.messages import ModuleState
from modules.sources import MAX_SOURCES

STEADY_S = 60.0  # serving this long, a worker's earlier failures are forgiven
MAX_SOURCE_WORDS = 200
FAILED_AFTER = 5  # failures in a row, from which the report says failed instead of restarting

MAX_REASONS = 16
QUARANTINE_LOOK_S = 2.0  # how soon it is noticed that somebody has ended a quarantine
# Ends of a worker that are its module's doing. A module that does not load says so, and is tried for ever: its disk or
# its accelerator may come back.
_CRASHES = frozenset({"worker-exited", "worker-timeout", "out-of-memory"})

_logger = logging.getLogger(__name__)


def nothing() -> None:
    """For rooms where nobody can fetch a module again."""


class Unit:
    """A module and its worker. `changed` is called on every change of `state`, `tell` hears of workers that ended,
    `damaged` is called when the module's files had to be removed.
    """

    def __init__(
        self,
        module: Installed,
        runtime: ProcessRuntime,
        settings: ServingSettings,
        changed: Callable[[], None],
        tell: Tell = nobody,
        damaged: Callable[[], None] = nothing,
        warmth: Warmth = Warmth.COOL,
    ) -> None:
        self.module = module
        self.state: ModuleState = "starting"
        self.restarts = 0
        self.stats = Stats()
        self.ready: Ready | None = None
        self.failure: AgentError | None = None
        self._runtime = runtime
        self._settings = settings
        self._changed = changed
        self._tell = tell
        self._damaged = damaged
        self._worker: WorkerProcess | None = None
        self._task: asyncio.Task[None] | None = None
        self._past = Past()
        self._failures = 0  # in a row
        self._warmth = warmth
        self._crashes = Crashes(settings.quarantine_after, settings.quarantine_window_s)
        self._since = math.inf  # when the worker began to serve

    def begin(self, worker: WorkerProcess | None = None) -> None:
        """Keeps `worker`, which serves already, running; or starts one first."""
        if worker is not None:
            self._take(worker)
        self._task = asyncio.create_task(self._keep(), name=f"module-{self.module.key}")

    async def adopt(self, module: Installed) -> None:
        """The same files under new wishes: the worker goes on, with the new sampling policy."""
        before, self.module = self.module, module
        if self._worker is not None and module.candidate:
            with contextlib.suppress(AgentError):
                await self._runtime.changed(self._worker, module)
                await self._bear(self._worker)
        if module.sampling != before.sampling and self._worker is not None:
            # A worker that has just ended starts again with the new one; a damaged slot is the next update's affair,
            # and must not keep this one from being written down.
            with contextlib.suppress(AgentError):
                await self._worker.set_policy(self._runtime.policy(module))

    async def ask_samples(self, id_: str, asked: AskSamples) -> AskedDone:
        """Rows of the worker's ring. Raises WorkerError."""
        if self._worker is None:
            raise WorkerError(f"module {self.module.name}: no worker runs now", "not-serving")
        return await self._worker.ask_samples(id_, asked)

    async def poll(self) -> None:
        """Fresh `stats`. A worker that does not answer in time is killed, and started again like any other."""
        if self._worker is not None and self.state == "serving":
            with contextlib.suppress(WorkerError):
                self._note(await self._worker.ping(self._settings.ping_timeout_s))

    async def endure(self, warmth: Warmth) -> None:
        """How warm the device is, which its module bears from now on, also in workers that are started later."""
        self._warmth = warmth
        if self._worker is not None and self.state == "serving":
            with contextlib.suppress(WorkerError):
                await self._bear(self._worker)

    async def _bear(self, worker: WorkerProcess) -> None:
        """Raises WorkerError."""
        bears = burden(self._warmth, worker.resources.priority, self.module.candidate)
        if self.module.candidate:
            self._runtime.rest(worker, bears.requests)
        await (slow if bears.slow else restore)(worker)
        await worker.hold(bears.requests, bears.sources)

    def record(self) -> Before:
        """How the worker has done, by `stats`."""
        return self._past.before(self.module.version, self.stats)

    async def end(self, drain_s: float) -> None:
        """Accept no more, finish what is under way, exit. Cancelled, it kills; no worker is left in any case."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        worker, self._worker = self._worker, None
        if worker is None:
            return
        try:
            drained = await worker.drain(drain_s)
            if drained.cut:
                _logger.warning("connections cut at the drain deadline", extra={"unit": self.module.name})
        except WorkerError as error:  # it ended by itself just now, or does not end as it should
            self.failure = error
            self._report_failure(loaded=True)
        finally:
            await worker.stop(drain_s)

    async def _keep(self) -> None:
        if self._worker is None:
            await self._sit_out()
        while True:
            self._since = math.inf
            try:
                await self._serve()
            except AgentError as error:
                self.failure = error
            except Exception as error:  # nobody else starts the module again
                _logger.exception("module stopped for a reason nobody foresaw", extra={"unit": self.module.name})
                self.failure = AgentError(f"{type(error).__name__}: {error}", "internal")
            self._failures = 1 if time.monotonic() - self._since > STEADY_S else self._failures + 1
            self.restarts += 1
            delay_s = self._delay_s()
            _logger.warning(
                "module stopped, starting it again",
                extra={"unit": self.module.name, "why": str(self.failure), "delay_s": round(delay_s, 2)},
            )
            loaded = self._worker is not None
            self._set("failed" if self._failures >= FAILED_AFTER else "restarting")
            try:
                await self._discard()
            finally:  # also when somebody ends the unit just now
                self._report_failure(loaded)
            if self._failures == FAILED_AFTER:
                await self._recheck()
            if self._note_crash():
                await self._sit_out()
            else:
                await asyncio.sleep(delay_s)

    def _note_crash(self) -> bool:
        """Keeps what is known of the end, and says whether it was one too many: then the module is left alone."""
        error, module, settings = self.failure, self.module, self._settings
        if error is None or error.key not in _CRASHES:
            return False
        crash = _crash(error, module, self.stats)
        self._runtime.evidence.note(module.key, crash)
        if not self._crashes.note(time.monotonic()):
            return False
        self._runtime.evidence.hold(
            module.key, Quarantine(module.manifest_sha256, time.time() + settings.quarantine_s, str(crash))
        )
        text = (
            f"{settings.quarantine_after} crashes in {settings.quarantine_window_s:g} s: left alone for "
            f"{settings.quarantine_s / 3600:g} h, until another version, or mooring-agent retry {module.key}; {crash}"
        )
        self._say("error", "module-quarantined", text)
        return True

    async def _sit_out(self) -> None:
        """Waits while the module is in quarantine: until its time is over, or somebody ends it."""
        evidence, module = self._runtime.evidence, self.module
        while held := evidence.held(module.key, module.manifest_sha256, time.time(), self._settings.quarantine_s):
            if self.state != "failed" or self.failure is None:
                self.failure = self.failure or WorkerError(f"in quarantine: {held.why}", "module-quarantined")
                self._set("failed")
            await asyncio.sleep(min(QUARANTINE_LOOK_S, max(0.05, held.until - time.time())))
        evidence.release(module.key)

    async def _recheck(self) -> None:
        """What never comes up may lie on a bad disk: then it is fetched again."""
        wrong = await self._runtime.recheck(self.module)
        if wrong:
            self._say("error", "slot-damaged", f"it is fetched again: {wrong}")
            self._damaged()

    async def _serve(self) -> None:
        """Raises the AgentError that ended the worker."""
        if self._worker is None:
            worker = await self._runtime.load(self.module)
            self._take(worker)
            await self._runtime.serve(worker)
        self._since = time.monotonic()
        self._set("serving")
        assert self._worker is not None  # noqa: S101 - just taken
        if self._warmth is not Warmth.COOL:
            await self._bear(self._worker)
        await self._watch(self._worker)

    async def _watch(self, worker: WorkerProcess) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._settings.ping_every_s):
                    await worker.exited.wait()
            # Of a worker that is gone, this says how it went.
            self._note(await worker.ping(self._settings.ping_timeout_s))

    def _report_failure(self, loaded: bool) -> None:
        words = self._runtime.last_words(self.module.key)
        text = f"{self.failure}; it said last: {words}" if words else str(self.failure)
        if self._failures == FAILED_AFTER:
            self._say("error", "module-failed", f"{FAILED_AFTER} failures in a row: {text}")
        else:
            self._say("warning", "worker-crashed" if loaded else "worker-not-started", text)

    def _say(self, level: Level, key: str, text: str) -> None:
        """What befalls a candidate is told apart, and is no more than a warning: nobody's answers depend on it."""
        if self.module.candidate:
            level, key = "warning", f"candidate-{key}"
            text = f"version {self.module.version}, beside the one that serves: {text}"
        self._tell(level, key, text, self.module.name)

    def _take(self, worker: WorkerProcess) -> None:
        self._worker = worker
        self.ready = worker.ready
        self.stats = Stats()
        self._past = Past()

    @property
    def sources(self) -> tuple[str, ...]:
        """How the worker's sources do; a worker's words, and so as few as we like."""
        return tuple(f"{one.kind}: {one.state}"[:MAX_SOURCE_WORDS] for one in self.stats.sources[:MAX_SOURCES])

    @property
    def samples_dropped(self) -> dict[str, int]:
        """By reason, since the worker started."""
        counts = dict(sorted(self.stats.dropped_why.items())[:MAX_REASONS])
        return counts | ({"thinned": self.stats.thinned} if self.stats.thinned else {})

    def _note(self, stats: Stats) -> None:
        before, self.stats = self.sources, stats
        self._past.note(stats)
        if self.sources != before:
            self._changed()

    async def _discard(self) -> None:
        worker, self._worker = self._worker, None
        if worker is not None:
            await worker.kill()

    def _set(self, state: ModuleState) -> None:
        self.state = state
        self._changed()

    def _delay_s(self) -> float:
        settings = self._settings
        return random.uniform(0.0, longest_s(settings.restart_first_s, settings.restart_ceiling_s, self._failures))


def _crash(error: AgentError, module: Installed, stats: Stats) -> Crash:
    crash = Crash(time.time(), module.version, module.manifest_sha256, error.key, str(error), requests=stats.requests)
    if not isinstance(error, WorkerEnded):
        return crash
    code = error.exit_code
    return msgspec.structs.replace(
        crash,
        exit_status=code if code is not None and code >= 0 else None,
        signal=in_words(code) if code is not None and code < 0 else "",
        memory=error.memory,
        request=error.request,
        lines=error.lines,
    )
