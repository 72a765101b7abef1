"""A process that is killed while it stores and sends: whatever it said was durable arrives, once and in order."""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress

import pytest

from agent.config import StatePaths
from support import storing
from support.hub import FakeHub
from support.mosquitto import Mosquitto
from support.waiting import until

DEVICE, EACH = storing.DEVICE, storing.EACH


class Child:
    """One life of it."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.said: list[str] = []

    async def hear(self, lines: int) -> None:
        """Until so many lines have come, or its end."""
        assert self._process.stdout is not None
        async with asyncio.timeout(60):
            while len(self.said) < lines and (line := await self._process.stdout.readline()):
                self.said.append(line.decode().strip())

    async def kill(self) -> None:
        with suppress(ProcessLookupError):
            self._process.kill()
        await self.hear(10**6)  # what it had said before
        await self._process.wait()


@pytest.mark.parametrize("forget_s", [0.001, 3600.0])
async def test_a_process_killed_between_storing_and_sending_loses_and_doubles_nothing(
    state_dir: StatePaths, broker: Mosquitto, forget_s: float
) -> None:
    folder = state_dir.root / "tls"
    broker.client(DEVICE).write(folder, DEVICE)
    (folder / "ca.crt").write_text(broker.server_ca.pem)
    durable: list[int] = []

    async def start(first: int) -> Child:
        arguments = [str(state_dir.root), str(broker.port), str(folder), str(first), str(forget_s)]
        process = await asyncio.create_subprocess_exec(
            sys.executable, storing.__file__, *arguments, stdout=asyncio.subprocess.PIPE
        )
        return Child(process)

    async with FakeHub(broker) as hub:
        for life, lines in enumerate((1, 7, 20, 33)):
            child = await start(1000 * life)
            await child.hear(lines)
            await child.kill()
            durable += [int(number) for number in child.said if number != "sent"]
        last = await start(9000)
        await last.hear(EACH + 1)
        await last.kill()
        assert last.said[-1] == "sent"
        durable += [int(number) for number in last.said[:-1]]
        await until(lambda: len(hub.items("sample")) >= len(durable), "everything to arrive")
        came = [int(item) for item in hub.items("sample")]
    assert len(set(came)) == len(came)
    assert came == sorted(came)
    assert set(durable) <= set(came)
    # What was committed when it died, and not yet said, may have come too: one at most for each life.
    assert len(came) - len(durable) <= 4
