"""Many cuts on a few rigs at once, and what came of them in numbers.

`whole` is every operation of an update, before and after, every state of the update, and every way in which a disk
fails; `sample` is some of each, by seed. Called by `make soak` and, for the sample, by `make test`.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

from faults.checks import Problem
from faults.cuts import Cut, Result, perform
from faults.replay import Loss
from faults.rig import Rig, rig
from faults.shim import Fault, Mode, build

STATES = ("resolving", "fetching", "verifying", "staging", "trying", "activating", "probation", "committed")
LOSSES = tuple(Loss)
FAULTS = (Mode.READ_ONLY, Mode.SHORT, Mode.BROKEN)


def whole(count: int, seed: int) -> list[Cut]:
    """At each of `count` operations: the process's death before it, power cuts before and after it, a disk that is full
    from it on, and one that fails in another way; once or for a while. In an order by chance, so that a run that is
    ended early has seen something of everything.
    """
    cuts = [Cut(crash_at=f"{state}:{moment}", losses=(None, *LOSSES)) for state in STATES for moment in _MOMENTS]
    for n in range(1, count + 1):
        cuts.append(Cut(Fault(Mode.KILL_BEFORE, n), losses=(None, _turn(n), _turn(n + 2)), seed=n))
        cuts.append(Cut(Fault(Mode.KILL_AFTER, n), losses=(_turn(n + 1), _turn(n + 3), _turn(n + 4)), seed=n))
        cuts.append(Cut(Fault(Mode.FULL, n, once=n % 5 == 0)))
        cuts.append(Cut(Fault(FAULTS[n % len(FAULTS)], n, once=n % 7 == 0)))
    random.Random(seed).shuffle(cuts)
    return cuts


def sample(count: int, seed: int) -> list[Cut]:
    """One cut of every kind, at operations by chance; two losses each."""
    chance = random.Random(seed)

    def somewhere() -> int:
        return chance.randint(1, count * 4 // 5)  # how many there are differs by what comes together in a commit

    kills = [
        Cut(Fault(mode, somewhere()), losses=losses, seed=seed)
        for mode, losses in (
            (Mode.KILL_BEFORE, (None, Loss.STRICT)),
            (Mode.KILL_AFTER, (Loss.NAMES, Loss.SOME)),
            (Mode.KILL_BEFORE, (Loss.DATA, Loss.TORN)),
        )
    ]
    state = Cut(crash_at=f"{chance.choice(STATES)}:{chance.choice(_MOMENTS)}", losses=(None, Loss.STRICT))
    faults = [Cut(Fault(mode, somewhere())) for mode in (Mode.FULL, *FAULTS)]
    return [*kills, state, *faults]


async def run(
    folder: Path,
    plan: Callable[[int], Sequence[Cut]],
    parallel: int,
    until_s: float = float("inf"),
    tell: Callable[[Result], None] = lambda result: None,
) -> list[Result]:
    """Every cut of the plan that can be begun by `until_s` of time.monotonic(), `parallel` at a time."""
    library = await asyncio.to_thread(build, folder)
    async with AsyncExitStack() as stack:
        rigs = [await stack.enter_async_context(rig(folder / f"rig-{i}", library)) for i in range(parallel)]
        left = iter(plan(rigs[0].operations))
        found = await asyncio.gather(*(_work(one, left, until_s, tell) for one in rigs))
    return [result for results in found for result in results]


def metrics(results: Sequence[Result]) -> dict[str, int]:
    """Cuts, and for each problem in how many of them it was met."""
    met = Counter(problem for result in results for problem in {problem for problem, _ in result.problems})
    return {"cuts": len(results), **{problem.value: met[problem] for problem in Problem}}


_MOMENTS = ("before", "after")


def _turn(n: int) -> Loss:
    return LOSSES[n % len(LOSSES)]


async def _work(one: Rig, cuts: Iterator[Cut], until_s: float, tell: Callable[[Result], None]) -> list[Result]:
    results: list[Result] = []
    for cut in cuts:
        if time.monotonic() > until_s:
            break
        for result in await perform(one, cut):
            results.append(result)
            tell(result)
    return results
