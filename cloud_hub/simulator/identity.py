"""Who a simulated device is: its id, certificate and key, small enough that ten thousand fit into a few megabytes.

The key is kept in the form that loads quickest (SEC 1, DER) and loaded for each signature. `Tls` is one context for all
devices: OpenSSL copies what it holds when a connection is made, so each gets the certificate that was loaded last.
"""

from __future__ import annotations

import os
import socket
import ssl
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_der_private_key
from cryptography.x509.oid import NameOID


@dataclass(frozen=True, slots=True)
class Identity:
    """`certificate` is DER, `key` the private key (SEC 1, DER)."""

    device: str
    certificate: bytes
    key: bytes

    def sign(self, data: bytes) -> bytes:
        """ECDSA, SHA-256, DER."""
        return load_key(self.key).sign(data, ec.ECDSA(hashes.SHA256()))

    @property
    def pem(self) -> bytes:
        """Key, then certificate: OpenSSL reads both from one file, and finds the key quickest when it comes first."""
        key = ssl.DER_cert_to_PEM_cert(self.key).replace("CERTIFICATE", "EC PRIVATE KEY")
        return (key + ssl.DER_cert_to_PEM_cert(self.certificate)).encode()


def new_key() -> bytes:
    """A fresh P-256 key."""
    return ec.generate_private_key(ec.SECP256R1()).private_bytes(
        Encoding.DER, PrivateFormat.TraditionalOpenSSL, NoEncryption()
    )


def load_key(key: bytes) -> ec.EllipticCurvePrivateKey:
    """Raises ValueError for another kind of key."""
    loaded = load_der_private_key(key, None)
    if not isinstance(loaded, ec.EllipticCurvePrivateKey):
        raise ValueError(f"expected an elliptic curve key, got {type(loaded).__name__}")
    return loaded


def request(device: str, key: bytes) -> str:
    """The certificate request (PEM) of an agent that enrols."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, device)])
    made = x509.CertificateSigningRequestBuilder().subject_name(name).sign(load_key(key), hashes.SHA256())
    return made.public_bytes(Encoding.PEM).decode()


class Tls:
    """TLS 1.3 with this hub's server CA only, for all devices of the process. To be closed.

    No session tickets: an agent makes a new context for each connection, so it never resumes either.
    """

    def __init__(self, server_ca: str) -> None:
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._context.minimum_version = ssl.TLSVersion.TLSv1_3
        self._context.options |= ssl.OP_NO_TICKET
        self._context.load_verify_locations(cadata=server_ca)
        self._file = os.memfd_create("mooring-device")  # the ssl module takes certificates from files only

    def wrap(self, plain: socket.socket, identity: Identity, host: str) -> ssl.SSLSocket:
        """A connected socket, before its handshake. Raises ssl.SSLError, OSError."""
        pem = identity.pem
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, pem, 0)
        self._context.load_cert_chain(f"/proc/self/fd/{self._file}")
        return self._context.wrap_socket(plain, server_hostname=host, do_handshake_on_connect=False)

    def close(self) -> None:
        os.close(self._file)
