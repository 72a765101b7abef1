"""What is published, verified from a pinned root with python-tuf: where a publisher's or an operator's signing starts.

Unlike a device it also reads offline roles that have expired, because renewing them is the point; what the hub signs
by itself must be fresh. Nothing that the hub gives is believed. Called by `releases`, `rotation` and the commands.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeVar

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Delegations, Metadata, Root, Snapshot, Targets, Timestamp

from cloud_hub.operator.errors import VerificationFailed

MAX_ROOTS = 1024
Fetch = Callable[[str], bytes | None]
_Kind = TypeVar("_Kind", Root, Timestamp, Snapshot, Targets)


@dataclass(frozen=True)
class PublishedImage:
    """The image repository: root, top-level targets, and each delegated publisher's targets where there are any."""

    root: Metadata[Root]
    targets: Metadata[Targets]
    publishers: Mapping[str, Metadata[Targets]]
    snapshot: Snapshot

    @property
    def delegations(self) -> Delegations:
        return self.targets.signed.delegations or Delegations({}, {})

    def delegates_to(self, publisher: str) -> bool:
        return publisher in (self.delegations.roles or {})


def read_root(fetch: Fetch, pinned: bytes) -> Metadata[Root]:
    """The newest root that follows from the pinned one. Raises VerificationFailed `signatures-invalid`."""
    root = parse(pinned, Root, "the pinned root")
    for _ in range(MAX_ROOTS):
        name = f"{root.signed.version + 1}.root.json"
        body = fetch(name)
        if body is None:
            return root
        following = parse(body, Root, name)
        try:
            result = following.signed.get_root_verification_result(
                root.signed, following.signed_bytes, following.signatures
            )
        except ValueError as error:
            raise _invalid(name, str(error)) from error
        if not result:
            raise _invalid(name, "not signed by enough keys of the root before and its own")
        root = following
    raise _invalid("root", f"expected at most {MAX_ROOTS} roots after the pinned one")


def read_image(fetch: Fetch, pinned: bytes, now: float) -> PublishedImage:
    """Raises VerificationFailed `signatures-invalid`, `metadata-expired` or `metadata-incomplete`."""
    root = read_root(fetch, pinned)
    stamp = _signed(fetch, "timestamp.json", Timestamp, root.signed, Timestamp.type)
    _fresh(stamp, "timestamp", now)
    version = stamp.signed.snapshot_meta.version
    snapshot = _signed(fetch, f"{version}.snapshot.json", Snapshot, root.signed, Snapshot.type)
    _same_version("snapshot", snapshot, version)
    _fresh(snapshot, "snapshot", now)
    targets = _listed(fetch, snapshot.signed, root.signed, Targets.type)
    publishers = {
        name: _listed(fetch, snapshot.signed, targets.signed, name)
        for name in ((targets.signed.delegations.roles or {}) if targets.signed.delegations else ())
        if f"{name}.json" in snapshot.signed.meta
    }
    return PublishedImage(root, targets, publishers, snapshot.signed)


def parse(body: bytes, kind: type[_Kind], name: str) -> Metadata[_Kind]:
    """Raises VerificationFailed `signatures-invalid`."""
    try:
        metadata = Metadata[_Kind].from_bytes(body)
    except RepositoryError as error:
        raise _invalid(name, f"expected TUF metadata ({error})") from error
    if not isinstance(metadata.signed, kind):
        raise _invalid(name, f"expected type {kind.type}, got {metadata.signed.type}")
    return metadata


def _listed(fetch: Fetch, snapshot: Snapshot, delegator: Root | Targets, role: str) -> Metadata[Targets]:
    version = snapshot.meta[f"{role}.json"].version
    metadata = _signed(fetch, f"{version}.{role}.json", Targets, delegator, role)
    _same_version(role, metadata, version)
    return metadata


def _signed(fetch: Fetch, name: str, kind: type[_Kind], delegator: Root | Targets, role: str) -> Metadata[_Kind]:
    body = fetch(name)
    if body is None:
        raise VerificationFailed("metadata-incomplete", f"the hub has no {name}; nothing was signed")
    metadata = parse(body, kind, name)
    try:
        delegator.verify_delegate(role, metadata.signed_bytes, metadata.signatures)
    except (RepositoryError, ValueError) as error:
        raise _invalid(name, str(error)) from error
    return metadata


def _same_version(role: str, metadata: Metadata[_Kind], version: int) -> None:
    if metadata.signed.version != version:
        raise _invalid(role, f"expected version {version}, got {metadata.signed.version}")


def _fresh(metadata: Metadata[_Kind], role: str, now: float) -> None:
    if metadata.signed.is_expired(datetime.fromtimestamp(now, UTC)):
        raise VerificationFailed(
            "metadata-expired", f"{role}: expired on {metadata.signed.expires:%Y-%m-%d}; is the hub running?"
        )


def _invalid(name: str, why: str) -> VerificationFailed:
    return VerificationFailed("signatures-invalid", f"{name}: {why}; nothing in it is trusted, nothing was signed")
