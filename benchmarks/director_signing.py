"""What the director's signing costs per device on one core, beside raw Ed25519: the functions that the Director calls.

A change signs targets, snapshot and timestamp (5 modules); freshness signs the timestamp only. Each device is measured
by itself and the median counts; the totals for 10,000 and 100,000 devices are extrapolated from `devices_measured`.
`renew_ms_per_device` is the whole renewal, database included, for comparison.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from sqlalchemy import insert, update
from tuf.api.metadata import Metadata, TargetFile, Targets

from benchmarks.common import median, report
from cloud_hub.store.engine import Store
from cloud_hub.store.tables import assignments, devices, modules
from cloud_hub.trust.director import Director
from cloud_hub.trust.director_sign import DeviceSet, sign_freshness, sign_set
from cloud_hub.trust.keys import DIRECTOR_TARGETS, ONLINE, Keys, create_key
from modules.manifest import SamplingPolicy
from modules.targets import DirectorCustom, TargetPath, to_custom

DEVICES = 2_000
MODULES = 5
PROFILE = "generic-x86_64"
WARM_UP = 100
RAW_BYTES = 1_500  # about what the targets of five modules are


def main() -> None:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory() as folder:
        keys = _keys(Path(folder) / "keys")
        targets = {target.path: target for target in map(_target, range(MODULES))}
        _check(keys, targets)
        payload = os.urandom(RAW_BYTES)
        raw_s = _per_device(lambda _: keys.signer(DIRECTOR_TARGETS).sign(payload))
        sign_s = _per_device(lambda n: sign_set(keys, DeviceSet(f"device-{n}", 2, targets), 3, time.time()))
        fresh_s = _per_device(lambda n: sign_freshness(keys, 2, n + 3, time.time()))
        renew_s = asyncio.run(_renewal(Path(folder), keys))
    _say(sign_s, fresh_s, raw_s, renew_s)
    report(
        "director_signing",
        {
            "sign_ms_per_device": sign_s * 1e3,
            "timestamp_ms_per_device": fresh_s * 1e3,
            "raw_sign_us": raw_s * 1e6,
            "change_10k_devices_s": sign_s * 10_000,
            "freshness_100k_devices_s": fresh_s * 100_000,
            "renew_ms_per_device": renew_s * 1e3,
            "devices_measured": DEVICES,
            "modules": MODULES,
        },
    )


def _keys(folder: Path) -> Keys:
    for name in ONLINE:
        create_key(folder, name)
    return Keys(folder)


def _target(number: int) -> TargetFile:
    path = str(TargetPath("acme", f"module-{number}", 7, PROFILE))
    custom = DirectorCustom(PROFILE, 40 + number, "rollout-2026-11-21", sampling=SamplingPolicy(), config={"camera": 2})
    return TargetFile(4_000 + number, {"sha256": f"{number:064x}"}, path, {"custom": to_custom(custom)})


def _check(keys: Keys, targets: dict[str, TargetFile]) -> None:
    """What is measured is what a client accepts."""
    body = sign_set(keys, DeviceSet("device-0", 2, targets), 3, time.time())[0].body
    metadata = Metadata[Targets].from_bytes(body)
    key = keys.signer(DIRECTOR_TARGETS).public_key
    key.verify_signature(metadata.signatures[key.keyid], metadata.signed_bytes)
    assert len(metadata.signed.targets) == MODULES


def _per_device(work: Callable[[int], object]) -> float:
    """Median seconds."""
    for number in range(WARM_UP):
        work(number)
    taken = []
    for number in range(DEVICES):
        started = time.perf_counter()
        work(number)
        taken.append(time.perf_counter() - started)
    return median(taken)


async def _renewal(folder: Path, keys: Keys) -> float:
    """Seconds per device of `Director.renew` after a change of every device, with five modules each."""
    store = await Store.open(f"sqlite+aiosqlite:///{folder / 'hub.sqlite3'}")
    director = Director(store, keys, time.time)
    names = [f"device-{number}" for number in range(DEVICES)]
    about = {"profile": PROFILE, "tags": {}, "certificate": "", "created_at": 0.0, "report_counter": 0}
    built = {
        "version": 7,
        "profile": PROFILE,
        "publisher": "acme",
        "manifest_size": 4_000,
        "size": 1,
        "created_at": 0.0,
    }
    given = {"version": 7, "profile": PROFILE, "mode": "serve", "config": {"camera": 2}, "deployment": "r"}
    numbers = range(MODULES)
    async with store.write() as connection:
        await connection.execute(insert(devices), [{**about, "id": name, "director_version": 1} for name in names])
        await connection.execute(
            insert(modules),
            [{**built, "name": f"m-{n}", "manifest_sha256": f"{n:064x}", "release_counter": n + 1} for n in numbers],
        )
        rows = [{**given, "device": name, "module": f"m-{n}", "assigned_at": 0.0} for name in names for n in numbers]
        await connection.execute(insert(assignments), rows)
    for name in names:
        await director.metadata(name, "timestamp.json")
    async with store.write() as connection:
        await connection.execute(update(devices).values(director_version=devices.c.director_version + 1))
    started = time.perf_counter()
    while await director.renew():
        pass
    took = time.perf_counter() - started
    await store.close()
    return took / DEVICES


def _say(sign_s: float, fresh_s: float, raw_s: float, renew_s: float) -> None:
    print(f"raw Ed25519:            {raw_s * 1e6:8.1f} us")
    print(f"a change, {MODULES} modules:    {sign_s * 1e3:8.3f} ms/device, 10,000 devices: {sign_s * 10_000:6.1f} s")
    print(f"freshness:              {fresh_s * 1e3:8.3f} ms/device, 100,000 devices: {fresh_s * 100_000:5.1f} s")
    print(f"a change with database: {renew_s * 1e3:8.3f} ms/device")


if __name__ == "__main__":
    main()
