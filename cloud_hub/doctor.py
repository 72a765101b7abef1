"""What a hub directory needs to run, checked one by one without changing anything. Called by `cli`."""

from __future__ import annotations

import asyncio
import importlib.util
import shutil
import socket
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from cryptography import x509

from cloud_hub.broker import find_mosquitto
from cloud_hub.clock import Clock, system_clock
from cloud_hub.config import HubConfig, HubPaths
from cloud_hub.doctor_blobs import blobs
from cloud_hub.doctor_database import database, patches_built
from cloud_hub.doctor_outward import events_outward
from cloud_hub.errors import HubError
from cloud_hub.findings import Finding, State
from cloud_hub.hardening import exposed, sealed
from cloud_hub.revocations import ALARM_BELOW, read_list
from cloud_hub.store.address import database_url
from cloud_hub.store.engine import Store
from cloud_hub.trust.keys import ONLINE, offline
from cloud_hub.trust.standing import RoleState, read_states
from firmware_profiles.catalog import load

__all__ = ["Finding", "examine"]
SOON_DAYS: Final = 30.0
LOW_DISK_BYTES: Final = 1024**3


def examine(paths: HubPaths, clock: Clock = system_clock) -> list[Finding]:
    """Every check that makes sense; without settings that can be read there is only that one."""
    try:
        config = HubConfig.load(paths.root)
    except HubError as error:
        return [Finding("settings", "problem", error.message)]
    checks: list[tuple[str, Callable[[], Finding]]] = [
        ("device profiles", lambda: _profiles(config)),
        ("private files", lambda: _private(paths)),
        ("keys at rest", lambda: _at_rest(paths)),
        ("signing keys", lambda: _keys(paths, config)),
        ("certificates", lambda: _certificates(paths, config, clock())),
        ("revocation list", lambda: _revocations(paths, clock())),
        ("database", lambda: database(config, paths)),
        ("files", lambda: blobs(config, paths)),
        ("patches", lambda: patches_built(config, paths)),
        ("signed metadata", lambda: _signed_metadata(paths, config, clock())),
        ("files elsewhere", lambda: _elsewhere(config)),
        ("events to others", lambda: events_outward(config)),
        ("broker", lambda: _broker(config)),
        ("ports", lambda: _ports(config)),
        ("disk", lambda: _disk(paths)),
    ]
    return [Finding("settings", "ok", str(paths.config)), *(_checked(subject, check) for subject, check in checks)]


def _checked(subject: str, check: Callable[[], Finding]) -> Finding:
    try:
        return check()
    except Exception as error:  # a check that fails is a finding, and the others still count
        return Finding(subject, "problem", f"{type(error).__name__}: {error}")


def _profiles(config: HubConfig) -> Finding:
    if config.profiles and not Path(config.profiles).is_dir():
        return Finding("device profiles", "problem", f"no folder {config.profiles}: make it or empty the setting")
    return Finding("device profiles", "ok", f"{len(load(config.profiles_folder))} known")


def _private(paths: HubPaths) -> Finding:
    if found := exposed(paths):
        return Finding("private files", "problem", f"others may read {found[0]}: chmod 600 it, then replace the key")
    return Finding("private files", "ok", "no key or token can be read by others")


def _at_rest(paths: HubPaths) -> Finding:
    """How well what is on the disk is kept from somebody who has the disk."""
    others = (paths.device_ca_key, paths.capability_key, paths.outward_key)
    private = [*(paths.keys / f"{name}.pem" for name in ONLINE), *others]
    plain = [path.name for path in private if path.is_file()]
    if plain:
        return Finding("keys at rest", "note", f"plain files, 0600: {', '.join(plain)}; mooring-hub seal seals them")
    return Finding("keys at rest", "ok", "sealed to this machine by systemd-creds; TLS keys are plain files, 0600")


def _keys(paths: HubPaths, config: HubConfig) -> Finding:
    files = [paths.keys / f"{name}.pem" for name in ONLINE]
    missing = [path.stem for path in files if not path.is_file() and not sealed(path, paths).is_file()]
    if missing:
        return Finding("signing keys", "problem", f"missing in {paths.keys}: {', '.join(missing)}; restore a backup")
    held = [name for name in offline(config.publisher) if (paths.keys / f"{name}.pem").is_file()]
    if held:
        return Finding("signing keys", "note", "development hub: root and publisher keys lie on this machine")
    return Finding("signing keys", "ok", "online keys only; root and publisher keys are elsewhere")


