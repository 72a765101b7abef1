"""What both TUF repositories do alike: root metadata, signing into bytes, and how long a signature lasts.

Pure apart from the keys that are handed in. Called by `trust.image` and `trust.director`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeVar

from tuf.api.metadata import Metadata, Root, Signed, Snapshot, Targets, Timestamp
from tuf.api.serialization.json import JSONSerializer

from cloud_hub.trust.keys import ROOT_THRESHOLD, Keys

# How long signatures last, in seconds. Short ones are made by keys that are online: they bound how long a device
# can be held back at an old state without noticing.
LONG_LIFE_S = 365 * 86_400.0
SHORT_LIFE_S = 7 * 86_400.0

Payload = TypeVar("Payload", Root, Timestamp, Snapshot, Targets)


@dataclass(frozen=True)
class SignedFile:
    """One metadata file as devices fetch it: the bytes that were signed are the bytes that are served."""

    filename: str
    version: int
    body: bytes
    expires_at: float


def sign(keys: Keys, payload: Payload, filename: str, *signers: str) -> SignedFile:
    """`payload` signed by each of the keys named `signers`. Raises Conflict when one is not here."""
    metadata: Metadata[Payload] = Metadata(payload)
    for name in signers:
        metadata.sign(keys.signer(name), append=True)
    body = metadata.to_bytes(JSONSerializer(compact=True))
    return SignedFile(filename, payload.version, body, payload.expires.timestamp())


def sign_root(keys: Keys, roots: tuple[str, ...], roles: Mapping[str, str], consistent: bool, now: float) -> SignedFile:
    """1.root.json: `roots` share the root role, two of them are enough; `roles` names the key of each other role."""
    root = Root(version=1, expires=expiry(now, LONG_LIFE_S), consistent_snapshot=consistent)
    for name in roots:
        root.add_key(keys.signer(name).public_key, Root.type)
    root.roles[Root.type].threshold = ROOT_THRESHOLD
    for role, name in roles.items():
        root.add_key(keys.signer(name).public_key, role)
    return sign(keys, root, "1.root.json", *roots)


def expiry(now: float, life_s: float) -> datetime:
    """TUF counts whole seconds."""
    return datetime.fromtimestamp(int(now + life_s), UTC)


def needs_signing(expires_at: float, now: float, life_s: float) -> bool:
    """Whether less than half of a signature's life is left."""
    return expires_at - now < life_s / 2


def payload_of(body: bytes, kind: type[Payload]) -> Payload:
    """The signed part of our own metadata, read back from where we stored it."""
    signed: Signed = Metadata.from_bytes(body).signed
    if not isinstance(signed, kind):
        raise TypeError(f"stored metadata: expected {kind.__name__}, got {type(signed).__name__}")
    return signed
