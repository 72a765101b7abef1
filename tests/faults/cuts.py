"""One cut or fault in the middle of an update, and what must hold afterwards.

A cut is a real SIGKILL of a real agent, at an operation on its disk or in a state of its update. Its folder is then
left as it is (the process died) or as a power cut could have left it, several ways; from each the agent must come
back, serve, end its update and send what it had promised to keep. A fault is a disk that refuses for a while.
"""

from __future__ import annotations

import asyncio
import copy
import enum
import tempfile
from collections.abc import AsyncIterator, Container, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from agent.update.engine import RETRIED
from faults.replay import Disk, Loss
from faults.rig import DEADLINE_S, NEW, OLD, PAUSE_S, Items, Rig, outbox_in
from faults.shim import Fault, Kind, Mode, Operation, operations
from modules.messages import decode_report
from support.waiting import until, until_async

FAULT_LASTS_S = 0.5
NO_FAULT = Fault()
CUT_WHILE_TAKING_OVER = frozenset({"interrupted"})
ENDED = ("failed", "reverting", "rejected")


class Problem(enum.StrEnum):
    """What must not happen: no module serves; a set of two versions; the update does not end; a sample is lost, or
    arrives twice; a version that was verified, or a report's number, is lower than before; a cut makes an update fail
    that could have gone on; something stays on the disk for ever; nobody answers while a disk is full; and, of the
    layer itself, the replay is not what the disk was.
    """

    BRICK = "bricks"
    HALF = "half_installed"
    STUCK = "stuck"
    LOST = "lost"
    DOUBLED = "doubled"
    FORGOT = "forgot"
    FAILED = "failed"
    GARBAGE = "garbage"
    OUTAGE = "outages"
    REPLAY = "replay"


@dataclass(frozen=True)
class Cut:
    """`losses`: what each power cut at this point takes with it; None is the death of the process alone."""

    fault: Fault = NO_FAULT
    crash_at: str = ""
    losses: tuple[Loss | None, ...] = (None,)
    seed: int = 0

    @property
    def words(self) -> str:
        return self.crash_at or f"{self.fault.mode} at {self.fault.number}{' once' if self.fault.once else ''}"


@dataclass(frozen=True)
class Result:
    """How one cut ended. `where` is the operation that it hit."""

    name: str
    where: str
    problems: tuple[tuple[Problem, str], ...] = ()
    seconds: float = 0.0


async def perform(rig: Rig, cut: Cut) -> list[Result]:
    """One result for each loss; none where the update was over before the cut."""
    await rig.begin()
    return await (_fault(rig, cut) if cut.fault.mode in _LASTING else _kill(rig, cut))


_LASTING = {Mode.FULL, Mode.READ_ONLY, Mode.BROKEN, Mode.SHORT}


async def _kill(rig: Rig, cut: Cut) -> list[Result]:
    loop = asyncio.get_running_loop()
    disk, synced = Disk(rig.paths.root), Disk(rig.paths.root)
    await rig.start(cut.fault, cut.crash_at)
    async with _asking(rig):
        await until(lambda: rig.exit_code is not None or rig.at_rest(NEW), "the cut", DEADLINE_S)
    if rig.exit_code is None:
        await rig.kill()
        return []
    await rig.forget()
    taken, reports = copy.deepcopy(rig.hub.taken), list(rig.hub.reports)
    done = list(operations(rig.journal))
    promised = _promised(synced, done)
    disk.apply(done)
    results = []
    for loss in cut.losses:
        began = loop.time()
        problems = []
        if loss is None:
            problems += _differences(disk, rig.paths.root)
        else:
            rig.wipe()
            disk.write(rig.paths.root, loss, cut.seed)
        rig.hub.taken, rig.hub.reports = copy.deepcopy(taken), list(reports)
        problems += [(Problem.FORGOT, name) for name in rig.forgotten()]
        problems += await recover(rig, promised)
        name = f"{cut.words}, {loss or 'process death'}"
        results.append(Result(name, _where(done), tuple(problems), loop.time() - began))
    return results


