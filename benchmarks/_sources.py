"""What a prediction costs when a source inside the worker makes its input: no request, no socket.

The worker runs confined, with samples of 1 % and windows. Its source is a script's loop, which takes the time of many
items itself; the worker's watch works meanwhile and is in the time. Called by `benchmarks.serving`.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import msgspec
import numpy as np

from benchmarks._servers import Ours, requests
from benchmarks._slots import file_entry, model, rows, session, write_slot
from benchmarks.common import median, report
from modules.manifest import Manifest, Runtime
from modules.sources import Script

BLOCK_ROWS = 256  # of a source that has many small rows at once
FRAMES = 8  # different ones, over and over
DEADLINE_S = 120.0
# Each time that a file `turn` has another number, the loop has a turn of `items` and says how long it took.
_LOOP = """
import itertools, json, os, time
import numpy as np

HERE = os.path.dirname(os.path.abspath(__file__))

def loop(stop):
    blocks = np.load(os.path.join(HERE, "blocks.npy"))
    blocks.flags.writeable = False  # what nobody writes to need not be copied
    blocks = list(blocks)
    had = 0
    while not stop.wait(0.005):
        with open(os.path.join(HERE, "turn")) as file:
            turn, items = map(int, file.read().split() or (0, 0))
        if turn == had:
            continue
        had = turn
        cpu, began = time.process_time(), time.perf_counter()
        for block in itertools.islice(itertools.cycle(blocks), items):
            yield block
        yield blocks[0]  # the last one of the turn is done when this one is asked for
        took, cpu = time.perf_counter() - began, time.process_time() - cpu
        print(json.dumps({"turn": turn, "s": took / (items + 1), "cpu_s": cpu / (items + 1)}), flush=True)
"""


class SourceWorker(Ours):
    """A worker whose source takes turns when it is told."""

    def __init__(self, place: Path, name: str, raw: Any, blocks: Any) -> None:
        slot = place / "slot"
        manifest = write_slot(slot, name, raw)
        self._turn = slot / "turn"
        self._log = place / "said"
        self._turns = 0
        self._turn.write_text("0 0")
        super().__init__(place, _with_source(manifest, slot, blocks), slot)

    def turn(self, items: int) -> dict[str, float]:
        """Seconds per item, by the clock and of the processor."""
        self._turns += 1
        fresh = self._turn.with_name("turn.new")
        fresh.write_text(f"{self._turns} {items}")
        fresh.rename(self._turn)
        limit = time.monotonic() + DEADLINE_S
        while time.monotonic() < limit:
            for line in self._log.read_text().splitlines():
                if line.startswith("{") and (said := json.loads(line))["turn"] == self._turns:
                    return dict(said)
            assert self.process is not None
            assert self.process.poll() is None, self._log.read_text()[-2000:]
            time.sleep(0.01)
        raise TimeoutError(f"no turn within {DEADLINE_S:g} s: {self._log.read_text()[-2000:]}")

    def start(self) -> None:
        with self._log.open("wb") as self.printed:
            super().start()


def us_per_row_mlp(rounds: int = 5, blocks_each: int = 4000) -> dict[str, float]:
    """Microseconds per row of the MLP, amortised over blocks of rows; everything that the worker does for a row."""
    raw = session(model("mlp"))
    blocks = rows(raw, 16 * BLOCK_ROWS).reshape(16, BLOCK_ROWS, -1)
    with tempfile.TemporaryDirectory(prefix="mooring-sources-") as folder:
        worker = _started(Path(folder), "mlp", raw, blocks)
        try:
            turns = [worker.turn(blocks_each) for _ in range(rounds + 1)][1:]
            stats = worker.stats()
        finally:
            worker.stop()
    assert stats.errors == stats.refused == 0, stats
    assert stats.sampled > 0, stats
    return {
        "source_us_per_row_mlp": median(turn["s"] for turn in turns) / BLOCK_ROWS * 1e6,
        "source_cpu_us_per_row_mlp": median(turn["cpu_s"] for turn in turns) / BLOCK_ROWS * 1e6,
    }


def over_raw_conv(rounds: int = 15, frames_each: int = 20) -> dict[str, float]:
    """The convolution net fed by the source, against the raw runtime with the same frames in this process, in turn."""
    raw = session(model("conv"))
    frames = rows(raw, FRAMES)[:, np.newaxis]
    names = [node.name for node in raw.get_outputs()]
    ratios, ours, theirs = [], [], []
    with tempfile.TemporaryDirectory(prefix="mooring-sources-") as folder:
        worker = _started(Path(folder), "conv", raw, frames)
        try:
            worker.turn(10)
            for _ in range(rounds):
                before = _raw_s(raw, names, frames, frames_each)
                ours.append(worker.turn(frames_each)["s"])
                theirs.append((before + _raw_s(raw, names, frames, frames_each)) / 2)
                ratios.append(ours[-1] / theirs[-1])
        finally:
            worker.stop()
    return {
        "source_over_raw_conv": median(ratios),
        "source_conv_us": median(ours) * 1e6,
        "source_raw_conv_us": median(theirs) * 1e6,
    }


def _started(place: Path, name: str, raw: Any, blocks: Any) -> SourceWorker:
    place.chmod(0o755)
    worker = SourceWorker(place, name, raw, blocks)
    row = rows(raw, 1)
    worker.requests = requests(worker.name, row, place)
    worker.start()
    return worker


def _raw_s(raw: Any, names: list[str], frames: Any, count: int) -> float:
    started = time.perf_counter()
    for number in range(count):
        raw.run(names, {"x": frames[number % len(frames)]})
    return (time.perf_counter() - started) / count


def _with_source(manifest: Manifest, slot: Path, blocks: Any) -> Manifest:
    np.save(slot / "blocks.npy", blocks)
    (slot / "loop.py").write_text(_LOOP)
    files = tuple(file_entry(name, (slot / name).read_bytes()) for name in ("loop.py", "blocks.npy"))
    runtime = Runtime(model=manifest.runtime.model, sources=(Script("loop.py"),))
    return msgspec.structs.replace(manifest, files=(*manifest.files, *files), runtime=runtime)


if __name__ == "__main__":
    report("sources", {**us_per_row_mlp(), **over_raw_conv()})
