"""What `mooring-agent doctor` finds out: whether this device could enrol, connect, keep, confine and run modules.

Every check answers with words, also when it is well. Heavy libraries are asked in short-lived processes, as a worker
would import them. Called by `agent.cli`; changes nothing.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from datetime import UTC, datetime

from agent.checks import Check
from agent.config import AgentConfig, ServingSettings, StatePaths
from agent.containers.settings import ContainerSettings
from agent.doctor_backends import backends
from agent.doctor_containers import containers
from agent.doctor_hardware import hardware
from agent.errors import AgentError
from agent.hardening import check_private
from agent.identity import Identity
from agent.neighbours import device_authorities
from agent.runtimes.endpoints import MAX_SOCKET_PATH
from agent.runtimes.users import first_uid
from agent.sandbox.cage import Cages
from firmware_profiles.confinement import Confinement

CONNECT_TIMEOUT_S = 5.0
RENEWAL_LATE = 0.8  # of a certificate's life: by then it should have been renewed
LOW_MEMORY_MIB = 64
EARLIEST = datetime(2025, 1, 1, tzinfo=UTC).timestamp()  # a clock before this program was written is wrong


async def examine(paths: StatePaths) -> list[Check]:
    """Every check that makes sense; without enrolment, those about the machine."""
    checks = [_clock(time.time()), _disk(paths), _memory(), _sockets(paths), *hardware()]
    checks.append(await _confinement(_serving(paths)))
    checks += await backends(_config(paths))
    checks.append(await containers(_containers(paths)))
    try:
        config = AgentConfig.load(paths)
        identity = Identity.load(paths)
    except AgentError as error:
        return [Check("identity", "fail", f"{error}; run mooring-agent enroll"), *checks]
    checks = [_identity(identity, time.time()), _private(paths), await _broker(config, identity), *checks]
    return [*checks, _neighbours(paths)] if config.gateway.listen or config.fetch.gateways else checks


def _config(paths: StatePaths) -> AgentConfig | None:
    try:
        return AgentConfig.load(paths)
    except AgentError:
        return None


def _serving(paths: StatePaths) -> ServingSettings:
    config = _config(paths)
    return config.serving if config is not None else ServingSettings()


def _containers(paths: StatePaths) -> ContainerSettings:
    config = _config(paths)
    return config.containers if config is not None else ContainerSettings()


def _identity(identity: Identity, now: float) -> Check:
    left = identity.not_after.timestamp() - now
    life = (identity.not_after - identity.not_before).total_seconds()
    text = f"{identity.device}, certificate valid until {identity.not_after:%Y-%m-%d %H:%MZ}"
    if left <= 0:
        hint = f"an operator can let it back in (mooring device readmit {identity.device})"
        return Check("identity", "fail", f"{text}: it has expired (or the clock is wrong); {hint}")
    if left < (1 - RENEWAL_LATE) * life:
        return Check("identity", "warn", f"{text}: it should have been renewed; see the agent's log")
    return Check("identity", "ok", text)


def _neighbours(paths: StatePaths) -> Check:
    """What a gateway and those who ask it need to know each other."""
    try:
        known = device_authorities(paths)
    except (AgentError, OSError) as error:
        return Check("gateway", "warn", f"{error}; until then files come another way")
    return Check("gateway", "ok", f"knows {len(known)} authorities of this fleet's devices")


def _private(paths: StatePaths) -> Check:
    try:
        check_private(paths)
    except (AgentError, OSError) as error:
        return Check("key at rest", "fail", str(error))
    return Check("key at rest", "ok", "a plain file, 0600: whoever reads this disk or is root has it; not sealed")


async def _broker(config: AgentConfig, identity: Identity) -> Check:
    """A TLS handshake with this device's certificate; the broker's own answer comes when the agent runs."""
    address = f"{config.mqtt_host}:{config.mqtt_port}"
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            _, writer = await asyncio.open_connection(config.mqtt_host, config.mqtt_port, ssl=identity.tls())
            writer.close()
    except TimeoutError:
        return Check("broker", "fail", f"{address}: no answer within {CONNECT_TIMEOUT_S:g} s")
    except OSError as error:
        return Check("broker", "fail", f"{address}: {error}")
    return Check("broker", "ok", f"{address}: reachable, its certificate is from this hub's authority")


def _clock(now: float) -> Check:
    text = f"{datetime.fromtimestamp(now, UTC):%Y-%m-%d %H:%M:%SZ}"
    if now < EARLIEST:
        return Check("clock", "fail", f"{text} is in the past: signed metadata cannot be judged; set the clock")
    return Check("clock", "ok", text)


def _disk(paths: StatePaths) -> Check:
    folder = next(path for path in (paths.root, *paths.root.parents) if path.exists())
    free = shutil.disk_usage(folder).free // 2**20
    text = f"{folder}: {free} MiB free"
    if not os.access(folder, os.W_OK):
        return Check("disk", "fail", f"{text}, not writable for this user")
    return Check("disk", "ok" if free >= 256 else "warn", text)


def _memory() -> Check:
    try:
        with open("/proc/meminfo") as file:
            fields = dict(line.split(":", 1) for line in file)
        available = int(fields["MemAvailable"].split()[0]) // 1024
    except (OSError, KeyError, ValueError) as error:
        return Check("memory", "warn", f"unknown: {error}")
    return Check("memory", "ok" if available >= LOW_MEMORY_MIB else "warn", f"{available} MiB available")


def _sockets(paths: StatePaths) -> Check:
    left = MAX_SOCKET_PATH - len(os.fsencode(paths.endpoints)) - len("/.sock")
    if left < 63:
        return Check("endpoints", "warn", f"{paths.endpoints}: module names longer than {max(left, 0)} do not fit")
    return Check("endpoints", "ok", str(paths.endpoints))


async def _confinement(settings: ServingSettings) -> Check:
    """The level that a worker reaches, tried; control groups are the running agent's, and left alone."""
    possible = (await Cages.find(settings, first_uid(settings), groups=False)).possible
    text = f"{possible.level.value} ({possible.words})"
    if possible.level is not Confinement.ISOLATED:
        text += f"; not higher: {'; '.join(possible.why_not_higher) or 'no reason found'}"
    if not possible.level.reaches(settings.floor):
        return Check("confinement", "fail", f"{text}; modules need {settings.floor.value} here and are not run")
    return Check("confinement", "ok" if possible.level.reaches(Confinement.CONFINED) else "warn", text)