async def _fault(rig: Rig, cut: Cut) -> list[Result]:
    loop = asyncio.get_running_loop()
    began = loop.time()
    held = rig.waiting()
    rig.switch.touch()
    fault = Fault(cut.fault.mode, cut.fault.number, cut.fault.once, rig.switch)
    await rig.start(fault)
    problems: list[tuple[Problem, str]] = []
    try:
        problems += await _while_it_lasts(rig, cut)
    finally:
        rig.switch.unlink(missing_ok=True)
    if rig.exit_code is not None:
        await rig.start()  # as systemd would
    hit = next((one for one in operations(rig.journal) if one.number >= cut.fault.number), None)
    if hit is None:
        await rig.kill()
        return []
    problems += await _afterwards(rig, held, RETRIED | CUT_WHILE_TAKING_OVER)
    await rig.kill()
    return [Result(cut.words, _text(hit), tuple(problems), loop.time() - began)]


async def _while_it_lasts(rig: Rig, cut: Cut) -> list[tuple[Problem, str]]:
    """The device serves meanwhile, whatever becomes of the update.

    Not asked of a disk that cannot be written to at all, or fails, while an agent starts on it: that has to wait.
    """

    def met() -> bool:
        over = rig.at_rest(NEW) or rig.exit_code is not None
        return over or any(one.number >= cut.fault.number for one in operations(rig.journal))

    async def served_or_gone() -> bool:
        return rig.exit_code is not None or all((await rig.ask_all()).values())

    async with _asking(rig):
        await until(met, "the fault to be met", DEADLINE_S)
        must_serve = cut.fault.mode in (Mode.FULL, Mode.SHORT) or all((await rig.ask_all()).values())
        try:
            await until_async(served_or_gone, "an answer", DEADLINE_S if must_serve else FAULT_LASTS_S)
            await asyncio.sleep(FAULT_LASTS_S)
        except TimeoutError:
            pass
        answers = await rig.ask_all()
    if must_serve and (rig.exit_code is not None or not all(answers.values())):
        return [(Problem.OUTAGE, f"answers {answers}, exit code {rig.exit_code}\n{rig.tail()}")]
    return []


async def recover(rig: Rig, promised: Items) -> list[tuple[Problem, str]]:
    """Starts the agent on what is left, without faults, and says what does not hold."""
    held = rig.waiting()
    rig.log.write_text("")
    await rig.start()
    problems = await _afterwards(rig, promised | held, CUT_WHILE_TAKING_OVER)
    await rig.kill()
    await rig.forget()
    return problems


async def _afterwards(rig: Rig, owed: Items, excused: Container[str]) -> list[tuple[Problem, str]]:
    problems: list[tuple[Problem, str]] = []
    try:
        async with _asking(rig):
            await rig.serves()
    except (TimeoutError, ValueError) as error:
        return [(Problem.BRICK, f"{error}; exit code {rig.exit_code}\n{rig.tail()}")]
    try:
        async with _asking(rig):
            version, why = await _update_over(rig)
    except (TimeoutError, ValueError) as error:
        return [(Problem.STUCK, f"{error}; exit code {rig.exit_code}, status {rig.status()}\n{rig.tail()}")]
    if why and why not in excused:
        problems.append((Problem.FAILED, f"{why}\n{rig.tail()}"))
    answers = await rig.ask_all()
    if set(answers.values()) != {version}:
        problems.append((Problem.HALF, f"says version {version}, answers are {answers}"))
    problems += await _samples(rig, owed)
    problems += await _garbage(rig)
    counters = [decode_report(report.body).counter for report in rig.hub.reports]
    if counters != sorted(set(counters)):
        problems.append((Problem.FORGOT, f"reports have the numbers {counters}"))
    return problems


