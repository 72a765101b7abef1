"""This device's key and certificate: made here, kept here (0600), used for TLS and to sign reports.

The key never leaves the device; only a CSR does. A renewal puts the new key and certificate into `identity/next/` and,
once they have connected, into the place of the old ones by two renames: whatever stands there after a power cut, one
whole identity does. Called by `enrol`, `link`, `report`, `renew` and `doctor`.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from agent.config import StatePaths
from agent.errors import ConfigError
from agent.files import sync_folder

LONG_AGO = datetime.fromtimestamp(0, UTC)


@dataclass(frozen=True)
class Identity:
    """An enrolled device. `not_before` and `not_after` are the bounds of the certificate (UTC)."""

    device: str
    key: ec.EllipticCurvePrivateKey
    not_after: datetime
    paths: StatePaths
    not_before: datetime = LONG_AGO
    serial: int = 0
    certificate_file: Path = Path()
    key_file: Path = Path()

    @classmethod
    def load(cls, paths: StatePaths) -> Identity:
        """What this device is now. Raises ConfigError when there is nothing, or nothing that belongs together."""
        try:
            return cls.read(paths, paths.certificate, paths.key)
        except ConfigError:
            # The power went between the two renames of a renewal, see `keep_next`: the key is the new one already.
            if not paths.next_certificate.exists() or not paths.key.exists():
                raise
            try:
                return cls.read(paths, paths.next_certificate, paths.key)
            except ConfigError:
                pass
            raise

    @classmethod
    def load_next(cls, paths: StatePaths) -> Identity | None:
        """The new identity that waits to be used, when it is whole."""
        try:
            return cls.read(paths, paths.next_certificate, paths.next_key)
        except ConfigError:
            return None

    @classmethod
    def read(cls, paths: StatePaths, certificate_file: Path, key_file: Path) -> Identity:
        """Raises ConfigError when a file is missing, or when key and certificate do not belong together."""
        try:
            key = serialization.load_pem_private_key(key_file.read_bytes(), password=None)
            certificate = x509.load_pem_x509_certificate(certificate_file.read_bytes())
        except FileNotFoundError as error:
            raise ConfigError(f"{error.filename}: this device is not enrolled yet", "not-enrolled") from error
        except (OSError, ValueError, TypeError) as error:
            raise ConfigError(f"{paths.identity}: {error}") from error
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
            raise ConfigError(f"{certificate_file}: expected the certificate of {key_file}, got one of another key")
        return cls(
            device=common_name(certificate),
            key=key,
            not_after=certificate.not_valid_after_utc,
            paths=paths,
            not_before=certificate.not_valid_before_utc,
            serial=certificate.serial_number,
            certificate_file=certificate_file,
            key_file=key_file,
        )

    def sign(self, data: bytes) -> bytes:
        """ECDSA P-256 with SHA-256, DER."""
        return self.key.sign(data, ec.ECDSA(hashes.SHA256()))

    def tls(self) -> ssl.SSLContext:
        """TLS 1.3 with this device's certificate, trusting only the hub's CA, host name checked. Reads the files."""
        context = pinned_tls(self.paths.server_ca.read_text())
        context.load_cert_chain(self.certificate_file, self.key_file)
        return context


class Credentials:
    """The identity in use. During a renewal `trial` is shown to the broker instead, and nothing is signed with it."""

    def __init__(self, identity: Identity) -> None:
        self.current = identity
        self.trial: Identity | None = None
        self.shown: Identity | None = None  # with which the last connection was begun

    @property
    def device(self) -> str:
        return self.current.device

    def sign(self, data: bytes) -> bytes:
        """As `Identity.sign`, with the key that the hub knows or has given a certificate."""
        return self.current.sign(data)

    def tls(self) -> ssl.SSLContext:
        """Called for every connection."""
        self.shown = self.trial or self.current
        return self.shown.tls()


def keep_next(paths: StatePaths, between: Callable[[], None] = lambda: None) -> Identity:
    """Puts the new identity into the place of the old one; finishes what a power cut has interrupted.

    First the key, then the certificate, each on the disk before the next is touched: in between, the key belongs to the
    certificate in `next`, where `Identity.load` finds it. `between` is for tests of power cuts. Raises ConfigError,
    OSError.
    """
    if Identity.load_next(paths) is not None:
        os.replace(paths.next_key, paths.key)
        sync_folder(paths.identity)
        sync_folder(paths.next)
        between()
    if paths.next_certificate.exists():
        Identity.read(paths, paths.next_certificate, paths.key)
        os.replace(paths.next_certificate, paths.certificate)
        sync_folder(paths.identity)
    forget_next(paths)
    return Identity.load(paths)


def settle(paths: StatePaths) -> Identity:
    """At the start: what this device is, with an interrupted exchange finished. Raises ConfigError, OSError."""
    identity = Identity.load(paths)
    return keep_next(paths) if identity.certificate_file == paths.next_certificate else identity


def forget_next(paths: StatePaths) -> None:
    """Whatever stands in `next`."""
    for file in (paths.next_certificate, paths.next_key):
        file.unlink(missing_ok=True)


def pinned_tls(server_ca: str) -> ssl.SSLContext:
    """TLS 1.3 that trusts one CA (PEM) and nothing of the system's, host name checked."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(cadata=server_ca)
    return context


def make_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def make_csr(key: ec.EllipticCurvePrivateKey, device: str) -> str:
    """A certificate request (PEM) with the device id as its only name."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, device)])
    request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM).decode()


def common_name(certificate: x509.Certificate) -> str:
    """The device id in a certificate. Raises ConfigError when there is not exactly one name."""
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    if len(names) != 1 or not isinstance(names[0].value, str):
        raise ConfigError(f"certificate: expected one common name, got {len(names)}")
    return names[0].value
