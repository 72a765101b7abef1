"""One cut or fault in the middle of an update, and what must hold afterwards.

A cut is a real SIGKILL of a real agent, at an operation on its disk or in a state of its update. Its folder is then
left as it is (the process died) or as a power cut could have left it, several ways; from each the agent must come
back, serve, end its update and send what it had promised to keep. A fault is a disk that refuses for a while.
"""

from __future__ import annotations

import asyncio
import copy
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from agent.update.engine import RETRIED
from faults.around import Items, outbox_in
from faults.checks import Found, Problem, afterwards, asking
from faults.modules import NAMES
from faults.replay import Disk, Loss
from faults.rig import DEADLINE_S, NEW, Rig
from faults.shim import Fault, Kind, Mode, Operation, operations
from support.waiting import until, until_async

FAULT_LASTS_S = 0.5
NO_FAULT = Fault()
CUT_WHILE_TAKING_OVER = frozenset({"interrupted"})


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
    async with asking(rig):
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
    problems: Found = []
    try:
        problems += await _while_it_lasts(rig, cut)
    finally:
        rig.switch.unlink(missing_ok=True)
    await until(lambda: rig.exit_code is not None or len(rig.addresses()) == len(NAMES), "a start", DEADLINE_S)
    if rig.exit_code is not None:
        await rig.start()  # as systemd would
    hit = next((one for one in operations(rig.journal) if one.number >= cut.fault.number), None)
    if hit is None:
        await rig.kill()
        return []
    problems += await afterwards(rig, held, RETRIED | CUT_WHILE_TAKING_OVER)
    await rig.kill()
    return [Result(cut.words, _text(hit), tuple(problems), loop.time() - began)]


async def _while_it_lasts(rig: Rig, cut: Cut) -> Found:
    """The device serves meanwhile, whatever becomes of the update.

    Not asked of a disk that cannot be written to at all, or fails, while an agent starts on it: that has to wait.
    """

    def met() -> bool:
        over = rig.at_rest(NEW) or rig.exit_code is not None
        return over or any(one.number >= cut.fault.number for one in operations(rig.journal))

    async def served_or_gone() -> bool:
        return rig.exit_code is not None or all((await rig.ask_all()).values())

    async with asking(rig):
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


async def recover(rig: Rig, promised: Items) -> Found:
    """Starts the agent on what is left, without faults, and says what does not hold."""
    held = rig.waiting()
    rig.log.write_text("")
    await rig.start()
    problems = await afterwards(rig, promised | held, CUT_WHILE_TAKING_OVER)
    await rig.kill()
    await rig.forget()
    return problems


def _promised(disk: Disk, done: Sequence[Operation]) -> Items:
    """What the outbox held when the store was last synced: durable, whatever a cut does."""
    last = max((i for i, one in enumerate(done) if one.kind is Kind.SYNC and "sqlite3" in one.path), default=-1)
    disk.apply(done[: last + 1])
    with tempfile.TemporaryDirectory() as folder:
        disk.write(Path(folder, "disk"), None)
        return outbox_in(Path(folder, "disk"))


def _differences(disk: Disk, root: Path) -> Found:
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
