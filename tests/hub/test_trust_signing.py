"""Signing by URI: a key service stands behind it, of which only securesystemslib knows the ways."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from securesystemslib.signer import SIGNER_FOR_URI_SCHEME, CryptoSigner, Key, SecretsHandler, Signature, Signer
from tuf.api.metadata import Metadata, Targets

from cloud_hub.operator import signing
from cloud_hub.operator.errors import FileError, OperatorError

SERVICE = "testservice"


class KeyService(Signer):
    """A service with one key, which asks for a PIN, as a PKCS#11 token does."""

    held: CryptoSigner
    asked: list[str]

    def __init__(self, public_key: Key) -> None:
        self._public_key = public_key

    @property
    def public_key(self) -> Key:
        return self._public_key

    @classmethod
    def from_priv_key_uri(
        cls, priv_key_uri: str, public_key: Key, secrets_handler: SecretsHandler | None = None
    ) -> "KeyService":
        if priv_key_uri.endswith("gone"):
            raise ConnectionError("no route to the service")
        assert secrets_handler is not None
        cls.asked.append(secrets_handler("pin"))
        return cls(public_key)

    def sign(self, payload: bytes) -> Signature:
        return Signature(self._public_key.keyid, self.held.sign(payload).signature)


@pytest.fixture(autouse=True)
def service() -> Iterator[type[KeyService]]:
    KeyService.held, KeyService.asked = CryptoSigner.generate_ecdsa(), []
    SIGNER_FOR_URI_SCHEME[SERVICE] = KeyService
    yield KeyService
    del SIGNER_FOR_URI_SCHEME[SERVICE]


@pytest.fixture
def metadata() -> Metadata[Targets]:
    return Metadata(Targets(1, expires=datetime(2040, 1, 1, tzinfo=UTC)))


def test_the_right_one_of_the_role_s_keys_is_found_by_its_signature(
    service: type[KeyService], metadata: Metadata[Targets]
) -> None:
    others = [CryptoSigner.generate_ed25519().public_key, CryptoSigner.generate_ecdsa().public_key]
    allowed = [*others, service.held.public_key]
    keyid = signing.sign(metadata, f"{SERVICE}:one", allowed, lambda _: "1234")
    assert keyid == service.held.public_key.keyid
    assert list(metadata.signatures) == [keyid]
    service.held.public_key.verify_signature(metadata.signatures[keyid], metadata.signed_bytes)
    assert set(service.asked) == {"1234"}


def test_a_service_whose_key_is_not_of_the_role_signs_nothing(metadata: Metadata[Targets]) -> None:
    allowed = [CryptoSigner.generate_ecdsa().public_key]
    with pytest.raises(OperatorError, match="not a key of this role") as caught:
        signing.sign(metadata, f"{SERVICE}:one", allowed, lambda _: "1234")
    assert (caught.value.key, metadata.signatures) == ("key-not-allowed", {})


@pytest.mark.parametrize("uri", [f"{SERVICE}:gone", "awskms:alias/acme"])
def test_a_service_that_is_not_there_is_named(uri: str, service: type[KeyService], metadata: Metadata[Targets]) -> None:
    """The second is a real scheme, whose library is not installed here or finds no account."""
    with pytest.raises(OperatorError, match="nothing was signed") as caught:
        signing.sign(metadata, uri, [service.held.public_key], lambda _: "1234")
    assert caught.value.key == "key-unusable"


def test_a_key_that_has_another_id_in_the_metadata_signs_under_that_one(
    metadata: Metadata[Targets], tmp_path: Path
) -> None:
    signing.create(tmp_path / "key.pem", "ed25519", "")
    own = signing.load_public(tmp_path / "key.pub")
    renamed = Key.from_dict("chosen-by-a-service", own.to_dict())
    assert signing.sign(metadata, str(tmp_path / "key.pem"), [renamed], lambda _: "") == "chosen-by-a-service"
    renamed.verify_signature(metadata.signatures["chosen-by-a-service"], metadata.signed_bytes)


@pytest.mark.parametrize("body", [b"", b"{}", b"{", b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"])
def test_what_is_no_public_key_is_named(tmp_path: Path, body: bytes) -> None:
    (tmp_path / "x.pub").write_bytes(body)
    with pytest.raises(FileError, match=r"x\.pub"):
        signing.load_public(tmp_path / "x.pub")
