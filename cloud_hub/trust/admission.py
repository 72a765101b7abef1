"""Whether metadata that was signed elsewhere may be published: TUF's own verification, and what each role may say.

Pure: the current metadata and the proposed in, the verdict out. Signatures, thresholds and the step from one root to
the next are python-tuf's; here stands only what TUF leaves to a repository. Called by `ceremony`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeVar

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import (
    TOP_LEVEL_ROLE_NAMES,
    Delegations,
    Metadata,
    Root,
    TargetFile,
    Targets,
    VerificationResult,
)

from cloud_hub.errors import Conflict, Unprocessable
from firmware_profiles.profile import NAME_PATTERN
from modules.errors import ModuleError
from modules.targets import TargetPath

MAX_METADATA_BYTES = 4_000_000  # python-tuf's clients stop at 5,000,000
_Kind = TypeVar("_Kind", Root, Targets)


@dataclass(frozen=True)
class Count:
    """How far a proposal is signed: key ids that signed validly, and how many there must be, of each asking role."""

    signed: tuple[str, ...]
    threshold: int
    complete: bool

    @classmethod
    def of(cls, *results: VerificationResult) -> Count:
        signed = dict.fromkeys(keyid for result in results for keyid in result.signed)
        return cls(tuple(signed), max(result.threshold for result in results), all(map(bool, results)))


def parse(text: str, kind: type[_Kind], role: str) -> Metadata[_Kind]:
    """Raises Unprocessable `metadata-invalid`."""
    if len(text) > MAX_METADATA_BYTES:
        raise _invalid(role, f"expected at most {MAX_METADATA_BYTES} bytes, got {len(text)}")
    try:
        metadata = Metadata[_Kind].from_bytes(text.encode())
    except (RepositoryError, UnicodeEncodeError, RecursionError) as error:
        raise _invalid(role, f"expected TUF metadata, got something that does not parse ({error})") from error
    if not isinstance(metadata.signed, kind):
        raise _invalid(role, f"expected metadata of type {kind.type}, got {metadata.signed.type}")
    return metadata


def check_step(role: str, proposed: Root | Targets, current_version: int, now: float) -> None:
    """Raises Conflict `version-not-next`, Unprocessable `metadata-expired`."""
    if proposed.version != current_version + 1:
        raise Conflict(
            "version-not-next",
            f"{role}: expected version {current_version + 1}, got {proposed.version}; start from what is published, "
            "nothing was changed",
            role=role,
            expected=current_version + 1,
            got=proposed.version,
        )
    if proposed.is_expired(datetime.fromtimestamp(now, UTC)):
        raise Unprocessable("metadata-expired", f"{role}: expired on {proposed.expires:%Y-%m-%d}; nothing was changed")


def count(delegator: Root | Targets, role: str, proposed: Metadata[Targets]) -> Count:
    """Raises Unprocessable `not-delegated`, `threshold-not-met` when nobody who may has signed."""
    try:
        result = delegator.get_verification_result(role, proposed.signed_bytes, proposed.signatures)
    except ValueError as error:
        raise not_delegated(role) from error
    return _at_least_one(role, Count.of(result))


def count_root(current: Root, proposed: Metadata[Root], role: str) -> Count:
    """Root N signs N + 1 together with N + 1 itself. Raises Unprocessable `threshold-not-met`."""
    result = proposed.signed.get_root_verification_result(current, proposed.signed_bytes, proposed.signatures)
    return _at_least_one(role, Count.of(result.first, result.second))


def not_delegated(role: str) -> Unprocessable:
    return Unprocessable(
        "not-delegated", f"{role}: no delegation allows this publisher; an admin adds it first, nothing was changed"
    )


def check_root(current: Root, proposed: Root, online: Mapping[str, str], role: str) -> None:
    """A new root must leave this hub able to work: `online` names, by role, the id of the key that it holds.

    Raises Unprocessable `root-unusable`.
    """
    if bool(proposed.consistent_snapshot) != bool(current.consistent_snapshot):
        raise _unusable(role, "consistent_snapshot stays as it is")
    for name, asked in proposed.roles.items():
        if not 1 <= asked.threshold <= len(asked.keyids):
            raise _unusable(role, f"{name} asks for {asked.threshold} of {len(asked.keyids)} keys")
        if not set(asked.keyids) <= set(proposed.keys):
            raise _unusable(role, f"{name} names a key that is not in the file")
    for name, keyid in online.items():
        if keyid not in proposed.roles[name].keyids or proposed.roles[name].threshold != 1:
            raise _unusable(role, f"{name} must be signed by the one key that this hub holds ({keyid[:12]})")


def check_top(proposed: Targets, role: str) -> None:
    """The top-level targets only delegate: each publisher to its own paths.

    Raises Unprocessable `delegation-invalid`.
    """
    delegations = proposed.delegations
    if proposed.targets or delegations is None or delegations.roles is None:
        raise _delegation(role, "expected delegations by name, and no targets of its own")
    for name, given in delegations.roles.items():
        if not re.fullmatch(NAME_PATTERN, name) or name in TOP_LEVEL_ROLE_NAMES:
            raise _delegation(role, f"{name[:80]!r} is no publisher's name")
        if given.paths != [TargetPath.pattern(name)] or not given.terminating:
            raise _delegation(role, f"{name}: expected the path {TargetPath.pattern(name)}, terminating")
        if not 1 <= given.threshold <= len(given.keyids) or not set(given.keyids) <= set(delegations.keys):
            raise _delegation(role, f"{name}: asks for {given.threshold} of {len(given.keyids)} known keys")


def roles_of(targets: Targets) -> Delegations:
    """The delegations of our top-level targets; empty rather than None."""
    return targets.delegations or Delegations({}, {})


def check_publisher(publisher: str, current: Targets | None, proposed: Targets) -> dict[TargetPath, TargetFile]:
    """What is new or has a new counter, by path. Nothing may vanish, nothing signed may change its manifest.

    Raises Unprocessable `path-not-delegated`, `delegation-invalid`; Conflict `target-removed`, `target-changed`.
    """
    if proposed.delegations is not None:
        raise _delegation(publisher, "a publisher delegates no further")
    before = current.targets if current else {}
    missing = sorted(set(before) - set(proposed.targets))
    if missing:
        raise Conflict("target-removed", f"{publisher}: {missing[0]} is no longer listed; nothing was changed")
    changed: dict[TargetPath, TargetFile] = {}
    for text, target in proposed.targets.items():
        path = _own_path(publisher, text)
        old = before.get(text)
        if old is not None and (old.length, old.hashes) != (target.length, target.hashes):
            raise Conflict("target-changed", f"{text}: is signed with another manifest; nothing was changed")
        if old is None or old != target:
            changed[path] = target
    return changed


def _own_path(publisher: str, text: str) -> TargetPath:
    try:
        path = TargetPath.parse(text)
    except ModuleError as error:
        raise Unprocessable("path-not-delegated", f"{publisher}: {error}; nothing was changed") from error
    if path.publisher != publisher:
        raise Unprocessable(
            "path-not-delegated",
            f"{publisher}: expected paths below modules/{publisher}/, got {text[:120]}; nothing was changed",
        )
    return path


def _at_least_one(role: str, found: Count) -> Count:
    if not found.signed:
        raise Unprocessable(
            "threshold-not-met",
            f"{role}: signed by 0 of {found.threshold} keys that may; nothing was changed",
            role=role,
            threshold=found.threshold,
        )
    return found


def _invalid(role: str, why: str) -> Unprocessable:
    return Unprocessable("metadata-invalid", f"{role}: {why}; nothing was changed")


def _unusable(role: str, why: str) -> Unprocessable:
    return Unprocessable("root-unusable", f"{role}: {why}; nothing was changed")


def _delegation(role: str, why: str) -> Unprocessable:
    return Unprocessable("delegation-invalid", f"{role}: {why}; nothing was changed")
