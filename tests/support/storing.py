"""A process of its own that stores and sends through a real outbox, to be killed: `python storing.py STATE PORT ...`.

Imports nothing of the tests, so that it runs by its path. Used by `agent/test_outbox_crash`.
"""

from __future__ import annotations

import asyncio
import ssl
import sys
from pathlib import Path

from agent.config import LinkLimits, OutboxLimits, StatePaths
from agent.link import Link
from agent.outbox import Outbox
from agent.store import AgentStore

DEVICE = "cam-17"
EACH = 40
LINK = LinkLimits(reconnect_first_s=0.05, reconnect_ceiling_s=0.3)


async def store_and_send(state: Path, port: int, folder: Path, first: int, forget_s: float) -> None:
    """Says each item's number once it is durable, and sends as fast as it can."""
    limits = OutboxLimits(commit_every_s=0.001, lazy_commit_s=0.001, forget_s=forget_s, ack_timeout_s=1.0)

    def tls() -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(folder / "ca.crt")
        context.load_cert_chain(folder / f"{DEVICE}.crt", folder / f"{DEVICE}.key")
        return context

    async with AgentStore(StatePaths(state).database) as store:
        link = Link(DEVICE, "localhost", port, tls, LINK)
        outbox = Outbox(store, link, DEVICE, limits)
        await outbox.open()
        tasks = [asyncio.create_task(work) for work in (link.run(), outbox.run())]
        for number in range(first, first + EACH):
            await outbox.add("sample", b"%d" % number)
            print(number, flush=True)
        while any(outbox.waiting().values()):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        print("sent", flush=True)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


if __name__ == "__main__":
    state_, port_, folder_, first_, forget_ = sys.argv[1:]
    asyncio.run(store_and_send(Path(state_), int(port_), Path(folder_), int(first_), float(forget_)))
