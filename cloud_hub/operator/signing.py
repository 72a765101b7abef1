"""Signing keys on the machine of a publisher or a root key's holder: made, read, used. No hub and no network of ours.

A key is named by a path (a PEM file, encrypted or not) or by any URI that securesystemslib knows: file2, hsm, awskms,
gcpkms, azurekms, hv, ... Its public half is a PEM file, or the JSON that TUF has for keys. Called by the commands.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)
from securesystemslib.exceptions import UnverifiedSignatureError
from securesystemslib.signer import SIGNER_FOR_URI_SCHEME, CryptoSigner, Key, Signer, SSlibKey
from tuf.api.metadata import Metadata, Root, Targets

from cloud_hub.operator.errors import FileError, OperatorError

PASSPHRASE_VARIABLE: Final = "MOORING_KEY_PASSPHRASE"  # noqa: S105 - a name, no secret
SCHEMES: Final[dict[str, Callable[[], CryptoSigner]]] = {
    "ed25519": CryptoSigner.generate_ed25519,
    "ecdsa-p256": CryptoSigner.generate_ecdsa,
    "rsa-3072": CryptoSigner.generate_rsa,
}
_PRIVATE = b"PRIVATE KEY-----"
Ask = Callable[[str], str]  # a secret, by what it is for


class KeyFile(msgspec.Struct, frozen=True):
    """A key that lies in a file, as `mooring key list` shows it."""

    file: str
    keyid: str
    keytype: str
    scheme: str
    private: bool
    encrypted: bool
    role: str  # what its name says that it is for; a guess


def create(path: Path, scheme: str, passphrase: str) -> KeyFile:
    """A private key at `path` (0600, encrypted where there is a passphrase) and its public half at `path`.pub.

    Raises FileError `key-exists` rather than put another in its place.
    """
    public = path.with_suffix(".pub")
    if path.exists() or public.exists():
        raise FileError("key-exists", f"{path}: there is a key already; nothing was changed")
    private = load_pem_private_key(SCHEMES[scheme]().private_bytes, None)
    sealing = BestAvailableEncryption(passphrase.encode()) if passphrase else NoEncryption()
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, sealing))
            file.flush()
            os.fsync(file.fileno())
        public.write_bytes(private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    except OSError as error:
        raise FileError("not-written", f"{path}: {error.strerror}; the key was not kept") from error
    return _about(path, load_public(public), private=True, encrypted=bool(passphrase))


def list_keys(paths: Iterable[Path], ask: Ask) -> list[KeyFile]:
    """The keys in files, and in folders those that end in .pem, .pub or .json."""
    files = [file for path in paths for file in (_keys_in(path) if path.is_dir() else [path])]
    return [_look(file, ask) for file in files]


def load_public(path: Path) -> Key:
    """From a PEM file, public or private, or from TUF's JSON for keys with a `keyid` in it.

    Raises FileError `key-unreadable`.
    """
    body = _read(path)
    try:
        if body.lstrip().startswith(b"{"):
            fields: dict[str, Any] = msgspec.json.decode(body)
            return Key.from_dict(fields.pop("keyid"), fields)
        if _PRIVATE in body:
            return SSlibKey.from_crypto(load_pem_private_key(body, None).public_key())
        return SSlibKey.from_crypto(load_pem_public_key(body))
    except (ValueError, TypeError, KeyError, UnsupportedAlgorithm, msgspec.DecodeError) as error:
        raise FileError("key-unreadable", f"{path}: expected a public key in PEM or JSON ({error})") from error


def load_private(path: Path, ask: Ask) -> CryptoSigner:
    """A private key in PEM. Raises FileError `key-unreadable`, `key-exposed` when others may read its file."""
    body = _read(path)
    if path.stat().st_mode & 0o077:
        raise FileError(
            "key-exposed", f"{path}: others may read it; run chmod 600 on it and think of replacing the key; not used"
        )
    try:
        secret = _passphrase(path, ask) if b"ENCRYPTED" in body else None
        return CryptoSigner(load_pem_private_key(body, secret))
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise FileError("key-unreadable", f"{path}: expected a private key in PEM and its passphrase") from error


def is_private(path: Path) -> bool:
    return _PRIVATE in _read(path)


def sign(metadata: Metadata[Root] | Metadata[Targets], uri: str, allowed: Iterable[Key], ask: Ask) -> str:
    """Adds the signature of the key at `uri`, which must be one of `allowed`; its key id.

    Raises OperatorError `key-not-allowed`, `key-unusable`; FileError as `load_private`.
    """
    candidates = {key.keyid: key for key in allowed}
    scheme, separator, rest = uri.partition(":")
    if not separator or scheme == "file2" or scheme not in SIGNER_FOR_URI_SCHEME:
        signer = load_private(Path(rest if scheme == "file2" and separator else uri), ask)
        return _sign_with_file(metadata, signer, candidates, uri)
    for key in candidates.values():
        if _sign_with_service(metadata, uri, key, ask):
            return key.keyid
    raise _not_allowed(uri, candidates)


def _sign_with_file(
    metadata: Metadata[Root] | Metadata[Targets], signer: CryptoSigner, allowed: dict[str, Key], uri: str
) -> str:
    # A key id is no more than a name: the same key may have another one in the metadata.
    own = signer.public_key.keyval["public"]
    named = next((key for key in allowed.values() if key.keyval.get("public", "").strip() == own.strip()), None)
    if named is None:
        raise _not_allowed(uri, allowed)
    signature = metadata.sign(signer, append=True)
    if signature.keyid != named.keyid:
        metadata.signatures[named.keyid] = metadata.signatures.pop(signature.keyid)
        metadata.signatures[named.keyid].keyid = named.keyid
    return named.keyid


def _sign_with_service(metadata: Metadata[Root] | Metadata[Targets], uri: str, key: Key, ask: Ask) -> bool:
    """Whether the key behind `uri` is `key`. Any service's own errors come out as `key-unusable`."""
    payload = metadata.signed_bytes
    try:
        signature = Signer.from_priv_key_uri(uri, key, ask).sign(payload)
        key.verify_signature(signature, payload)
    except UnverifiedSignatureError:
        return False
    except Exception as error:  # each service and driver has errors of its own
        raise OperatorError("key-unusable", f"{uri}: {type(error).__name__}: {error}; nothing was signed") from error
    metadata.signatures[key.keyid] = signature
    return True


