"""Enrolment: a claim token in, an identity out. The key is made here and never leaves; only a request for it does.

The token holds the digest of the hub's CA, so the first connection is checked without anything being known before:
ask for the CA unverified, compare, then talk to the hub by that CA alone. Called by the command `enroll`.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import secrets
import shutil
import socket
import ssl
from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from agent.config import AgentConfig, StatePaths
from agent.errors import ConfigError, EnrolError
from agent.files import sync_folder, write_durably
from agent.https import address, exchange, refusal
from agent.identity import common_name, key_pem, make_csr, make_key, pinned_tls
from agent.neighbours import keep_device_ca
from agent.probe.device import probe, suggest
from agent.status import running
from firmware_profiles.catalog import built_in
from firmware_profiles.profile import DeviceProfile
from modules.enrolment import ClaimToken, EnrollAnswer, EnrollRequest
from modules.errors import MALFORMED, ModuleError
from modules.targets import check_device_id

_ASIDE = ".enrol-"


async def enrol(
    paths: StatePaths, hub: str, token: str, *, device: str = "", profile: str = "", replace: bool = False
) -> AgentConfig:
    """Makes this device known to the hub and writes what it needs to run. All of it, or nothing.

    `device` is by default made of the host name, `profile` by what is found here. `replace` allows an enrolled device
    to be enrolled anew; with another hub, what was known from the old one is forgotten. Raises EnrolError.
    """
    return await asyncio.to_thread(_enrol, paths, hub, token, device, profile, replace)


def _enrol(paths: StatePaths, hub: str, token: str, device: str, profile: str, replace: bool) -> AgentConfig:
    if paths.config.exists() and not replace:
        raise EnrolError(f"{paths.config}: this device is enrolled already; nothing was changed", "already-enrolled")
    if running(paths):
        raise EnrolError(f"{paths.root}: an agent runs here; stop it first. Nothing was changed", "agent-running")
    claim, device = _checked(token, device or _host_name())
    host, port = address(EnrolError, hub)
    wanted = profile or suggest()
    ca = _hub_ca(host, port, claim)
    key = make_key()
    request = _request(token.strip(), device, make_csr(key, device), wanted)
    answer = _ask_hub(host, port, ca, request)
    _check_answer(answer, device, key, claim)
    known = built_in().get(wanted) or DeviceProfile(wanted, arch="")
    config = AgentConfig(device, hub, answer.mqtt_host, answer.mqtt_port, probe(known, state=_existing(paths.root)))
    try:
        _write(paths, config, answer, key_pem(key))
    except OSError as error:
        raise EnrolError(f"{paths.root}: {error}; the token is used up, ask for a new one", "io") from error
    return config


def _checked(token: str, device: str) -> tuple[ClaimToken, str]:
    try:
        claim = ClaimToken.parse(token)
    except ModuleError as error:
        raise EnrolError(str(error), "bad-token") from error
    try:
        return claim, check_device_id(device)
    except ModuleError as error:
        raise EnrolError(f"{error}; name this device otherwise", "bad-device-id") from error


def _host_name() -> str:
    """The host's name as a device id, as near as it gets."""
    name = re.sub(r"[^a-z0-9-]+", "-", socket.gethostname().partition(".")[0].lower()).strip("-")
    return (name if len(name) >= 3 else f"device-{name}")[:63]


def _hub_ca(host: str, port: int, claim: ClaimToken) -> str:
    """The hub's CA (PEM), which must be the one that the token names. Raises EnrolError (ca-mismatch, unreachable)."""
    # Unverified on purpose: what is asked for is public, and is checked against the token's digest.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    status, body = exchange(EnrolError, host, port, context, "GET", "/api/v1/ca", None)
    if status != 200:
        raise refusal(EnrolError, host, status, body)
    try:
        pem = body.decode("ascii")
        got = hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).hexdigest()
    except ValueError as error:
        raise EnrolError(f"{host}: expected the hub's CA as PEM, got something else", "bad-answer") from error
    if got != claim.ca_sha256:
        text = f"{host}: expected the CA {claim.ca_sha256[:16]}... that the token names, got {got[:16]}..."
        raise EnrolError(f"{text}; this is another hub, or somebody in between; nothing was sent", "ca-mismatch")
    return pem


