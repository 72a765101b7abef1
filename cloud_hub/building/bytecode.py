"""Byte code of a module's libraries, so that a device need not compile them at each start of a worker.

Compiled by the hub's own interpreter where that is of the devices' version; no line of it is run. It names the hash of
no source and no time, so the same files give the same bytes, and the loader does not look for changes: whatever is in
a module is verified by its digest. A process of its own (`python -m cloud_hub.building.bytecode FOLDER NAME`), because
a compiler can be made to eat memory. Called by `resolve`.
Source: PEP 552 (deterministic pycs).
"""

from __future__ import annotations

import asyncio
import compileall
import contextlib
import os
import py_compile
import resource
import sys
from pathlib import Path

MEMORY_BYTES = 4 * 1024**3
OF_WHEELS = "*.pyc"


async def compile_libraries(folder: Path, name: str, python: str, deadline_s: float) -> None:
    """For the files below `folder`, which will be called `name` in the module. What cannot be compiled has none: it is
    compiled, or refused, where somebody imports it.
    """
    await asyncio.to_thread(_remove, folder)
    if python != ".".join(map(str, sys.version_info[:2])):
        return
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "cloud_hub.building.bytecode", str(folder), name, stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL, env=_environment(),
    )  # fmt: skip
    try:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(child.wait(), deadline_s)
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    if child.returncode != 0:
        await asyncio.to_thread(_remove, folder)  # all of it or nothing, so that the same list gives the same module


def _remove(folder: Path) -> None:
    """What came with wheels is nobody's word."""
    for path in folder.rglob(OF_WHEELS):
        path.unlink()


def _environment() -> dict[str, str]:
    return {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "PYTHONPATH") if name in os.environ}


def main(folder: str, name: str) -> int:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
    # Some libraries carry templates and old code that is no Python of today: not an error of ours.
    compileall.compile_dir(folder, maxlevels=64, quiet=2, invalidation_mode=mode, stripdir=folder, prependdir=name)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
