"""One module on this machine, for looking at it: `python -m agent.local FOLDER`. No hub, no updates.

The worker is a device's own, in the same confinement or container, with the limits that a device would give it; its
words come to the terminal. Ends with SIGINT or SIGTERM after a drain, or with the worker. Called by `mooring module
run`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from agent.config import ServingSettings, StatePaths
from agent.containers.runtime import Containers
from agent.containers.settings import ContainerSettings
from agent.errors import AgentError
from agent.installed import Installed
from agent.runtimes.process import ProcessRuntime
from agent.runtimes.users import first_uid
from agent.sandbox.cage import Cages
from agent.sandbox.host import WorkerProcess
from agent.slots import MANIFEST_FILE, Slot, Slots, verify_file
from agent.store import AgentStore
from modules.errors import ModuleError
from modules.manifest import Manifest, decode_manifest, encode_manifest, manifest_digest
from modules.messages import Stream

DRAIN_S = 10.0
LOOK_S = 0.1  # at what it has printed
MAX_READ = 1024 * 1024


def main(arguments: list[str] | None = None) -> int:
    """The exit status: 1 when the module does not load, or ends by itself."""
    options = _options().parse_args(arguments)
    try:
        _take_cpus(options.cpus)
        return asyncio.run(_run(options))
    except (AgentError, ModuleError) as error:
        _say(f"{error.key}: {error}")
    except OSError as error:
        _say(f"{options.folder}: {error}")
    return 1


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m agent.local")
    parser.add_argument("folder", type=Path, help=f"the module's files, with {MANIFEST_FILE}")
    parser.add_argument("--port", type=int, default=0, help="0: any that is free")
    parser.add_argument("--memory", type=int, default=0, help="limit in MiB; 0: the module's own")
    parser.add_argument("--cpus", type=int, default=0, help="how many processors; 0: all")
    parser.add_argument("--engine", default=ContainerSettings().engine)
    parser.add_argument("--network", action="append", default=[], help="an engine's network that the module may have")
    parser.add_argument("--device", action="append", default=[], help="a device that the module may have")
    parser.add_argument("--config", default="{}", help="the module's configuration, a JSON object")
    parser.add_argument("--no-confine", action="store_true", help="for a debugger")
    return parser


async def _run(options: argparse.Namespace) -> int:
    stop = asyncio.Event()
    for name in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(name, stop.set)
    with tempfile.TemporaryDirectory(prefix="mooring-run-") as root:
        Path(root).chmod(0o711)  # the worker may become another user
        paths = StatePaths(Path(root))
        slots = Slots(paths.slots, paths.staging)
        slot = await asyncio.to_thread(_installed, slots, paths.staging, options)
        try:
            async with AgentStore(paths.database) as store:
                return await _serve(options, paths, store, slots, slot, stop)
        finally:
            await asyncio.to_thread(slots.prune, ())


async def _serve(
    options: argparse.Namespace, paths: StatePaths, store: AgentStore, slots: Slots, slot: Slot, stop: asyncio.Event
) -> int:
    settings = ServingSettings(confine=not options.no_confine, preload="off")
    engine = ContainerSettings(options.engine, tuple(options.network), tuple(options.device))
    containers = Containers(paths.root / "containers", engine, _ignore)
    cages = await Cages.find(settings, first_uid(settings), groups=False)
    runtime = ProcessRuntime(paths, settings, store, slots, _ignore, cages, containers)
    if options.port:
        await store.put_port(slot.manifest.name, options.port)
    config = msgspec.json.decode(options.config, type=dict[str, object])
    module = Installed(slot.manifest.name, slot.manifest.version, slot.manifest_sha256, 1, "", config=config)
    try:
        async with _printed(paths.root / "logs" / f"{module.name}.log"):
            worker = await runtime.load(module)
            try:
                await runtime.serve(worker)
                if worker.ready is not None:
                    _say(f"{worker.ready.execution}; confinement {worker.ready.level.value}")
                _say(f"serving {runtime.address(module.name)}/v2/models/{module.name} (Ctrl-C ends it)")
                return await _until(worker, stop)
            finally:
                await worker.stop(DRAIN_S)
    finally:
        runtime.close()
        await containers.close()


async def _until(worker: WorkerProcess, stop: asyncio.Event) -> int:
    waits = [asyncio.create_task(event.wait()) for event in (stop, worker.exited)]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
    drained = await worker.drain(DRAIN_S)  # of a worker that has ended, this says how
    _say(f"drained, {drained.cut} connections cut")
    return 0


def _installed(slots: Slots, staging: Path, options: argparse.Namespace) -> Slot:
    """A slot of its own, every file copied and compared. Raises SlotError, ManifestError, OSError."""
    manifest = decode_manifest((options.folder / MANIFEST_FILE).read_bytes())
    staging.mkdir()
    for entry in manifest.files:
        shutil.copyfile(options.folder / entry.path, staging / entry.sha256)
        verify_file(staging / entry.sha256, entry)
    manifest = _limited(manifest, options.memory)
    slots.make(encode_manifest(manifest), manifest, lambda entry: staging / entry.sha256)
    shutil.rmtree(staging)
    return slots.open(manifest_digest(encode_manifest(manifest)))


def _limited(manifest: Manifest, memory_mib: int) -> Manifest:
    if not memory_mib:
        return manifest
    return msgspec.structs.replace(
        manifest, resources=msgspec.structs.replace(manifest.resources, memory_mib=memory_mib)
    )


def _take_cpus(count: int) -> None:
    """Of this process, and so of the worker."""
    if count:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])


@asynccontextmanager
async def _printed(log: Path) -> AsyncIterator[None]:
    """Inside, what the module prints comes to the terminal."""
    following = asyncio.create_task(_follow(log), name="follow-log")
    try:
        yield
    finally:
        await asyncio.sleep(2 * LOOK_S)  # for its last words
        following.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await following


async def _follow(log: Path) -> None:
    """In whole lines, so that ours do not come between."""
    at = 0
    while True:
        with contextlib.suppress(OSError), log.open("rb") as file:
            at = at if at <= file.seek(0, os.SEEK_END) else 0
            file.seek(at)
            lines = file.read(MAX_READ).rpartition(b"\n")
            at += len(lines[0]) + len(lines[1])
            sys.stdout.write((lines[0] + lines[1]).decode(errors="replace"))
            sys.stdout.flush()
        await asyncio.sleep(LOOK_S)


def _ignore(stream: Stream, payload: bytes) -> None:
    """Nobody takes windows and samples here."""


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
