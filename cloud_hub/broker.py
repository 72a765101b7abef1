"""The MQTT broker as a child of the hub: its configuration, its life, and where it is reached.

Mosquitto 2.0 with client certificates only: the certificate's common name is user name and client id, and pattern
rules give each device its own topics and no others. With the setting `broker` naming one that is there already, no
child is started; that one must be configured alike and hold a certificate of this hub's server CA.
Used by `service` (starts and stops it), `link` (address) and `devices` (the address devices are told).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import shutil
import signal
import ssl
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from urllib.parse import urlsplit

from cloud_hub.config import HubConfig, HubPaths
from cloud_hub.errors import Unavailable
from cloud_hub.trust.ca import HUB_CLIENT_NAME
from cloud_hub.trust.keys import write_private

log = logging.getLogger(__name__)

READY_DEADLINE_S = 15.0
STOP_DEADLINE_S = 5.0
FIRST_RESTART_S = 0.2
LAST_RESTART_S = 10.0
MAX_LOG_BYTES = 8 * 1024 * 1024
MAX_PACKET_BYTES = 1_048_576
MAX_QUEUED = 20_000
MAX_QUEUED_BYTES = 64 * 1024 * 1024
MAX_CONNECTIONS = 100_000  # or as many as it may have open files, less a few

# Runs in the child before Mosquitto takes its place: when the hub is killed, the broker ends too and frees its port. It
# may have a connection for each file that the system lets it open. A fork hook would do the same, but is not safe in a
# process with threads.
_END_WITH_PARENT = (
    "import ctypes, os, resource, sys; ctypes.CDLL(None).prctl(1, 15); "
    "hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]; "
    "resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard)); "
    "os.getppid() == int(sys.argv[1]) or sys.exit(1); os.execv(sys.argv[2], sys.argv[2:])"
)

_CONFIGURATION = """\
# Written by mooring-hub at each start; changes here are lost.
per_listener_settings false
allow_anonymous false
acl_file {folder}/acl
persistence true
persistence_location {folder}/
autosave_interval 5
log_dest file {folder}/mosquitto.log
log_timestamp_format %Y-%m-%dT%H:%M:%S
log_type error
log_type warning
log_type notice
{user}max_packet_size {max_packet}
# What a fleet says while the hub is busy for a moment waits here, and is dropped beyond these bounds. For a device that
# is away as well, to which only the hub writes.
max_queued_messages {max_queued}
max_queued_bytes {max_queued_bytes}
# As many as the receiver takes: each client says how many that is.
max_inflight_messages 0
max_inflight_bytes {max_queued_bytes}
memory_limit 1073741824
max_keepalive 600
persistent_client_expiration 14d
set_tcp_nodelay true
listener {port} {host}
max_connections {max_connections}
tls_version tlsv1.3
cafile {device_ca}
certfile {certificate}
keyfile {key}
crlfile {crl}
require_certificate true
# The certificate's common name is the user name; there are no passwords.
use_identity_as_username true
# Nobody can take over another device's session by claiming its client id.
use_username_as_clientid true
"""
_USER_ROOT = """\
# Started as root, Mosquitto would drop to the user mosquitto and could not read the hub's private files.
user root
"""
_ACL = """\
# Written by mooring-hub at each start; changes here are lost.
{hubs}\
pattern write mooring/1/%u/up/#
pattern read mooring/1/%u/down/#
"""


@dataclass(frozen=True)
class Address:
    """Where a broker listens."""

    host: str
    port: int


def hub_address(config: HubConfig) -> Address:
    """Where the hub itself reaches the broker."""
    if config.broker:
        return _external(config)
    local = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - compared, not bound
    return Address(local.get(config.mqtt_host, config.mqtt_host), config.mqtt_port)


def device_address(config: HubConfig) -> Address:
    """Where devices are told to connect."""
    return _external(config) if config.broker else Address(config.public_host, config.mqtt_port)


def client_context(paths: HubPaths) -> ssl.SSLContext:
    """TLS for the hub's own client: trusts the server CA and nothing else, shows the hub's certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(paths.server_ca_crt)
    context.load_cert_chain(paths.hub_client_crt, paths.hub_client_key)
    return context


