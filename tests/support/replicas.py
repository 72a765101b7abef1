"""A hub of two replicas as `deploy/compose` makes it, without containers: the same scripts, settings and commands.

PostgreSQL, an S3-compatible store, Mosquitto and both hubs are processes of their own, killed and started by tests.
What differs from the compose file are addresses and paths, because all of it is on one machine.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from cloud_hub.config import HubPaths
from cloud_hub.initialise import free_ports
from cloud_hub.operator.context import HubContext
from cloud_hub.replicas.lease import WORK
from cloud_hub.store.engine import Store
from cloud_hub.store.tables import leases
from support.postgres import PASSWORD, Postgres, running_postgres
from support.s3 import S3, running_s3
from support.waiting import until_blocking

REPOSITORY = Path(__file__).resolve().parents[2]
COMPOSE = REPOSITORY / "deploy" / "compose"
NAMES = ("a", "b")
START_S = 120
HOST = "localhost"
LEASE_S = 5.0  # shorter than by default, so that a test sees it taken over


@dataclass
class Site:
    """Everything of it runs inside `running_site`, but what a test has stopped."""

    folder: Path
    postgres: Postgres
    s3: S3
    mqtt_port: int
    api_ports: Mapping[str, int]
    hubs: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    broker: subprocess.Popen[bytes] | None = None

    def paths(self, name: str) -> HubPaths:
        return HubPaths(self.folder / "hubs" / name)

    def context(self, name: str) -> HubContext:
        """By which the operator reaches this replica and no other."""
        first = HubContext.load(self.paths("a").context)
        return HubContext(f"https://{HOST}:{self.api_ports[name]}", first.token, first.ca)

    def start_hub(self, name: str) -> None:
        """Returns when it is ready."""
        self.begin_hub(name)
        self.await_hub(name)

    def begin_hub(self, name: str) -> None:
        ready = self._ready(name)
        ready.unlink(missing_ok=True)
        environment = self.environment() | {"MOORING_HUB_API_PORT": str(self.api_ports[name])}
        with (self.folder / f"hub-{name}.log").open("ab") as log:
            self.hubs[name] = subprocess.Popen(
                ["mooring-hub", "serve", str(self.paths(name).root), "--ready-file", str(ready)],
                env=environment, stdout=log, stderr=log,
            )  # fmt: skip

    def await_hub(self, name: str) -> None:
        process = self.hubs[name]
        until_blocking(lambda: self._ready(name).exists() or process.poll() is not None, f"hub {name}", START_S)
        assert process.poll() is None, self.log(f"hub-{name}")

    def kill_hub(self, name: str) -> None:
        """SIGKILL, as the kernel does it."""
        self.hubs[name].kill()
        self.hubs.pop(name).wait(START_S)

    def start_broker(self) -> None:
        environment = self.environment() | {
            "MOORING_BROKER_FILES": str(self.folder / "broker"),
            "MOSQUITTO_CONF": str(self.folder / "mosquitto.conf"),
        }
        with (self.folder / "broker.log").open("ab") as log:
            self.broker = subprocess.Popen(
                ["sh", str(COMPOSE / "mosquitto.sh")], env=environment, stdout=log, stderr=log, start_new_session=True
            )

    def kill_broker(self) -> None:
        """With the script around it."""
        assert self.broker is not None
        os.killpg(self.broker.pid, signal.SIGKILL)
        self.broker.wait(START_S)

    def environment(self) -> dict[str, str]:
        """For the commands that the compose file runs."""
        programs = f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin"
        return {**os.environ, "PATH": programs}

    def log(self, name: str) -> str:
        """Its end."""
        return (self.folder / f"{name}.log").read_text(errors="replace")[-4000:]

    def _ready(self, name: str) -> Path:
        return self.folder / f"ready-{name}.json"


@contextmanager
def running_site(folder: Path) -> Iterator[Site]:
    """Both hubs are ready. Modules can be signed in the directory of replica a."""
    with ExitStack() as parts:
        postgres, s3 = parts.enter_context(running_postgres()), parts.enter_context(running_s3())
        postgres.create("mooring")
        s3.make("mooring")
        api_a, api_b, mqtt = free_ports(3)
        site = Site(folder, postgres, s3, mqtt, {"a": api_a, "b": api_b})
        parts.callback(_end, site)
        _initialise(site)
        site.start_broker()
        for name in NAMES:
            site.begin_hub(name)
        for name in NAMES:
            site.await_hub(name)
        yield site


def _initialise(site: Site) -> None:
    """As the job `init` of the compose file."""
    folder = site.folder
    for name in ("hubs", "broker", "offline", "sessions"):
        (folder / name).mkdir(mode=0o700, parents=True)
    (folder / "database-password").write_text(PASSWORD)
    credentials = site.s3.settings(folder).credentials
    settings = (COMPOSE / "hub.toml").read_text().replace("http://minio:9000", site.s3.endpoint)
    settings += f"lease_s = {LEASE_S}\n"
    (folder / "hub.toml").write_text(settings.replace("/run/secrets/bucket", credentials))
    conf = (COMPOSE / "mosquitto.conf").read_text().replace("/var/lib/mooring-broker", str(folder / "broker"))
    conf = conf.replace("/var/lib/mosquitto", str(folder / "sessions"))
    conf = conf.replace(
        "listener 8883", f"{'user root' if os.geteuid() == 0 else ''}\nlistener {site.mqtt_port} 127.0.0.1"
    )
    (folder / "mosquitto.conf").write_text(conf)
    environment = site.environment() | {
        "MOORING_HOST": HOST,
        "MOORING_BIND": "127.0.0.1",
        "MOORING_HUBS": str(folder / "hubs"),
        "MOORING_BROKER_FILES": str(folder / "broker"),
        "MOORING_OFFLINE": str(folder / "offline"),
        "MOORING_SETTINGS": str(folder / "hub.toml"),
        "MOORING_DATABASE": site.postgres.loopback_url("mooring"),
        "MOORING_DATABASE_PASSWORD_FILE": str(folder / "database-password"),
        "MOORING_BROKER": f"mqtts://{HOST}:{site.mqtt_port}",
    }
    for _ in range(2):  # the second time there is nothing to do
        ended = subprocess.run(
            ["sh", str(COMPOSE / "init.sh")], env=environment, capture_output=True, text=True, timeout=START_S,
            check=False,
        )  # fmt: skip
        assert ended.returncode == 0, ended.stdout + ended.stderr
    for key in (folder / "offline").glob("*.pem"):  # whoever signs modules in a test has them here
        shutil.copy(key, site.paths("a").keys)


def _end(site: Site) -> None:
    for process in site.hubs.values():
        process.terminate()
    for process in site.hubs.values():
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(START_S)
    if site.broker is not None and site.broker.poll() is None:
        site.kill_broker()


async def holder(site: Site) -> str:
    """The replica that does what only one may do."""
    store = await opened(site)
    try:
        async with store.read() as connection:
            row = (await connection.execute(leases.select().where(leases.c.name == WORK))).one_or_none()
            return "" if row is None else str(row.holder)
    finally:
        await store.close()


async def opened(site: Site) -> Store:
    """The database of both."""
    url = site.postgres.url("mooring").replace("postgresql:", "postgresql+psycopg:", 1)
    return await Store.open(url, migrate=False)
