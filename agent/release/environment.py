"""Builds and checks a release's environment, each in a process of its own with a deadline.

Called by `agent.release.kind` while an update tries a new agent out. Nothing of it is imported into this process.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path

from agent.errors import UpdateError
from agent.release.launcher import installed_packages, is_complete, python_of
from agent.release.pointer import FOLDER

UNPACK_DEADLINE_S = 900.0
CHECK_DEADLINE_S = 120.0
MAX_WORDS = 500


class Environments:
    """The releases on this device: `releases/<id>/`, each whole or not marked as such. `schema` is this agent's own."""

    def __init__(self, state: Path, schema: int) -> None:
        self._state, self._schema = state, schema

    async def build(self, release: str, slot: Path) -> str:
        """Makes the environment unless it is there, and asks it whether it would run here; its version.

        Raises UpdateError: release-unpack, release-check. A folder that failed is removed.
        """
        folder = self._state / FOLDER / release
        folder.parent.mkdir(mode=0o755, exist_ok=True)
        if not is_complete(self._state, release):
            command = ["-m", "agent.release.unpack", str(slot), str(folder), *installed_packages()]
            await self._run(release, sys.executable, command, UNPACK_DEADLINE_S, "release-unpack")
        command = ["-m", "agent.release.check", str(self._state), str(self._schema)]
        python = str(python_of(self._state, release))
        return await self._run(release, python, command, CHECK_DEADLINE_S, "release-check")

    async def prune(self, keep: Collection[str]) -> None:
        """Removes every release but these."""
        folder = self._state / FOLDER
        for path in folder.iterdir() if folder.is_dir() else ():
            if path.name not in keep:
                await asyncio.to_thread(shutil.rmtree, path, True)

    async def _run(self, release: str, python: str, command: Sequence[str], deadline_s: float, key: str) -> str:
        try:
            return await _output(python, command, deadline_s, key)
        except BaseException:
            await self._discard(release)
            raise

    async def _discard(self, release: str) -> None:
        await asyncio.to_thread(shutil.rmtree, self._state / FOLDER / release, True)


async def _output(python: str, command: Sequence[str], deadline_s: float, key: str) -> str:
    """What the process printed. Raises UpdateError with what it said last; no process is left behind."""
    try:
        process = await asyncio.create_subprocess_exec(
            python, "-P", *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE, env=_environment(),
        )  # fmt: skip
    except OSError as error:
        raise UpdateError(f"agent release: {python} cannot be started: {error}", key) from error
    try:
        async with asyncio.timeout(deadline_s):
            said, failed = await process.communicate()
    except TimeoutError as error:
        raise UpdateError(f"agent release: {command[1]} took longer than {deadline_s:g} s", key) from error
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    if process.returncode != 0:
        words = failed.decode(errors="replace").strip()[-MAX_WORDS:]
        raise UpdateError(f"agent release: {words or f'status {process.returncode}'}", key)
    return said.decode(errors="replace").strip()


def _environment() -> dict[str, str]:
    """Ours without what would put other packages before the release's own."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
