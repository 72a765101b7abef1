"""A hub and its devices as processes on this machine, set up as a user would: by their commands.

Nothing here reaches into hub or agent: commands in, status files and the API out. Used by the demo, and by the system
tests and benchmarks.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from cloud_hub.operator.demo.processes import ProcessFailed, Service, command, once, until
from firmware_profiles.catalog import built_in

START_DEADLINE_S = 30.0


class HubProcess:
    """A development hub in `folder`, with its broker; ports are chosen at `init` and stay.

    `program` is what to call instead of this environment's `mooring-hub`, such as that of another release.
    """

    def __init__(self, folder: Path, program: Sequence[str] = ()) -> None:
        self.folder = folder
        self._program = list(program) or [command("mooring-hub")]
        self._ready = folder.with_name(f"{folder.name}.ready.json")
        arguments = [*self._program, "serve", str(folder), "--ready-file", str(self._ready)]
        self.service = Service("mooring-hub", arguments, folder.with_name(f"{folder.name}.log"))

    @property
    def context(self) -> Path:
        """What the `mooring` command needs to reach this hub."""
        return self.folder / "context.toml"

    async def init(self, *options: str) -> None:
        """`mooring-hub init --dev` on free ports."""
        ports = ("--api-port", "0", "--mqtt-port", "0")
        await once([*self._program, "init", str(self.folder), "--dev", "--host", "localhost", *ports, *options])

    async def start(self) -> None:
        """Up, with API and broker answering."""
        self._ready.unlink(missing_ok=True)
        await self.service.start()
        await until("the hub is ready", self._ready.exists, START_DEADLINE_S, self.service)


class AgentProcess:
    """One device: a state folder of its own, and `mooring-agent`, or another `program`, on it."""

    def __init__(self, name: str, folder: Path, program: Sequence[str] = ()) -> None:
        self.name = name
        self._program = list(program) or [command("mooring-agent")]
        self.state = folder / name
        arguments = [*self._program, "run", "--state", str(self.state)]
        self.service = Service(f"mooring-agent {name}", arguments, folder / f"{name}.log")

    async def enrol(self, hub: str, token: str, profile: str) -> None:
        """Makes the device's key, gets its certificate. `hub` is the API's address."""
        arguments = ["--hub", hub, "--token", token, "--device-id", self.name, "--profile", profile]
        await once([*self._program, "enroll", *arguments, "--state", str(self.state)])

    def show_at_once(self) -> None:
        """Windows and samples go out as they come, because somebody is looking. To be called before a start."""
        settings = self.state / "agent.toml"
        settings.write_text(re.sub(r"(?m)^lazy_commit_s = .*$", "lazy_commit_s = 0.1", settings.read_text()))

    async def start(self) -> None:
        """Returns once the process runs; whether it is connected is to be read from the hub."""
        await self.service.start()


def local_profile() -> str:
    """The built-in profile of this machine. Raises ProcessFailed where there is none."""
    name = f"generic-{os.uname().machine}"
    if name not in built_in():
        raise ProcessFailed(f"expected a machine with a built-in profile, got {os.uname().machine}")
    return name
