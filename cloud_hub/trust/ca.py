"""The hub's two certificate authorities: one for its own servers, one for devices (and the hub's MQTT client).

X.509 with ECDSA P-256. A device's request gives nothing but its public key: name, lifetime and extensions are ours.
Certificates of devices are short-lived and renewed; those that end early stand in the list that the broker reads. What
belongs on it, and when it is written anew, is the affair of `revocations`: a list that has expired locks out every
device. Called by `trust.setup` (makes both authorities), `trust.issuer`, `revocations` and the API (CA, PEM).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from cloud_hub.errors import Unprocessable
from cloud_hub.trust.keys import write_private
from modules.bundle import sha256_hex
from modules.enrolment import MAX_CSR_CHARS
from modules.targets import check_device_id

HUB_CLIENT_NAME = "_hub"  # no device id holds an underscore, so no device certificate can carry this name
AUTHORITY_LIFE = timedelta(days=3650)
SERVER_LIFE = timedelta(days=825)
DEVICE_LIFE = timedelta(days=30)
CRL_LIFE = timedelta(days=30)
PROBE_LIFE = timedelta(minutes=5)
# Clocks differ; a certificate must not lie in anybody's future. Short-lived ones are dated back by a part of it.
BACKDATE = timedelta(days=1)
BACKDATE_PART = 10

_USAGE_NONE = dict.fromkeys(
    (
        "digital_signature",
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "key_cert_sign",
        "crl_sign",
        "encipher_only",
        "decipher_only",
    ),
    False,
)


@dataclass(frozen=True)
class Identity:
    """A certificate with its private key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def pem(self) -> str:
        return self.certificate.public_bytes(Encoding.PEM).decode()

    @property
    def key_pem(self) -> bytes:
        return self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    def write(self, certificate: Path, key: Path) -> None:
        """Both files with mode 0600."""
        write_private(certificate, self.pem.encode())
        write_private(key, self.key_pem)

    @classmethod
    def load(cls, certificate: Path, key: Path) -> Identity:
        private = load_pem_private_key(key.read_bytes(), None)
        if not isinstance(private, ec.EllipticCurvePrivateKey):
            raise ValueError(f"{key.name}: expected an elliptic curve key, got {type(private).__name__}")
        return cls(x509.load_pem_x509_certificate(certificate.read_bytes()), private)


@dataclass(frozen=True)
class Revoked:
    """One line of a revocation list. `at` is seconds since the epoch."""

    serial: int
    at: float


def new_authority(name: str, now: float) -> Identity:
    """A self-signed CA that may sign leaves only."""
    key = ec.generate_private_key(ec.SECP256R1())
    builder = _builder(_name(name), _name(name), key.public_key(), now, AUTHORITY_LIFE)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(
        x509.KeyUsage(**{**_USAGE_NONE, "key_cert_sign": True, "crl_sign": True}), critical=True
    )
    return Identity(builder.sign(key, hashes.SHA256()), key)


def new_server(authority: Identity, names: Iterable[str], now: float) -> Identity:
    """The hub's own servers: HTTPS API and broker, under every name and address in `names`."""
    key = ec.generate_private_key(ec.SECP256R1())
    wanted = tuple(dict.fromkeys(names))
    leaf = _leaf(authority, wanted[0], key.public_key(), now, SERVER_LIFE, ExtendedKeyUsageOID.SERVER_AUTH)
    leaf = leaf.add_extension(x509.SubjectAlternativeName([_general_name(name) for name in wanted]), critical=False)
    return Identity(leaf.sign(authority.key, hashes.SHA256()), key)


def new_hub_client(authority: Identity, now: float, name: str = HUB_CLIENT_NAME) -> Identity:
    """The hub's own MQTT client, or that of one of its replicas."""
    key = ec.generate_private_key(ec.SECP256R1())
    leaf = _leaf(authority, name, key.public_key(), now, SERVER_LIFE, ExtendedKeyUsageOID.CLIENT_AUTH)
    return Identity(leaf.sign(authority.key, hashes.SHA256()), key)


