"""A small X.509 world for tests: CAs, server and client certificates, made with `cryptography` in memory.

Key identifiers and key usage are there because Python 3.13's default contexts verify strictly (RFC 5280).
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID


@dataclass(frozen=True)
class Pair:
    """A key and its certificate."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @property
    def pem(self) -> str:
        return self.certificate.public_bytes(serialization.Encoding.PEM).decode()

    @property
    def key_pem(self) -> str:
        return self.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ).decode()

    def write(self, folder: Path, name: str) -> tuple[Path, Path]:
        """`name`.crt and `name`.key below the folder."""
        folder.mkdir(parents=True, exist_ok=True)
        certificate, key = folder / f"{name}.crt", folder / f"{name}.key"
        certificate.write_text(self.pem)
        key.write_text(self.key_pem)
        key.chmod(0o600)
        return certificate, key


def make_ca(name: str) -> Pair:
    key = ec.generate_private_key(ec.SECP256R1())
    builder = (
        _builder(name, name, key.public_key())
        .add_extension(x509.BasicConstraints(True, 0), critical=True)
        .add_extension(_ca_usage(), critical=True)
    )
    return Pair(key, builder.sign(key, hashes.SHA256()))


def make_server(ca: Pair, *names: str) -> Pair:
    """A server certificate for host names and addresses."""
    key = ec.generate_private_key(ec.SECP256R1())
    builder = (
        _issued(ca, names[0], key.public_key())
        .add_extension(x509.SubjectAlternativeName([_general(name) for name in names]), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    )
    return Pair(key, builder.sign(ca.key, hashes.SHA256()))


def make_client(ca: Pair, name: str) -> Pair:
    key = ec.generate_private_key(ec.SECP256R1())
    return Pair(key, certify(ca, name, key.public_key()))


def certify(ca: Pair, name: str, public: ec.EllipticCurvePublicKey) -> x509.Certificate:
    """A client certificate for somebody else's key."""
    builder = _issued(ca, name, public).add_extension(
        x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False
    )
    return builder.sign(ca.key, hashes.SHA256())


def _issued(ca: Pair, name: str, public: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    signer = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca.key.public_key())
    return _builder(name, _name(ca), public).add_extension(signer, critical=False)


def _ca_usage() -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )


def _builder(name: str, issuer: str, public: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(_common(name))
        .issuer_name(_common(issuer))
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )


def _common(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _name(pair: Pair) -> str:
    return str(pair.certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
