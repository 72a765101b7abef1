"""The device's end of benchmarks/transfer.py, a process: the agent's own link and fetcher on a device's state.

Takes one JSON object per line on standard input and answers each with one: `pull` fetches a file of the manifest into
an empty staging folder and says how many seconds it took until it lay there verified, and which doorbells were heard
when (seconds of CLOCK_MONOTONIC). Imports the whole agent, so that its memory at rest is an agent's.
"""

from __future__ import annotations

import asyncio
import shutil
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import agent.service  # noqa: F401 - what an agent has in memory
from agent.config import AgentConfig, StatePaths
from agent.identity import Credentials, settle
from agent.link import Link
from agent.transfer.fetch import Fetcher
from benchmarks.wire.lines import answering
from modules.bundle import FileEntry
from modules.manifest import decode_manifest
from modules.messages import Doorbell

CONNECT_DEADLINE_S = 60.0


class Puller:
    """One device."""

    def __init__(self, link: Link, fetcher: Fetcher, staging: Path, files: dict[str, FileEntry]) -> None:
        self._link, self._fetcher, self._staging, self._files = link, fetcher, staging, files
        self._heard: dict[int, float] = {}
        link.on_doorbell(self._on_doorbell)

    async def answer(self, asked: dict[str, Any]) -> dict[str, Any]:
        if asked["do"] == "heard":
            heard, self._heard = self._heard, {}
            return {"heard": heard}
        shutil.rmtree(self._staging, ignore_errors=True)
        entry = self._files[asked["file"]]
        session, began = self._link.session, time.monotonic()
        found = await self._fetcher.fetch([entry])
        seconds = time.monotonic() - began
        assert found[entry.sha256].stat().st_size == entry.size
        return {"seconds": seconds, "reconnects": self._link.session - session}

    def _on_doorbell(self, bell: Doorbell) -> None:
        self._heard[bell.director_version] = time.monotonic()


async def main(state: Path, manifest: Path) -> None:
    paths = StatePaths(state)
    config = AgentConfig.load(paths)
    link = Link(config.device, config.mqtt_host, config.mqtt_port, Credentials(settle(paths)).tls, config.link)
    fetcher = Fetcher(link, paths.staging, config.fetch, lambda _: None)
    files = {entry.path: entry for entry in decode_manifest(manifest.read_bytes()).files}
    puller = Puller(link, fetcher, paths.staging, files)
    running = asyncio.create_task(link.run(), name="link")
    try:
        began = time.monotonic()
        await asyncio.wait_for(link.connected.wait(), CONNECT_DEADLINE_S)
        await answering({"connected_s": time.monotonic() - began}, puller.answer)
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running
        fetcher.close()


if __name__ == "__main__":
    asyncio.run(main(*map(Path, sys.argv[1:3])))