class Broker:
    """The child and its supervisor. `async with` starts and stops it; `ready` waits for the listener."""

    def __init__(self, config: HubConfig, paths: HubPaths) -> None:
        self._config = config
        self._paths = paths
        self._process: asyncio.subprocess.Process | None = None
        self._supervisor: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """The child's process id while it runs."""
        running = self._process is not None and self._process.returncode is None
        return self._process.pid if running and self._process is not None else None

    async def __aenter__(self) -> Broker:
        """Raises Unavailable `broker-missing` when Mosquitto is not installed."""
        if not self._config.broker:
            executable = find_mosquitto()
            self._write_configuration()
            self._supervisor = asyncio.create_task(self._supervise(executable), name="broker")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._supervisor is not None:
            self._supervisor.cancel()
            await asyncio.wait([self._supervisor], timeout=2 * STOP_DEADLINE_S)
            self._supervisor = None

    async def ready(self, deadline_s: float = READY_DEADLINE_S) -> None:
        """Returns once the broker answers with this hub's certificate. Raises Unavailable `broker-not-ready`."""
        address, context = hub_address(self._config), client_context(self._paths)
        limit = time.monotonic() + deadline_s
        while True:
            try:
                async with asyncio.timeout(max(0.1, limit - time.monotonic())):
                    _, writer = await asyncio.open_connection(address.host, address.port, ssl=context)
                writer.close()
                with contextlib.suppress(OSError, ssl.SSLError):
                    await asyncio.wait_for(writer.wait_closed(), 1.0)
                return
            except (OSError, ssl.SSLError, TimeoutError) as error:
                if time.monotonic() >= limit:
                    raise self._not_ready(address, error) from error
            await asyncio.sleep(0.05)

    def reload(self) -> None:
        """Has the broker read the revocation list anew. Connections that stand are not touched by it."""
        pid = self.pid
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGHUP)
        elif self._config.broker:
            log.warning("the revocation list has changed: have the broker %s read it anew", self._config.broker)

    async def _supervise(self, executable: Path) -> None:
        delay_s = FIRST_RESTART_S
        while True:
            started = time.monotonic()
            try:
                returncode = await self._run(executable)
            except OSError as error:
                log.error("the broker %s could not be started: %s", executable, error)
                returncode = -1
            if time.monotonic() - started > LAST_RESTART_S:
                delay_s = FIRST_RESTART_S
            pause_s = delay_s * random.uniform(0.5, 1.5)
            log.warning(
                "broker ended with status %s, restarting in %.1f s: %s", returncode, pause_s, self._last_words()
            )
            await asyncio.sleep(pause_s)
            delay_s = min(2 * delay_s, LAST_RESTART_S)

    async def _run(self, executable: Path) -> int:
        """One life of the child, from start to end."""
        self._rotate_log()
        command = (str(executable), "-c", str(self._paths.broker / "mosquitto.conf"))
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-I", "-S", "-c", _END_WITH_PARENT, str(os.getpid()), *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,  # ctrl-C in a terminal is for the hub, which then stops the broker in order
        )  # fmt: skip
        self._process = process
        try:
            return await process.wait()
        finally:
            await _end(process)

    def _write_configuration(self) -> None:
        paths = self._paths
        text = _CONFIGURATION.format(
            folder=paths.broker.resolve(),
            user=_USER_ROOT if os.geteuid() == 0 else "",
            max_packet=MAX_PACKET_BYTES,
            max_queued=MAX_QUEUED,
            max_queued_bytes=MAX_QUEUED_BYTES,
            max_connections=MAX_CONNECTIONS,
            port=self._config.mqtt_port,
            host=self._config.mqtt_host,
            device_ca=self._authorities().resolve(),
            certificate=paths.server_crt.resolve(),
            key=paths.server_key.resolve(),
            crl=paths.crl.resolve(),
        )
        write_private(paths.broker / "mosquitto.conf", text.encode())
        write_private(paths.broker / "acl", _ACL.format(hubs=self._hubs()).encode())

    def _hubs(self) -> str:
        """Rules for the hub and each of its replicas, and for events that leave the hub here.

        The hub writes those, who are named read them, no device.
        """
        settings = self._config.outward
        events = bool(settings.mqtt_topic) and not settings.mqtt_broker
        rules = []
        for name in (HUB_CLIENT_NAME, *(f"{HUB_CLIENT_NAME}-{one}" for one in self._config.replicas.names)):
            rules += [f"user {name}", "topic readwrite mooring/1/#"]
            rules += [f"topic write {settings.mqtt_topic}/#"] if events else []
        for reader in settings.mqtt_readers if events else ():
            rules += [f"user {reader}", f"topic read {settings.mqtt_topic}/#"]
        return "".join(f"{rule}\n" for rule in rules)

    def _authorities(self) -> Path:
        """Whose certificates are let in: the hub's own authority, and the operator's where there is one."""
        if not self._config.ca.command:
            return self._paths.device_ca_crt
        together = self._paths.broker / "device-cas.pem"
        own, theirs = self._paths.device_ca_crt.read_bytes(), Path(self._config.ca.certificate).read_bytes()
        write_private(together, own + theirs)
        return together

    @property
    def _log_file(self) -> Path:
        return self._paths.broker / "mosquitto.log"

    def _rotate_log(self) -> None:
        if self._log_file.is_file() and self._log_file.stat().st_size > MAX_LOG_BYTES:
            os.replace(self._log_file, self._log_file.with_suffix(".log.1"))

    def _last_words(self) -> str:
        try:
            lines = self._log_file.read_bytes()[-2000:].decode(errors="replace").splitlines()
        except OSError:
            return "no log"
        return " | ".join(lines[-3:]) or "empty log"

    def _not_ready(self, address: Address, error: Exception) -> Unavailable:
        words = "" if self._config.broker else f"; its log ends: {self._last_words()}"
        return Unavailable(
            "broker-not-ready",
            f"broker at {address.host}:{address.port}: expected this hub's TLS listener, got "
            f"{type(error).__name__}: {error}{words}",
        )


def find_mosquitto() -> Path:
    """The executable. Raises Unavailable `broker-missing` telling what to install."""
    # Debian installs it in sbin, which is not on the path of ordinary users.
    found = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin:/opt/homebrew/sbin")
    if found is None:
        raise Unavailable(
            "broker-missing",
            "no mosquitto executable found: install it (Debian, Ubuntu: apt install mosquitto; Fedora: "
            "dnf install mosquitto) or name one that is there with the setting broker = mqtts://HOST:PORT; "
            "nothing was started",
        )
    return Path(found)


def _external(config: HubConfig) -> Address:
    url = urlsplit(config.broker)
    return Address(url.hostname or "", url.port or 8883)


async def _end(process: asyncio.subprocess.Process) -> None:
    """Asks the child to save and end, and waits; not asked twice when it has ended already."""
    if process.returncode is not None:
        return
    for ask in (process.terminate, process.kill):
        with contextlib.suppress(ProcessLookupError):
            ask()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(process.wait()), STOP_DEADLINE_S)
            return
