"""What must hold once an agent has been started again after a cut, or a disk has come back. Called by `faults.cuts`."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import AsyncIterator, Container
from contextlib import asynccontextmanager

from faults.around import Items
from faults.rig import DEADLINE_S, NEW, OLD, PAUSE_S, Rig
from modules.messages import decode_report
from support.waiting import until

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


Found = list[tuple[Problem, str]]


async def afterwards(rig: Rig, owed: Items, excused: Container[str]) -> Found:
    """What does not hold. `owed` must arrive; `excused` are reasons with which an update may fail at first."""
    problems: Found = []
    try:
        async with asking(rig):
            await rig.serves()
    except (TimeoutError, ValueError) as error:
        return [(Problem.BRICK, f"{error}; exit code {rig.exit_code}\n{rig.tail()}")]
    try:
        async with asking(rig):
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


async def _garbage(rig: Rig) -> Found:
    """Files that an uncut update does not leave, also after another look at what is wanted and another start: what a
    broken disk did not let it remove has to wait for that.
    """
    if rig.files() <= rig.usual:
        return []
    version = await rig.side.publish()

    def looked() -> bool:
        status = rig.status()
        return status is not None and status.report.director_version >= version

    await until(looked, "another look", DEADLINE_S)
    if not rig.files() <= rig.usual:
        await rig.kill()
        await rig.start()
        await rig.serves()
    return [(Problem.GARBAGE, str(path)) for path in sorted(rig.files() - rig.usual)]


async def _samples(rig: Rig, owed: Items) -> Found:
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


@asynccontextmanager
async def asking(rig: Rig) -> AsyncIterator[None]:
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
