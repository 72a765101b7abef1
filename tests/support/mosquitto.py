"""A real Mosquitto for tests: TLS 1.3, client certificates, the access rules of a fleet; killed and restarted at will.

`Mosquitto(folder)` makes its own CAs. `hub` is the peer that may do all; devices may write below their `up` and read
below their `down`.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import ssl
from pathlib import Path

from support.certificates import Pair, make_ca, make_client, make_server

HUB = "_hub"
_CONFIG = """\
per_listener_settings false
allow_anonymous false
acl_file {folder}/acl
max_packet_size 1048576
max_queued_messages 500
persistence true
persistence_location {folder}/
autosave_interval 1
log_dest file {folder}/log
user {user}
listener {port} 127.0.0.1
tls_version tlsv1.3
cafile {folder}/device-ca.crt
certfile {folder}/server.crt
keyfile {folder}/server.key
require_certificate true
use_identity_as_username true
use_username_as_clientid true
"""
_ACL = f"""\
user {HUB}
topic readwrite mooring/#
pattern write mooring/1/%u/up/#
pattern read mooring/1/%u/down/#
"""


class Mosquitto:
    """Start, kill (SIGKILL) and start again on the same port, with the same state."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.server_ca = make_ca("test server CA")
        self.device_ca = make_ca("test device CA")
        self.port = _free_port()
        self._process: asyncio.subprocess.Process | None = None
        make_server(self.server_ca, "localhost", "127.0.0.1").write(folder, "server")
        self.server_ca.write(folder, "server-ca")
        self.device_ca.write(folder, "device-ca")
        (folder / "acl").write_text(_ACL)
        (folder / "acl").chmod(0o600)
        # Mosquitto as root would change to a user of its own and lose its files.
        user = "root" if os.getuid() == 0 else "nobody"
        (folder / "mosquitto.conf").write_text(_CONFIG.format(folder=folder, port=self.port, user=user))

    def client(self, name: str) -> Pair:
        """A new certificate of the device CA."""
        return make_client(self.device_ca, name)

    def tls(self, pair: Pair, name: str) -> ssl.SSLContext:
        """A client context for that certificate."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cadata=self.server_ca.pem)
        context.load_cert_chain(*pair.write(self.folder / "clients", name))
        return context

    async def start(self) -> None:
        """Returns when the port accepts."""
        program = shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
        if program is None:
            raise FileNotFoundError("mosquitto is not installed")
        self._process = await asyncio.create_subprocess_exec(
            program, "-c", str(self.folder / "mosquitto.conf"),
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        async with asyncio.timeout(10):
            while not await self._accepts():
                if self._process.returncode is not None:
                    raise RuntimeError(f"mosquitto ended: {(self.folder / 'log').read_text()[-500:]}")
                await asyncio.sleep(0.02)

    async def kill(self) -> None:
        """As a power cut would. Idempotent."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()
        self._process = None

    async def _accepts(self) -> bool:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError:
            return False
        writer.close()
        await writer.wait_closed()
        return True


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
