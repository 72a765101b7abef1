"""The authorities: what a certificate says is ours to decide, and a request must prove its key and its name."""

import base64
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from cryptography.x509.verification import PolicyBuilder, Store

from cloud_hub.config import HubConfig, HubPaths
from cloud_hub.errors import Unprocessable
from cloud_hub.trust.ca import CertificateAuthority, Revoked
from cloud_hub.trust.setup import create_certificates, load_authority
from modules.bundle import sha256_hex
from modules.errors import TargetError
from support.clock import SetClock
from support.devices import make_request


@pytest.fixture
def authority(hub_paths: HubPaths, clock: SetClock) -> CertificateAuthority:
    create_certificates(hub_paths, HubConfig(public_host="hub.example"), clock())
    return load_authority(hub_paths)


def load(pem: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate(pem.encode())


def test_a_device_certificate_holds_the_id_and_nothing_of_what_the_request_asked_for_beside(
    authority: CertificateAuthority, hub_paths: HubPaths, clock: SetClock
) -> None:
    certificate = load(authority.issue_device(make_request("cam-1"), "cam-1", clock()))
    assert [name.value for name in certificate.subject] == ["cam-1"]
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    with pytest.raises(x509.ExtensionNotFound):
        certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    certificate.verify_directly_issued_by(load(hub_paths.device_ca_crt.read_text()))


def test_the_servers_certificate_passes_strict_verification_under_each_of_its_names(
    authority: CertificateAuthority, hub_paths: HubPaths, clock: SetClock
) -> None:
    server = load(hub_paths.server_crt.read_text())
    for name in (x509.DNSName("hub.example"), x509.DNSName("localhost")):
        policy = (
            PolicyBuilder().store(Store([load(authority.server_ca_pem)])).time(datetime.fromtimestamp(clock(), UTC))
        )
        assert policy.build_server_verifier(name).verify(server, [])[0] == server
    addresses = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(address) for address in addresses.get_values_for_type(x509.IPAddress)] == ["127.0.0.1", "::1"]


def test_the_hub_client_has_a_name_that_no_device_can_have(
    authority: CertificateAuthority, hub_paths: HubPaths
) -> None:
    hub = load(hub_paths.hub_client_crt.read_text())
    assert hub.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value == "_hub"
    with pytest.raises(TargetError, match="device id"):
        authority.issue_device(make_request("_hub"), "_hub", 0.0)


def test_the_digest_that_tokens_carry_is_of_the_server_ca_in_der(authority: CertificateAuthority) -> None:
    assert authority.server_ca_sha256 == sha256_hex(load(authority.server_ca_pem).public_bytes(Encoding.DER))


def test_a_request_for_another_name_is_refused(authority: CertificateAuthority) -> None:
    with pytest.raises(Unprocessable, match="expected the common name cam-1, got cam-2") as caught:
        authority.issue_device(make_request("cam-2"), "cam-1", 0.0)
    assert caught.value.key == "csr-invalid"


def test_a_request_with_an_rsa_key_is_refused(authority: CertificateAuthority) -> None:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    with pytest.raises(Unprocessable, match="expected an ECDSA P-256 key, got RSA"):
        authority.issue_device(make_request("cam-1", key), "cam-1", 0.0)


def test_a_request_with_another_curve_is_refused(authority: CertificateAuthority) -> None:
    with pytest.raises(Unprocessable, match="expected an ECDSA P-256 key"):
        authority.issue_device(make_request("cam-1", ec.generate_private_key(ec.SECP384R1())), "cam-1", 0.0)


def test_a_request_whose_signature_does_not_verify_is_refused(authority: CertificateAuthority) -> None:
    der = bytearray(x509.load_pem_x509_csr(make_request("cam-1").encode()).public_bytes(Encoding.DER))
    at = der.index(b"cam-1")
    der[at : at + 5] = b"cam-2"
    lines = base64.encodebytes(bytes(der)).decode()
    forged = f"-----BEGIN CERTIFICATE REQUEST-----\n{lines}-----END CERTIFICATE REQUEST-----\n"
    with pytest.raises(Unprocessable, match="signature that does not verify"):
        authority.issue_device(forged, "cam-2", 0.0)


@pytest.mark.parametrize(
    "text", ["", "not pem", "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END-----", "x" * 20_000]
)
def test_what_is_no_request_is_refused(authority: CertificateAuthority, text: str) -> None:
    with pytest.raises(Unprocessable, match="no certificate issued"):
        authority.issue_device(text, "cam-1", 0.0)


def test_the_list_holds_what_it_is_given_and_ends_when_it_shall(
    authority: CertificateAuthority, hub_paths: HubPaths, clock: SetClock
) -> None:
    serials = [
        load(authority.issue_device(make_request(name), name, clock())).serial_number for name in ("cam-1", "cam-2")
    ]
    authority.write_crl([Revoked(serial, clock()) for serial in serials], clock(), timedelta(days=30))
    crl = x509.load_pem_x509_crl(hub_paths.crl.read_bytes())
    assert [entry.serial_number for entry in crl] == serials
    assert crl.next_update_utc is not None
    assert crl.next_update_utc.timestamp() == int(clock()) + 30 * 86_400
    issuer = load(hub_paths.device_ca_crt.read_text()).public_key()
    assert isinstance(issuer, ec.EllipticCurvePublicKey)
    assert crl.is_signature_valid(issuer)