def _certificates(paths: HubPaths, config: HubConfig, now: float) -> Finding:
    moment = datetime.fromtimestamp(now, UTC)
    for path in (paths.server_ca_crt, paths.device_ca_crt, paths.server_crt, paths.hub_client_crt):
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
        days = (certificate.not_valid_after_utc - moment).total_seconds() / 86_400
        if days < SOON_DAYS:
            state: State = "note" if days > 0 else "problem"
            return Finding("certificates", state, f"{path.name} ends in {days:.0f} days")
    names = x509.load_pem_x509_certificate(paths.server_crt.read_bytes()).extensions
    alternatives = names.get_extension_for_class(x509.SubjectAlternativeName).value
    if config.public_host not in {str(name.value) for name in alternatives}:
        return Finding("certificates", "problem", f"server.crt does not name {config.public_host} (public_host)")
    return Finding("certificates", "ok", f"valid, for {config.public_host}")


def _revocations(paths: HubPaths, now: float) -> Finding:
    """A list that has ended locks out every device: the broker refuses what it cannot check."""
    state, mend = read_list(paths.crl, now), f"write it anew: mooring-hub crl {paths.root}"
    if state is None:
        return Finding("revocation list", "problem", f"{paths.crl} cannot be read: no device can connect; {mend}")
    days = (state.ends_at - now) / 86_400
    if days <= 0:
        return Finding("revocation list", "problem", f"ended {-days:.1f} days ago: no device can connect; {mend}")
    if state.left < ALARM_BELOW:
        return Finding("revocation list", "note", f"ends in {days:.1f} days and was not written anew; {mend}")
    return Finding("revocation list", "ok", f"good for {days:.0f} days; a running hub writes it anew")


def _signed_metadata(paths: HubPaths, config: HubConfig, now: float) -> Finding:
    if not config.uses_postgres and not paths.database.is_file():  # opening it would make an empty one
        return Finding("signed metadata", "problem", f"no database {paths.database}: restore a backup")
    warnings = {state: warning for state in asyncio.run(_states(paths, config)) if (warning := state.warning(now))}
    if not warnings:
        return Finding("signed metadata", "ok", "roots, targets and publishers last for weeks")
    expired = any((state.expires_at or now) <= now and not state.online for state in warnings)
    return Finding("signed metadata", "problem" if expired else "note", "; ".join(warnings.values()))


async def _states(paths: HubPaths, config: HubConfig) -> list[RoleState]:
    store = await Store.open(database_url(config, paths), migrate=False)
    try:
        async with store.read() as connection:
            return await read_states(connection)
    finally:
        await store.close()


def _elsewhere(config: HubConfig) -> Finding:
    settings = config.transfer.s3
    if not settings.bucket:
        return Finding("files elsewhere", "ok", "no bucket is set: files come from this hub")
    if importlib.util.find_spec("obstore") is None:
        return Finding("files elsewhere", "problem", "no library for it: pip install 'mooring[s3]'")
    key_id = settings.load_credentials().access_key_id
    return Finding("files elsewhere", "ok", f"bucket {settings.bucket} at {settings.endpoint}, as {key_id}")


def _broker(config: HubConfig) -> Finding:
    if config.broker:
        return Finding("broker", "ok", f"uses {config.broker}")
    return Finding("broker", "ok", f"own child, {find_mosquitto()}")


def _ports(config: HubConfig) -> Finding:
    wanted = {"API": config.api_port} | ({} if config.broker else {"broker": config.mqtt_port})
    taken = [f"{name} {port}" for name, port in wanted.items() if _answers(port)]
    if taken:
        return Finding("ports", "note", f"something listens already ({', '.join(taken)}): this hub, or it must go")
    return Finding("ports", "ok", "free: " + ", ".join(f"{name} {port}" for name, port in wanted.items()))


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _disk(paths: HubPaths) -> Finding:
    free = shutil.disk_usage(paths.root).free
    if free < LOW_DISK_BYTES:
        return Finding("disk", "problem", f"{free // 2**20} MiB free at {paths.root}: make room")
    return Finding("disk", "ok", f"{free // 2**30} GiB free")
