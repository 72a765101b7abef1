"""The kill matrix: an update cut, and met by a failing disk, at every operation on its disk and in every state.

Run by `make soak ARGS=tests/soak/test_kill_matrix.py`; about 45 minutes on two free cores. MOORING_CUT_SECONDS ends it
sooner: the cuts come in an order by chance, so that a part of them is of every kind. What is wrong is written, cut by
cut, to the file that MOORING_CUT_LOG names. The last line is the result, as of a benchmark.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from benchmarks.common import report
from faults.campaign import metrics, run, whole
from faults.cuts import Result

PARALLEL = 2
SECONDS = float(os.environ.get("MOORING_CUT_SECONDS", "7200"))
SEED = int(os.environ.get("MOORING_CUT_SEED", "4"))


@pytest.mark.soak
@pytest.mark.timeout(SECONDS + 600)
async def test_no_cut_bricks_a_device(
    tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path_factory.mktemp("k")  # short, because sockets of endpoints lie below it
    log = Path(os.environ.get("MOORING_CUT_LOG") or folder / "cuts.log")

    def note(result: Result) -> None:
        problems = "".join(f"\n    {problem}: {text}" for problem, text in result.problems)
        with log.open("a") as file:
            file.write(f"{result.seconds:.1f} s  {result.name}  [{result.where}]{problems}\n")

    plan_until = time.monotonic() + SECONDS
    results = await run(folder, lambda count: whole(count, SEED), PARALLEL, plan_until, note)
    found = metrics(results)
    with capsys.disabled():
        report("kill_matrix", found)
    assert [result for result in results if result.problems] == [], log
    assert found["cuts"] >= 1