def _request(token: str, device: str, csr: str, profile: str) -> EnrollRequest:
    try:
        return EnrollRequest(token, device, csr, profile)
    except ModuleError as error:
        raise EnrolError(str(error), "bad-request") from error


def _ask_hub(host: str, port: int, ca: str, request: EnrollRequest) -> EnrollAnswer:
    status, body = exchange(
        EnrolError, host, port, pinned_tls(ca), "POST", "/api/v1/enroll", msgspec.json.encode(request)
    )
    if status not in (200, 201):
        raise refusal(EnrolError, host, status, body)
    try:
        return msgspec.json.decode(body, type=EnrollAnswer)
    except MALFORMED as error:
        raise EnrolError(f"{host}: expected an enrolment answer, got something else: {error}", "bad-answer") from error


def _check_answer(answer: EnrollAnswer, device: str, key: ec.EllipticCurvePrivateKey, claim: ClaimToken) -> None:
    """Is it for this device and this key, and does it hold what an agent needs? Raises EnrolError (bad-answer)."""
    try:
        certificate = x509.load_pem_x509_certificate(answer.certificate.encode())
        named = common_name(certificate)
        ca = hashlib.sha256(ssl.PEM_cert_to_DER_cert(answer.server_ca)).hexdigest()
    except (ValueError, ConfigError) as error:
        raise EnrolError(f"hub's answer: {error}; nothing was written", "bad-answer") from error
    checks = (
        ("device", device, answer.device),
        ("certificate name", device, named),
        ("certificate of this device's key", True, certificate.public_key() == key.public_key()),
        ("server CA", claim.ca_sha256, ca),
        ("image root", "root", _role(answer.image_root)),
        ("director root", "root", _role(answer.director_root)),
    )
    for what, expected, got in checks:
        if got != expected:
            text = f"hub's answer, {what}: expected {expected}, got {str(got)[:80]}; nothing was written"
            raise EnrolError(text, "bad-answer")


class _Signed(msgspec.Struct):
    role: str = msgspec.field(name="_type")


class _Metadata(msgspec.Struct):
    signed: _Signed


def _role(text: str) -> str:
    """What kind of TUF metadata a text is; its signatures are checked at the first refresh."""
    try:
        return msgspec.json.decode(text, type=_Metadata).signed.role
    except MALFORMED:
        return "no metadata"


def _existing(folder: Path) -> Path:
    """The nearest folder above that is there already: the file system that the state will be on."""
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())


def _write(paths: StatePaths, config: AgentConfig, answer: EnrollAnswer, key: bytes) -> None:
    """Everything aside first, each folder by one rename, the configuration last: without it nothing is enrolled."""
    paths.root.mkdir(mode=0o711, parents=True, exist_ok=True)
    for left in paths.root.glob(f"{_ASIDE}*"):  # of an enrolment that lost its power
        shutil.rmtree(left, ignore_errors=True)
    if _known_roots(paths) not in (set(), {answer.image_root, answer.director_root}):
        _forget_hub(paths)
    aside = paths.root / f"{_ASIDE}{secrets.token_hex(4)}"
    fresh = StatePaths(aside)
    try:
        for folder in (fresh.root, fresh.identity, fresh.roots):
            folder.mkdir(mode=0o700)
        write_durably(fresh.key, key)
        write_durably(fresh.certificate, answer.certificate.encode())
        write_durably(fresh.server_ca, answer.server_ca.encode())
        keep_device_ca(fresh, answer.device_ca)
        write_durably(fresh.roots / "image.root.json", answer.image_root.encode())
        write_durably(fresh.roots / "director.root.json", answer.director_root.encode())
        for new, old in ((fresh.identity, paths.identity), (fresh.roots, paths.roots)):
            shutil.rmtree(old, ignore_errors=True)
            new.rename(old)
        sync_folder(paths.root)
        write_durably(paths.config, config.to_toml().encode())
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _known_roots(paths: StatePaths) -> set[str]:
    return {file.read_text() for file in paths.roots.glob("*.root.json")}


def _forget_hub(paths: StatePaths) -> None:
    """Versions, release counters and what waits to be sent mean nothing to another hub."""
    paths.config.unlink(missing_ok=True)
    shutil.rmtree(paths.metadata, ignore_errors=True)
    for suffix in ("", "-wal", "-shm"):
        paths.database.with_name(paths.database.name + suffix).unlink(missing_ok=True)
