"""A few cuts of every kind in the middle of real updates, other ones than yesterday's only when the seed is changed.

All of them are run by `make soak ARGS=tests/soak/test_kill_matrix.py`.
"""

from __future__ import annotations

import os

import pytest

from faults.campaign import metrics, run, sample

SEED = int(os.environ.get("MOORING_CUT_SEED", "4"))


@pytest.mark.timeout(600)
async def test_no_cut_and_no_failing_disk_breaks_a_device_that_is_being_updated(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("k")  # short, because sockets of endpoints lie below it
    results = await run(folder, lambda count: sample(count, SEED), parallel=2)
    failed = [result for result in results if result.problems]
    assert failed == []
    assert metrics(results)["cuts"] >= 8
