"""Merging what 10,000 devices counted, and weighing a month of it.

`merge_ms`: 10,000 windows of 20 features (100 rows each), from the bytes of the wire to one sum: decoded, inflated,
held against the reference, deduplicated by their ids, added. `merge_joint_ms` is the same with the joint features that
a reference of several inputs has. `exact` is true when the sums are those of one stream of all rows counted at once, in
three orders and with a tenth of the windows twice. `naive_merge_ms` adds the same windows one by one in plain Python,
which is what it would take without arrays; `sketches_merge_ms` merges a KLL sketch per feature (DataSketches, k = 200),
where that library is installed beside this one.

`evidence_month_s`: one model on 10,000 devices and 30 days of hourly looks in SQLite; what `Alerts` does when the fleet
and its eight groups have new counts, reading included: once with nothing the matter, once with a drift of one feature
on all devices, which it then has to explain; the longer of the two. Of 256 devices all looks are in the database:
those that are drawn to speak for all, and those with most rows. Of the others there is only that they have some.

    benchmarks/merge.py [--windows 10000] [--runs 7]
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from benchmarks.common import median, report  # noqa: E402
from cloud_hub.blobs import FolderBlobs  # noqa: E402
from cloud_hub.config import HubPaths  # noqa: E402
from cloud_hub.events import Events  # noqa: E402
from cloud_hub.monitoring.layout import Layout  # noqa: E402
from cloud_hub.monitoring.looks import Group, look_start  # noqa: E402
from cloud_hub.monitoring.merging import stack  # noqa: E402
from cloud_hub.monitoring.population import choose  # noqa: E402
from cloud_hub.monitoring.reports import WatchSettings  # noqa: E402
from cloud_hub.monitoring.tallies import LookKey, Tally, merge  # noqa: E402
from cloud_hub.reference import profile_training  # noqa: E402
from cloud_hub.store.bulk import insert_many  # noqa: E402
from cloud_hub.store.engine import Store  # noqa: E402
from cloud_hub.store.tables import devices, look_scopes  # noqa: E402
from modules.tensors import TensorSpec  # noqa: E402
from modules.windows import (  # noqa: E402
    LATENCY_BINS,
    ReferenceProfile,
    decode_window,
    encode_window,
    pack_joint,
    unpack_counts,
)
from support.clock import SetClock  # noqa: E402
from support.monitoring import Built, Monitored, build_module, make_window  # noqa: E402

FEATURES, ROWS, POOL = 20, 100, 500
LOOK_S, LOOKS = 3600.0, 720
DEVICES, KEPT = 10_000, 256
SCOPES = ("*", "site=s0", "site=s1", "site=s2", "site=s3", "site=s4", "profile=edge", "agent=0.2.0", "os=linux")
DRIFTED = 24  # looks since the change
RANDOM = np.random.default_rng(23)


def wire(profile: ReferenceProfile, count: int, joint: bool) -> tuple[list[bytes], np.ndarray[Any, Any]]:
    """Windows as they come, and what one stream of all their rows would have counted."""
    built = Built("m", 1, "a" * 64, "b" * 64, profile)
    rows = [RANDOM.normal(size=(ROWS, FEATURES)) for _ in range(POOL)]
    pool = [make_window(built, some, 1000.0) for some in rows]
    if joint:
        size = profile.joint.dimensions if profile.joint else 0
        sums = (RANDOM.normal(size=size) * ROWS**0.5 for _ in range(POOL))
        pool = [
            msgspec.structs.replace(w, joint=pack_joint(ROWS, one.tolist())) for w, one in zip(pool, sums, strict=True)
        ]
    bodies = [encode_window(msgspec.structs.replace(pool[i % POOL], id=f"w-{i}")) for i in range(count)]
    at_once = make_window(built, np.concatenate(rows), 1000.0)
    return bodies, np.array(unpack_counts(at_once.counts, profile.cells), np.int64) * (count // POOL)


def merged(bodies: Sequence[bytes], layout: Layout) -> Tally:
    """What the hub does with them, but for the database."""
    windows = {window.id: window for window in map(decode_window, bodies)}
    stacked, _, refused = stack(list(windows.values()), layout)
    assert not refused, refused
    return stacked.total()


def naively(bodies: Sequence[bytes], cells: int) -> list[int]:
    total, seen = [0] * cells, set()
    for window in map(decode_window, bodies):
        if window.id not in seen:
            seen.add(window.id)
            total = [a + b for a, b in zip(total, unpack_counts(window.counts, cells), strict=True)]
            unpack_counts(window.latency, LATENCY_BINS)
    return total


def timed_ms(work: Any, runs: int) -> float:
    """The median, and not the first, which fills caches."""
    times = []
    for _ in range(runs + 1):
        begin = time.perf_counter()
        work()
        times.append(1e3 * (time.perf_counter() - begin))
    return median(times[1:])


def merging(count: int, runs: int) -> dict[str, float]:
    specs = [TensorSpec("x", "FP64", (-1, FEATURES))]
    profile = profile_training({"x": RANDOM.normal(size=(10_000, FEATURES))}, {}, specs, [])
    layout = Layout(profile)
    bodies, expected = wire(profile, count, joint=False)
    with_joint, _ = wire(profile, count, joint=True)
    exact = all((merged(order, layout).counts == expected).all() for order in _orders(bodies))
    exact = exact and len({merged(order, layout).joint.tobytes() for order in _orders(with_joint)}) == 1
    metrics = {
        "exact": float(exact),
        "bytes_per_window": sum(map(len, bodies)) / count,
        "bytes_per_window_joint": sum(map(len, with_joint)) / count,
        "merge_ms": timed_ms(lambda: merged(bodies, layout), runs),
        "merge_joint_ms": timed_ms(lambda: merged(with_joint, layout), runs),
        "naive_merge_ms": timed_ms(lambda: naively(bodies, profile.cells), 1),
    }
    if importlib.util.find_spec("datasketches"):
        metrics["sketches_merge_ms"] = _sketches(count)
    return metrics


def _orders(bodies: list[bytes]) -> list[list[bytes]]:
    """As they are, backwards, and mixed up with a tenth of them twice."""
    mixed = bodies + bodies[::10]
    random.Random(5).shuffle(mixed)
    return [bodies, bodies[::-1], mixed]


def _sketches(count: int) -> float:
    from datasketches import vector_of_kll_floats_sketches as sketches

    def one() -> bytes:
        made = sketches(200, FEATURES)
        made.update(RANDOM.normal(size=(ROWS, FEATURES)).astype(np.float32))
        return made

    pool = [[bytes(part) for part in one().serialize()] for _ in range(20)]

    def work() -> None:
        total = sketches(200, FEATURES)
        for i in range(count):
            other = sketches(200, FEATURES)
            for place, data in enumerate(pool[i % 20]):
                other.deserialize(data, place)
            total.merge(other)

    return timed_ms(work, 1)


async def evidence(folder: Path) -> dict[str, float]:
    """Seconds until all is weighed, without and with a drift."""
    metrics = {}
    for name, drifted in (("calm", 0), ("drift", DRIFTED)):
        paths = HubPaths(folder / name)
        paths.root.mkdir()
        store = await Store.open(paths.database_url)
        now = look_start(time.time(), LOOK_S) + LOOK_S
        clock = SetClock(now)
        rooms = (store, FolderBlobs(paths.blobs), Events(store, clock), clock)
        hub = Monitored(*rooms, WatchSettings(LOOK_S, 12.0), ("site", "profile", "agent", "os"))
        built = await build_module(store, hub.blobs, RANDOM.normal(size=(10_000, FEATURES)))
        await fill(store, built, now, drifted)
        hub.alerts.touched({Group(built.manifest_sha256, scope) for scope in SCOPES})
        begin = time.perf_counter()
        await hub.alerts.run_due()
        metrics[f"evidence_month_{name}_s"] = time.perf_counter() - begin
        found = await hub.alerts.list("open")
        print(f"{name}: {metrics[f'evidence_month_{name}_s']:.2f} s, {len(found)} alerts: {[a.scope for a in found]}")
        await store.close()
    return metrics | {"evidence_month_s": max(metrics.values())}


async def fill(store: Store, built: Built, now: float, drifted: int) -> None:
    """Looks of the fleet, of groups, and of those devices that have most rows."""
    row = {"profile": "edge", "certificate": "", "created_at": 0.0, "director_version": 0, "report_counter": 0}
    async with store.write() as connection:
        rows = [{"id": f"edge-{i}", "tags": {"site": f"s{i % 5}"}, **row} for i in range(DEVICES)]
        await insert_many(connection, devices, rows)
        sizes = {scope: DEVICES // 5 if scope.startswith("site") else DEVICES for scope in SCOPES}
        names = [row["id"] for row in rows]
        kept = list(dict.fromkeys([*choose(names, (), ()).drawn, *names]))[:KEPT]
        for scope in [*SCOPES, *kept]:
            await merge(
                connection, {built.manifest_sha256: built.name}, _looks(built, scope, sizes.get(scope, 1), now, drifted)
            )
        known = {"manifest_sha256": built.manifest_sha256, "module": built.name, "rows": 1, "first": now - LOOK_S}
        others = [{"device": name, "last": now - LOOK_S, **known} for name in names if name not in kept]
        await insert_many(connection, look_scopes, others)


def _looks(built: Built, scope: str, devices: int, now: float, drifted: int) -> dict[LookKey, Tally]:
    """A month of a scope of so many devices, each with ROWS rows per look."""
    rows, features = devices * ROWS, built.profile.inputs
    parts = []
    for number, feature in enumerate(features):
        counts = np.array(feature.counts[: feature.bins], np.float64)
        shares = counts / counts.sum()
        moved = shares * np.linspace(0.7, 1.3, feature.bins) if number == 3 else shares
        calm = RANDOM.multinomial(rows, shares, LOOKS - drifted)
        after = RANDOM.multinomial(rows, moved / moved.sum(), drifted)
        parts.append(np.pad(np.concatenate([calm, after]), ((0, 0), (0, 3))))
    counted = np.concatenate(parts, axis=1)
    moments = np.tile([0, rows * 1024], (LOOKS, len(features)))
    latency = np.zeros(LATENCY_BINS, np.int64)
    latency[9] = rows
    none = np.zeros(0, np.int64)
    return {
        LookKey(built.manifest_sha256, scope, now - LOOK_S * (LOOKS - i)): Tally(
            devices, rows, 0, 0, 0, 0, 0, counted[i], moments[i], latency, none, none
        )
        for i in range(LOOKS)
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", type=int, default=10_000)
    parser.add_argument("--runs", type=int, default=7)
    chosen = parser.parse_args()
    metrics = merging(chosen.windows, chosen.runs)
    with tempfile.TemporaryDirectory(prefix="mooring-merge-") as folder:
        metrics |= asyncio.run(evidence(Path(folder)))
    report("merge", metrics)


if __name__ == "__main__":
    main()
