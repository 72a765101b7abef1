"""A real PostgreSQL for tests, in a folder of its own: initialised, started, and ended with the block.

It refuses to run as root, so a test run of root lends it another user. It listens on a socket in its folder, where
everybody is trusted, and on loopback, where a password is asked for.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import psycopg

START_S = 60
USER = "mooring"
PASSWORD = "not a secret"
_HBA = """\
local all all trust
host all all 127.0.0.1/32 scram-sha-256
"""
# What a power cut would lose does not matter here, and waiting for the disk takes most of the time of a small test.
FAST = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}


class Postgres:
    """A server that runs. Databases are made and dropped by name."""

    def __init__(self, folder: Path, port: int, command: Sequence[str | Path]) -> None:
        self.folder = folder
        self.port = port
        self._command = command
        self.process = self._started()

    def create(self, name: str, template: str = "template0") -> str:
        """A new database; its address in the form of the setting `database`."""
        self.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
        return self.url(name)

    def drop(self, name: str) -> None:
        self.execute(f'DROP DATABASE "{name}" WITH (FORCE)')

    def url(self, name: str) -> str:
        return f"postgresql://{USER}@/{name}?host={self.folder}&port={self.port}"

    def loopback_url(self, name: str) -> str:
        """By which the server asks for PASSWORD."""
        return f"postgresql://{USER}@127.0.0.1:{self.port}/{name}"

    def execute(self, statement: str, database: str = "postgres") -> None:
        with psycopg.connect(self.url(database), autocommit=True) as connection:
            connection.execute(statement)

    def stop(self) -> None:
        """At once, as the server calls it: connections are cut."""
        self.process.send_signal(signal.SIGINT)
        self.process.wait(START_S)

    def start(self) -> None:
        """Again, after `stop`, with what it had. Returns when it answers."""
        self.process = self._started()
        _await(self)

    def _started(self) -> subprocess.Popen[bytes]:
        with (self.folder / "log").open("ab") as log:
            return subprocess.Popen(self._command, stdout=log, stderr=log, **_as_somebody())  # type: ignore[call-overload, no-any-return]


def binaries() -> Path | None:
    """Where the newest server is installed, None where there is none."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if found:
        return found[-1].parent
    on_path = shutil.which("initdb")
    return Path(on_path).resolve().parent if on_path else None


@contextmanager
def running_postgres(settings: Mapping[str, str] = FAST) -> Iterator[Postgres]:
    """A server until the end of the block, with nothing in it."""
    programs = binaries()
    assert programs is not None, "PostgreSQL is not installed; scripts/setup installs it"
    # The path of a socket may have 107 characters, which pytest's folders do not leave.
    folder = Path(tempfile.mkdtemp(prefix="mooring-pg-", dir="/tmp"))
    port = _free_port()
    try:
        _initialise(programs, folder)
        command: list[str | Path] = [programs / "postgres", "-D", folder / "data", "-k", folder, "-p", str(port)]
        command += ["-c", "listen_addresses=127.0.0.1"]
        command += [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        server = Postgres(folder, port, command)
        try:
            _await(server)
            server.execute(f"ALTER USER {USER} PASSWORD '{PASSWORD}'")
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder)


def _initialise(programs: Path, folder: Path) -> None:
    if owner := _as_somebody():
        os.chown(folder, owner["user"], owner["group"])
    folder.chmod(0o755)  # the tests' user must reach the socket
    subprocess.run(
        [programs / "initdb", "-D", folder / "data", "-U", USER, "-E", "UTF8", "--locale=C", "--no-sync"],
        check=True,
        stdout=subprocess.DEVNULL,
        timeout=START_S,
        cwd="/",
        **_as_somebody(),  # type: ignore[call-overload]
    )
    (folder / "data" / "pg_hba.conf").write_text(_HBA)


def _as_somebody() -> dict[str, int]:
    """Whom the server runs as when the tests run as root."""
    if os.geteuid() != 0:
        return {}
    try:
        somebody = pwd.getpwnam("postgres")
    except KeyError:
        somebody = pwd.getpwnam("nobody")
    return {"user": somebody.pw_uid, "group": somebody.pw_gid}


def _await(server: Postgres) -> None:
    """Until it answers. The server gives no sign of its own when it is ready."""
    import time

    end = time.monotonic() + START_S
    while True:
        try:
            server.execute("SELECT 1")
        except psycopg.OperationalError:
            assert server.process.poll() is None, (server.folder / "log").read_text()
            assert time.monotonic() < end, (server.folder / "log").read_text()
            time.sleep(0.02)
        else:
            return


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