def _not_allowed(uri: str, allowed: dict[str, Key]) -> OperatorError:
    known = ", ".join(keyid[:12] for keyid in allowed) or "none"
    return OperatorError("key-not-allowed", f"{uri}: not a key of this role (those are {known}); nothing was signed")


def _look(path: Path, ask: Ask) -> KeyFile:
    body = _read(path)
    if _PRIVATE not in body:
        return _about(path, load_public(path), private=False, encrypted=False)
    encrypted, beside = b"ENCRYPTED" in body, path.with_suffix(".pub")
    key = load_public(beside) if encrypted and beside.is_file() else load_private(path, ask).public_key
    return _about(path, key, private=True, encrypted=encrypted)


def _about(path: Path, key: Key, *, private: bool, encrypted: bool) -> KeyFile:
    return KeyFile(str(path), key.keyid, key.keytype, key.scheme, private, encrypted, _role(path.stem))


def _role(stem: str) -> str:
    for start in ("image-root", "director-root", "image-targets", "publisher", "image", "director"):
        if stem.startswith(start):
            return stem.replace("-", " ", 1) if start in ("publisher", "image", "director") else start.replace("-", " ")
    return ""


def _keys_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix in (".pem", ".pub") and path.is_file())


def _passphrase(path: Path, ask: Ask) -> bytes:
    return (os.environ.get(PASSPHRASE_VARIABLE) or ask(f"passphrase of {path}")).encode()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise FileError("key-unreadable", f"{path}: {error.strerror}; nothing was signed") from error