class CertificateAuthority:
    """Issues and revokes device certificates. `crl` is the file that the broker reads."""

    def __init__(
        self, devices: Identity, server_ca: x509.Certificate, crl: Path, device_life: timedelta = DEVICE_LIFE
    ) -> None:
        self._devices = devices
        self._server_ca = server_ca
        self._crl = crl
        self._device_life = device_life

    @classmethod
    def load(
        cls, device_ca: tuple[Path, Path], server_ca: Path, crl: Path, device_life: timedelta = DEVICE_LIFE
    ) -> CertificateAuthority:
        """`device_ca` is the certificate's file and the key's; `server_ca` the certificate's."""
        server = x509.load_pem_x509_certificate(server_ca.read_bytes())
        return cls(Identity.load(*device_ca), server, crl, device_life)

    @property
    def device_ca(self) -> x509.Certificate:
        return self._devices.certificate

    @property
    def server_ca_pem(self) -> str:
        """What clients of the API and the broker verify against."""
        return self._server_ca.public_bytes(Encoding.PEM).decode()

    @property
    def server_ca_sha256(self) -> str:
        """Digest of the DER form: what a claim token carries."""
        return sha256_hex(self._server_ca.public_bytes(Encoding.DER))

    def issue_device(self, csr_pem: str, device: str, now: float) -> str:
        """A client certificate (PEM) for `device`.

        Raises Unprocessable `csr-invalid` unless the request is signed by its own P-256 key and names this device.
        """
        key = check_request(csr_pem, check_device_id(device))
        leaf = _leaf(self._devices, device, key, now, self._device_life, ExtendedKeyUsageOID.CLIENT_AUTH)
        certificate = leaf.sign(self._devices.key, hashes.SHA256())
        return certificate.public_bytes(Encoding.PEM).decode()

    def issue_probe(self, device: str, now: float) -> Identity:
        """A few minutes' identity of that name, with which the hub takes the device's place at the broker."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = check_device_id(device)
        leaf = _leaf(self._devices, name, key.public_key(), now, PROBE_LIFE, ExtendedKeyUsageOID.CLIENT_AUTH)
        return Identity(leaf.sign(self._devices.key, hashes.SHA256()), key)

    def write_crl(self, entries: Iterable[Revoked], now: float, life: timedelta = CRL_LIFE, more: bytes = b"") -> None:
        """Puts a new list in the place of the old one. `more` are lists of other authorities, PEM."""
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self._devices.certificate.subject)
            .last_update(_time(now) - min(BACKDATE, life / BACKDATE_PART))
            .next_update(_time(now) + life)
        )
        for entry in entries:
            one = x509.RevokedCertificateBuilder().serial_number(entry.serial).revocation_date(_time(entry.at))
            builder = builder.add_revoked_certificate(one.build())
        crl = builder.sign(self._devices.key, hashes.SHA256())
        write_private(self._crl, crl.public_bytes(Encoding.PEM) + more)


def check_request(csr_pem: str, device: str) -> ec.EllipticCurvePublicKey:
    """The public key of a certificate request in which everything holds. Raises Unprocessable `csr-invalid`."""
    if len(csr_pem) > MAX_CSR_CHARS:
        raise _refused(device, f"expected at most {MAX_CSR_CHARS} characters, got {len(csr_pem)}")
    try:
        request = x509.load_pem_x509_csr(csr_pem.encode())
        key = request.public_key()
        names = [str(name.value) for name in request.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
        signed = request.is_signature_valid
    except Exception as error:
        # The parser meets hostile bytes here and has many ways to say no (ValueError, UnsupportedAlgorithm, ...).
        raise _refused(device, "expected a certificate request in PEM, got something that does not parse") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise _refused(device, f"expected an ECDSA P-256 key, got {type(key).__name__.removesuffix('PublicKey')}")
    if not signed:
        raise _refused(device, "expected a request signed by its own key, got a signature that does not verify")
    if names != [device]:
        raise _refused(device, f"expected the common name {device}, got {', '.join(names)[:80] or 'none'}")
    return key


def _refused(device: str, why: str) -> Unprocessable:
    return Unprocessable("csr-invalid", f"certificate request of {device}: {why}; no certificate issued", device=device)


def _leaf(
    authority: Identity,
    name: str,
    key: ec.EllipticCurvePublicKey,
    now: float,
    life: timedelta,
    usage: x509.ObjectIdentifier,
) -> x509.CertificateBuilder:
    issuer = authority.certificate
    ends = min(life, issuer.not_valid_after_utc - _time(now))
    signer = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    builder = _builder(_name(name), issuer.subject, key, now, ends)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(x509.KeyUsage(**{**_USAGE_NONE, "digital_signature": True}), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
    return builder.add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(signer), critical=False)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: float, life: timedelta
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(_time(now) - min(BACKDATE, life / BACKDATE_PART))
        .not_valid_after(_time(now) + life)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(int(seconds), UTC)
