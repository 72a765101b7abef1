"""What workers cost: seconds from the order to a loaded, tested worker, and memory of many small modules on one device.

Two devices are made, one whose workers are forked from a process that has imported the libraries (serving.preload =
on) and one without, both confined as highly as this machine can. Memory is the proportional share (PSS) of every
process below the agent's, whatever it is for, so that the process that forks and the sandbox's own are in it.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import msgspec

from agent.config import ServingSettings, StatePaths
from agent.installed import Installed
from agent.runtimes.process import ProcessRuntime
from agent.runtimes.users import first_uid
from agent.sandbox.cage import Cages
from agent.slots import Slots
from agent.store import AgentStore
from benchmarks.common import median, report
from modules.manifest import decode_manifest, encode_manifest, manifest_digest
from modules.messages import Stream

STARTS, SMALL = 7, 20
KIB = 1024.0


def main() -> None:
    if sys.argv[1:2] == ["--make"]:
        _make(Path(sys.argv[2]))
        return
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        root.chmod(0o711)
        # In a process of its own: libraries that this one had loaded would make the workers look smaller.
        subprocess.run([sys.executable, __file__, "--make", folder], check=True)
        metrics = {**asyncio.run(_device(root, "on")), **asyncio.run(_device(root, "off"))}
    metrics["level"] = {"none": 0, "process": 1, "confined": 2, "isolated": 3}[_reached(metrics)]
    report("workers", {key: value for key, value in metrics.items() if isinstance(value, (int, float))})


def _reached(metrics: dict[str, float | str]) -> str:
    return str(metrics["reached"])


async def _device(root: Path, preload: Literal["on", "off"]) -> dict[str, float | str]:
    """One device's numbers; those of the one that does not preload are called cold."""
    settings = ServingSettings(host="", preload=preload)
    paths = StatePaths(root / preload)
    for path in (paths.root, paths.slots, paths.endpoints):
        path.mkdir(mode=0o711)
    paths.staging.mkdir()
    async with AgentStore(paths.database) as store:
        cages = await Cages.find(settings, first_uid(settings), groups=False)
        runtime = ProcessRuntime(paths, settings, store, Slots(paths.slots), _ignore, cages)
        try:
            first, *starts = [await _start(runtime, _install(root, paths, "conv", f"conv-{i}")) for i in range(STARTS)]
            pss, loads = await _many(runtime, [_install(root, paths, "mlp", f"small-{i}") for i in range(SMALL)])
        finally:
            runtime.close()
    sign = "" if preload == "on" else "cold_"
    return {
        f"{sign}ready_s": median(starts),
        f"{sign}first_ready_s": first,
        f"{sign}small_ready_s": median(loads),
        f"{sign}pss_per_module_mib": pss,
        "reached": cages.possible.level.value,
    }


async def _start(runtime: ProcessRuntime, module: Installed) -> float:
    started = time.perf_counter()
    worker = await runtime.load(module)
    took = time.perf_counter() - started
    await worker.kill()
    return took


async def _many(runtime: ProcessRuntime, modules: list[Installed]) -> tuple[float, list[float]]:
    """MiB for each module while all are there, and how long each took to load."""
    workers, loads = [], []
    try:
        for module in modules:
            started = time.perf_counter()
            workers.append(await runtime.load(module))
            loads.append(time.perf_counter() - started)
            await runtime.serve(workers[-1])
        return sum(map(_pss_mib, _below("self"))) / len(workers), loads
    finally:
        for worker in workers:
            await worker.kill()


def _below(process: str) -> Iterator[str]:
    """Every process that this one has started, and theirs."""
    for child in Path(f"/proc/{process}/task/{Path(f'/proc/{process}').resolve().name}/children").read_text().split():
        yield child
        yield from _below(child)


def _pss_mib(pid: str) -> float:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / KIB


def _install(root: Path, paths: StatePaths, model: str, name: str) -> Installed:
    made = root / "made" / model
    manifest = msgspec.structs.replace(decode_manifest((made / "manifest").read_bytes()), name=name)
    data = encode_manifest(manifest)
    for entry in manifest.files:  # hard links count: each module has its own
        (paths.staging / entry.sha256).write_bytes((made / entry.path).read_bytes())
    Slots(paths.slots).make(data, manifest, lambda entry: paths.staging / entry.sha256)
    for path in paths.staging.iterdir():
        path.unlink()
    return Installed(name, 1, manifest_digest(data), 1, "d", verified=True)


def _make(root: Path) -> None:
    from benchmarks import _slots

    for model in ("mlp", "conv"):
        manifest = _slots.write_slot(root / "made" / model, model, _slots.session(_slots.model(model)))
        (root / "made" / model / "manifest").write_bytes(encode_manifest(manifest))


def _ignore(stream: Stream, payload: bytes) -> None:
    """What workers say of their predictions does not matter here."""


if __name__ == "__main__":
    main()
