"""Windows under a promise of privacy: what leaves, and what does not, also while the promise changes."""

import sys
from pathlib import Path

import numpy as np
import pytest

from agent.endpoint.counters import Counters
from agent.sandbox.protocol import Drain, Drained, SetPolicy
from agent.watching.windows import Subject, Windows
from modules.manifest import Lineage, Manifest
from modules.privacy import Privacy
from modules.runtime import Runtime
from modules.sampling import SamplingPolicy
from modules.tensors import TensorSpec
from modules.windows import Numeric, ReferenceProfile, Window, unpack_counts, unpack_signed
from worker.driver import WorkerDriver, binary_input

PRIVACY = Privacy(epsilon_per_day=8.0)
PRIVATE = SamplingPolicy(rate=0.0, window_s=3600.0, privacy=PRIVACY)
PLAIN = SamplingPolicy(rate=0.0, window_s=3600.0)
REFERENCE = ReferenceProfile(100, (Numeric("x", "x", (0.0, 1.0, 2.0), (50, 50, 0, 0, 0), 1.0, 0.5),))
ROWS = 1000


class Worker:
    """A worker's windows, and what it has sent of them."""

    def __init__(self, policy: SamplingPolicy, reference: ReferenceProfile | None = REFERENCE) -> None:
        manifest = Manifest(
            "m", 1, "edge", Lineage("m", 1), (TensorSpec("x", "FP32", (-1, 1)),), (), (), Runtime(model="")
        )
        self.sent: list[Window] = []
        self.failures: list[Exception] = []
        self.now = 3600.0
        self.windows = Windows(
            Subject(manifest, "a" * 64, reference, "b" * 64), policy, Counters(), lambda: self.now, lambda: self.now,
            self._send, self.failures.append,
        )  # fmt: skip

    def _send(self, window: Window) -> bool:
        self.sent.append(window)
        return True

    def count(self, rows: int = ROWS) -> None:
        self.windows.add(rows, {"x": np.full((rows, 1), 0.5, np.float32)}, {})

    async def closed(self) -> Window:
        await self.windows.stop()
        (window,) = self.sent
        return window


async def test_a_private_window_has_noise_in_every_cell_and_nothing_without() -> None:
    worker = Worker(PRIVATE)
    worker.count()
    window = await worker.closed()
    cells = np.array(unpack_signed(window.counts, 5))
    deviation = np.sqrt(window.noise)
    assert (np.abs(cells - [ROWS, 0, 0, 0, 0]) < 8 * deviation).all()
    assert len(set(cells.tolist()) - {0, ROWS}) >= 4, "cells that were empty or full carry noise as well"
    assert (window.moments, window.joint, window.still) == (b"", b"", b"")
    assert window.rho == pytest.approx(PRIVACY.rho_per_window(3600.0), rel=1e-6)
    assert window.rows == ROWS


async def test_without_a_promise_nothing_changes() -> None:
    worker = Worker(PLAIN)
    worker.count()
    window = await worker.closed()
    assert unpack_counts(window.counts, 5) == [ROWS, 0, 0, 0, 0]
    assert (window.rho, window.noise) == (0.0, 0.0)


@pytest.mark.parametrize(("before", "after"), [(PRIVATE, PLAIN), (PLAIN, PRIVATE)])
async def test_rows_leave_under_the_promise_under_which_they_came(
    before: SamplingPolicy, after: SamplingPolicy
) -> None:
    worker = Worker(before)
    worker.count()
    worker.windows.set_policy(after)
    worker.count()
    await worker.windows.stop()
    assert [window.rho > 0 for window in worker.sent] == [before is PRIVATE, after is PRIVATE]


async def test_a_module_without_a_reference_spends_its_share_and_tells_rows_only() -> None:
    worker = Worker(PRIVATE, None)
    worker.count()
    window = await worker.closed()
    assert (window.rows, window.noise) == (ROWS, 0.0)
    assert window.rho > 0


async def test_where_noise_cannot_be_had_no_window_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opendp.measurements", None)  # as if it were not installed
    worker = Worker(PRIVATE)
    worker.count()
    await worker.windows.stop()
    assert worker.sent == []
    assert "mooring[privacy]" in str(worker.failures[0])


@pytest.mark.parametrize("later", [False, True])
async def test_a_confined_worker_can_make_its_windows_private(
    tmp_path: Path, digits_module: Manifest, reference: ReferenceProfile, later: bool
) -> None:
    """The library is loaded when the first window is closed, or when the policy changes: the cage must let it."""
    async with WorkerDriver(tmp_path / "slot", digits_module, PLAIN if later else PRIVATE, confine=True) as worker:
        await worker.serve()
        if later:
            worker.send(SetPolicy(PRIVATE))
        row = np.zeros((1, 64), np.float32)
        assert (await worker.infer({"inputs": [binary_input(row)]}, row.tobytes())).status == 200
        await worker.order(Drain(1.0), Drained)
        window = worker.windows[-1]
        assert (window.rho > 0, window.noise > 0, window.rows) == (True, True, 1)
        assert np.std(unpack_signed(window.counts, reference.cells)) > 1