async def _update_over(rig: Rig) -> tuple[int, str]:
    """Its end; an update that ended without success is wanted once more, and then has to succeed. The version that
    serves, and why the update had failed.
    """
    first = rig.side.world.director.targets.signed.version

    def failed() -> str:
        status = rig.status()
        last = status.report.last if status else None
        ended = last is not None and last.state in ENDED and last.director_version >= first and rig.at_rest(OLD)
        return last.reason_key if last is not None and ended else ""

    await until(
        lambda: rig.at_rest(NEW) or bool(failed()) or rig.exit_code is not None, "the update to end", DEADLINE_S
    )
    why = failed()
    if why:
        await rig.side.publish()
        await until(lambda: rig.at_rest(NEW) or rig.exit_code is not None, "the update to succeed", DEADLINE_S)
    if rig.exit_code is not None:
        raise ValueError(f"the agent ended with {rig.exit_code}")
    return NEW, why


async def _garbage(rig: Rig) -> list[tuple[Problem, str]]:
    """Files that an uncut update does not leave; some go only when the agent next looks what is wanted."""
    if rig.files() <= rig.usual:
        return []
    version = await rig.side.publish()

    def looked() -> bool:
        status = rig.status()
        return status is not None and status.report.director_version >= version

    await until(looked, "another look", DEADLINE_S)
    return [(Problem.GARBAGE, str(path)) for path in sorted(rig.files() - rig.usual)]


async def _samples(rig: Rig, owed: Items) -> list[tuple[Problem, str]]:
    """What was durable at the cut, and what the agent has answered since, arrives at the hub once."""
    problems = []
    answered = frozenset(rig.answered)
    try:
        await until(lambda: owed <= set(rig.arrived()) and answered <= set(rig.seen()), "samples", DEADLINE_S)
    except TimeoutError:
        missing = f"{len(owed - set(rig.arrived()))} of {len(owed)}, {len(answered - set(rig.seen()))} since"
        problems.append((Problem.LOST, f"{missing}\n{rig.tail()}"))
    twice = len(rig.seen()) - len(set(rig.seen())) + len(rig.arrived()) - len(set(rig.arrived()))
    if twice:
        problems.append((Problem.DOUBLED, f"{twice} of {len(rig.arrived())}"))
    return problems


def _promised(disk: Disk, done: Sequence[Operation]) -> Items:
    """What the outbox held when the store was last synced: durable, whatever a cut does."""
    last = max((i for i, one in enumerate(done) if one.kind is Kind.SYNC and "sqlite3" in one.path), default=-1)
    disk.apply(done[: last + 1])
    with tempfile.TemporaryDirectory() as folder:
        disk.write(Path(folder, "disk"), None)
        return outbox_in(Path(folder, "disk"))


def _differences(disk: Disk, root: Path) -> list[tuple[Problem, str]]:
    """The replay of everything is the disk, byte for byte."""
    with tempfile.TemporaryDirectory() as folder:
        disk.write(Path(folder, "disk"), None)
        ours, real = _contents(Path(folder, "disk")), _contents(root)
    wrong = sorted({str(path) for path in ours.keys() | real.keys() if ours.get(path) != real.get(path)})
    return [(Problem.REPLAY, ", ".join(wrong))] if wrong else []


def _contents(root: Path) -> dict[Path, bytes]:
    files = (path for path in root.rglob("*") if path.is_file() and not path.name.endswith("-shm"))
    return {path.relative_to(root): path.read_bytes() for path in files}


def _where(done: Sequence[Operation]) -> str:
    return _text(done[-1]) if done else "at the start"


def _text(one: Operation) -> str:
    return f"{one.number} {one.kind.name.lower()} {Path(one.path).parent.name}/{Path(one.path).name}"


@asynccontextmanager
async def _asking(rig: Rig) -> AsyncIterator[None]:
    """An application that uses the modules all the while, so that samples and windows arise."""

    async def ask() -> None:
        while True:
            await rig.ask_all()
            await asyncio.sleep(PAUSE_S)

    task = asyncio.create_task(ask(), name="application")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled() and task.exception() is not None:
            raise task.exception()  # type: ignore[misc]
