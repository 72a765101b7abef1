"""Devices of one fleet that know each other by their certificates: mutual TLS between a gateway and its neighbours.

A device's certificate is one for clients, and its name is a device id, not a host: so whoever connects checks the other
side's certificate as a client's, by the fleet's device authorities, after the handshake (which proves that the other
side has its key) and before anything is sent. The authorities come with the enrolment and with each renewal. The hub's
servers have another one, which is not believed here. Used by `transfer.gateway` and `transfer.gateway_source`.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import (
    ClientVerifier,
    Criticality,
    ExtensionPolicy,
    Policy,
    PolicyBuilder,
    Store,
    VerificationError,
)

from agent.config import StatePaths
from agent.errors import ConfigError
from agent.files import write_durably
from agent.identity import Identity, common_name
from modules.errors import TargetError
from modules.targets import check_device_id

MAX_CA_CHARS = 64 * 1024

_log = logging.getLogger(__name__)


def keep_device_ca(paths: StatePaths, pem: str) -> None:
    """Writes down the fleet's authorities where they are any; else what is known stays. Raises OSError."""
    if not pem:
        return  # a hub of before 0.2
    try:
        _authorities(pem, paths.server_ca.read_text())
    except ConfigError as error:
        _log.warning("authorities of devices not kept: why=%s", error)
        return
    if not paths.device_ca.exists() or paths.device_ca.read_text() != pem:
        write_durably(paths.device_ca, pem.encode())


def gateway_tls(paths: StatePaths) -> ssl.SSLContext:
    """TLS 1.3 for a gateway, which lets in devices of this fleet only. Raises ConfigError (no-device-ca), OSError."""
    identity = Identity.load(paths)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(identity.certificate_file, identity.key_file)
    device_authorities(paths)  # says what is wrong with them
    context.load_verify_locations(cadata=paths.device_ca.read_text())
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def neighbour_tls(paths: StatePaths) -> ssl.SSLContext:
    """TLS 1.3 towards a gateway; the other side is to be checked by `check_neighbour`. Raises ConfigError, OSError."""
    identity = Identity.load(paths)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    # OpenSSL would ask for a server's certificate with a host's name; see above for who checks instead.
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.load_cert_chain(identity.certificate_file, identity.key_file)
    return context


def check_neighbour(
    authorities: Sequence[x509.Certificate], device: str = "", now: Callable[[], datetime] = lambda: datetime.now(UTC)
) -> Callable[[ssl.SSLSocket], None]:
    """A check of a new connection: the other side is a device of this fleet, and `device` where that is given.

    What it gives raises SSLCertVerificationError.
    """
    store = Store(list(authorities))

    def check(sock: ssl.SSLSocket) -> None:
        shown = sock.getpeercert(binary_form=True)
        if shown is None:
            raise ssl.SSLCertVerificationError("it showed no certificate")
        try:
            certificate = x509.load_der_x509_certificate(shown)
            _verifier(store, now()).verify(certificate, [])
            name = check_device_id(common_name(certificate))
        except (VerificationError, ValueError, ConfigError, TargetError) as error:
            raise ssl.SSLCertVerificationError(f"not a device of this fleet: {error}") from error
        if device and name != device:
            raise ssl.SSLCertVerificationError(f"expected the device {device}, got {name}")

    return check


def device_authorities(paths: StatePaths) -> list[x509.Certificate]:
    """The fleet's authorities. Raises ConfigError (no-device-ca) where they are not known yet, OSError."""
    try:
        pem = paths.device_ca.read_text()
    except FileNotFoundError as error:
        text = f"{paths.device_ca}: the authorities of devices are not known yet; they come with the next renewal"
        raise ConfigError(text, "no-device-ca") from error
    return _authorities(pem, paths.server_ca.read_text())


def _verifier(store: Store, now: datetime) -> ClientVerifier:
    """RFC 5280, one step deep. A device's name stands in its subject, so no alternative name is asked for."""
    authority = ExtensionPolicy.permit_all().require_present(x509.BasicConstraints, Criticality.AGNOSTIC, None)
    leaf = ExtensionPolicy.permit_all().require_present(x509.ExtendedKeyUsage, Criticality.AGNOSTIC, _for_clients)
    builder = PolicyBuilder().store(store).time(now).max_chain_depth(1)
    return builder.extension_policies(ca_policy=authority, ee_policy=leaf).build_client_verifier()


def _for_clients(_policy: Policy, _certificate: x509.Certificate, usage: x509.ExtendedKeyUsage) -> None:
    if ExtendedKeyUsageOID.CLIENT_AUTH not in usage:
        raise ValueError("expected a client's certificate")


def _authorities(pem: str, server_ca: str) -> list[x509.Certificate]:
    """Raises ConfigError (device-ca)."""
    if len(pem) > MAX_CA_CHARS:
        raise ConfigError(f"authorities of devices: expected at most {MAX_CA_CHARS} characters", "device-ca")
    try:
        found = x509.load_pem_x509_certificates(pem.encode())
        server = x509.load_pem_x509_certificate(server_ca.encode())
        if not all(one.extensions.get_extension_for_class(x509.BasicConstraints).value.ca for one in found):
            raise ConfigError("authorities of devices: expected certificates of authorities only", "device-ca")
    except (ValueError, x509.ExtensionNotFound) as error:
        raise ConfigError(f"authorities of devices: expected certificates in PEM: {error}", "device-ca") from error
    if any(one.public_key() == server.public_key() for one in found):
        raise ConfigError("authorities of devices: expected another than the hub's servers have", "device-ca")
    return found
