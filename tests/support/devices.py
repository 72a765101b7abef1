"""A device as the hub meets it: its own key, a request, what enrolment gave it, its TLS context, its signed reports."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from firmware_profiles.profile import DeviceProfile
from modules.enrolment import EnrollAnswer
from modules.messages import DeviceReport, ModuleReport, SignedReport, UpdateReport, encode_report

PROFILE = "generic-x86_64"


def make_request(common_name: str, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | None = None) -> str:
    """A certificate request (PEM) that also asks to be a CA and to have another name, which a good CA ignores."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    )
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName("_hub")]), critical=False)
    request = builder.sign(key or ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
    return request.public_bytes(Encoding.PEM).decode()


@dataclass(frozen=True)
class EnrolledDevice:
    """A device with everything that enrolment gives it."""

    key: ec.EllipticCurvePrivateKey
    answer: EnrollAnswer

    @property
    def id(self) -> str:
        return self.answer.device

    @property
    def key_pem(self) -> str:
        return self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()

    def write(self, folder: Path) -> tuple[Path, Path, Path]:
        """device.crt, device.key and server-ca.crt in `folder`, in this order."""
        folder.mkdir(parents=True, exist_ok=True)
        paths = folder / "device.crt", folder / "device.key", folder / "server-ca.crt"
        for path, text in zip(paths, (self.answer.certificate, self.key_pem, self.answer.server_ca), strict=True):
            path.write_text(text)
            path.chmod(0o600)
        return paths

    def context(self, folder: Path) -> ssl.SSLContext:
        """TLS as the device does it: this hub's server CA only, its own certificate, TLS 1.3."""
        certificate, key, server_ca = self.write(folder / self.id)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_verify_locations(server_ca)
        context.load_cert_chain(certificate, key)
        return context

    def sign(self, report: DeviceReport) -> SignedReport:
        body = encode_report(report)
        return SignedReport(body, self.key.sign(body, ec.ECDSA(hashes.SHA256())))


def make_report(
    device: str, counter: int = 1, director_version: int = 0, modules: tuple[ModuleReport, ...] = ()
) -> DeviceReport:
    """A report of a device that is well."""
    return DeviceReport(
        device=device,
        counter=counter,
        at=1_700_000_000.0,
        agent_version="0.1.0",
        profile=DeviceProfile(PROFILE, "x86_64"),
        director_version=director_version,
        image_version=1,
        modules=modules,
        current=UpdateReport("idle"),
        last=UpdateReport("idle"),
    )
