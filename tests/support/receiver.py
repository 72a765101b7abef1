"""An endpoint for webhooks, as somebody else would write one: keeps what came, answers what the test says.

Checks signatures by `openssl` on the command line, so not by the code under test.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import subprocess
from base64 import b64decode, b64encode
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from cloudevents.core.bindings.http import HTTPMessage, from_http_event

from support.waiting import until


@dataclass(frozen=True)
class Received:
    """One request: its headers by lower-case name, and its body."""

    headers: dict[str, str]
    body: bytes

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    @property
    def event(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)
        return found

    @property
    def kind(self) -> str:
        return str(self.event["type"]).removeprefix("io.mooring.")

    def is_cloud_event(self) -> bool:
        """By the project's own library, which raises for what is none."""
        return from_http_event(HTTPMessage(self.headers, self.body)).get_id() == self.id

    def signed_with(self, secret: str) -> bool:
        """Whether one of the signatures is right, computed by OpenSSL."""
        key = b64decode(secret.removeprefix("whsec_")).hex()
        content = f"{self.id}.{self.headers['webhook-timestamp']}.".encode() + self.body
        done = subprocess.run(
            ["openssl", "dgst", "-sha256", "-mac", "HMAC", "-macopt", f"hexkey:{key}", "-binary"],
            input=content, capture_output=True, check=True, timeout=30,
        )  # fmt: skip
        return f"v1,{b64encode(done.stdout).decode()}" in self.headers["webhook-signature"].split(" ")


Reply = Callable[[Received], Awaitable[web.Response]]


async def accept(_received: Received) -> web.Response:
    return web.Response(status=204)


@dataclass
class Receiver:
    """What came, in order. A test may put another `reply` in place."""

    port: int = 0
    scheme: str = "http"
    reply: Reply = accept
    received: list[Received] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"{self.scheme}://localhost:{self.port}/hook"

    @property
    def kinds(self) -> list[str]:
        return [one.kind for one in self.received]

    async def has(self, count: int) -> None:
        await until(lambda: len(self.received) >= count, f"{count} deliveries, there are {self.kinds}", 60)

    def answer(self, status: int, **headers: str) -> None:
        """From now on."""

        async def reply(_received: Received) -> web.Response:
            return web.Response(status=status, headers={name.replace("_", "-"): text for name, text in headers.items()})

        self.reply = reply


@asynccontextmanager
async def receiving(tls: ssl.SSLContext | None = None) -> AsyncIterator[Receiver]:
    """Listens on loopback."""
    here = Receiver(scheme="https" if tls else "http")

    async def handle(request: web.Request) -> web.StreamResponse:
        headers = {name.lower(): value for name, value in request.headers.items()}
        one = Received(headers, await request.read())
        here.received.append(one)
        return await here.reply(one)

    app = web.Application()
    app.router.add_post("/hook", handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "localhost", 0, ssl_context=tls)
    await site.start()
    here.port = runner.addresses[0][1]
    try:
        yield here
    finally:
        await asyncio.wait_for(runner.cleanup(), 30)
