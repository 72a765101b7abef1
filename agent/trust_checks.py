"""The checks between the two repositories and this device, after each repository's own signatures and versions.

Pure: verified metadata in, values or a TrustError out. Source: Uptane Standard 2.1, full verification. Called by
`agent.trust`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TypeVar

import msgspec

from agent.errors import TrustError
from modules.errors import ModuleError
from modules.manifest import MAX_MANIFEST_BYTES, Manifest, decode_manifest
from modules.targets import (
    AGENT_MODULE,
    AGENT_PUBLISHER,
    CANDIDATES,
    DEVICE_ID_FIELD,
    DirectorCustom,
    TargetPath,
    director_custom,
    image_custom,
)

if TYPE_CHECKING:
    from tuf.api.metadata import TargetFile, Targets

_T = TypeVar("_T")


class Assigned(msgspec.Struct, frozen=True):
    """One target of the director, parsed. `sha256` is the manifest's digest."""

    path: TargetPath
    custom: DirectorCustom
    length: int
    sha256: str


def check_device(targets: Targets, device: str) -> None:
    """Raises TrustError (wrong-device): all devices share the director's keys, the id is what tells them apart."""
    got = targets.unrecognized_fields.get(DEVICE_ID_FIELD)
    if got != device:
        raise TrustError(f"director: expected metadata for {device}, got it for {str(got)[:80]!r}", "wrong-device")


def read_director(targets: Targets, hardware_id: str) -> tuple[Assigned, ...]:
    """Everything the director wants here, by module name; a candidate stands behind the version that serves.

    Raises TrustError: delegations-in-director, duplicate-module, wrong-hardware, oversized, bad-metadata.
    """
    if targets.delegations is not None:
        raise TrustError("director: expected no delegations, got some", "delegations-in-director")
    found: dict[tuple[str, bool], Assigned] = {}
    for path, target in targets.targets.items():
        assigned = _assigned(path, target)
        if assigned.custom.hardware_id != hardware_id:
            text = f"director, {path}: expected hardware {hardware_id}, got {assigned.custom.hardware_id[:80]!r}"
            raise TrustError(text, "wrong-hardware")
        place = (assigned.path.name, assigned.custom.mode in CANDIDATES)
        if place in found:
            text = f"director: expected module {place[0]} once, got {found[place].path} and {path}"
            raise TrustError(text, "duplicate-module")
        found[place] = assigned
    return tuple(found[place] for place in sorted(found))


def check_image(assigned: Assigned, target: TargetFile | None, hardware_id: str, installed: Mapping[str, int]) -> None:
    """Does the image repository say the same, and may it run here, and is it no older release than before?

    Raises TrustError: not-in-image-repository, mix-and-match, wrong-hardware, older-release, bad-metadata.
    """
    path = str(assigned.path)
    if target is None:
        raise TrustError(f"image repository: {path} is not among what publishers signed", "not-in-image-repository")
    custom = _parsed(path, lambda: image_custom(target.custom))
    pairs = (
        ("length", assigned.length, target.length),
        ("sha256", assigned.sha256, target.hashes.get("sha256")),
        ("release counter", assigned.custom.release_counter, custom.release_counter),
    )
    for what, director, image in pairs:
        if director != image:
            text = f"{path}: expected the same {what} in both repositories, got {director} (director), {image} (image)"
            raise TrustError(text, "mix-and-match")
    if hardware_id not in custom.hardware_ids:
        got = ", ".join(custom.hardware_ids)[:200]
        raise TrustError(f"image repository, {path}: expected hardware {hardware_id}, got {got}", "wrong-hardware")
    lowest = installed.get(assigned.path.name, 0)
    if custom.release_counter < lowest:
        text = f"{path}: expected release {lowest} or later, got {custom.release_counter}"
        raise TrustError(text, "older-release")


def read_manifest(assigned: Assigned, data: bytes) -> Manifest:
    """The manifest, which must be what its path says. `data` has been checked against the signed digest.

    Raises TrustError (bad-metadata, mix-and-match, agent-publisher).
    """
    path = assigned.path
    manifest = _parsed(str(path), lambda: decode_manifest(data))
    expected, got = (path.name, path.version, path.profile), (manifest.name, manifest.version, manifest.profile)
    if got != expected:
        raise TrustError(f"{path}: expected the manifest of {expected}, got that of {got}", "mix-and-match")
    who = (path.publisher, path.name)
    if manifest.runtime.kind == "agent" and who != (AGENT_PUBLISHER, AGENT_MODULE):
        wanted = f"{AGENT_MODULE} by the publisher {AGENT_PUBLISHER}"
        raise TrustError(f"{path}: expected an agent only as {wanted}; it is refused", "agent-publisher")
    return manifest


def _assigned(path: str, target: TargetFile) -> Assigned:
    place = _parsed("director", lambda: TargetPath.parse(path))
    if target.length > MAX_MANIFEST_BYTES:
        text = f"director, {path}: expected at most {MAX_MANIFEST_BYTES} bytes, got {target.length}"
        raise TrustError(text, "oversized")
    sha256 = target.hashes.get("sha256")
    if sha256 is None:
        raise TrustError(f"director, {path}: expected a sha256 hash, got none", "bad-metadata")
    return Assigned(place, _parsed(path, lambda: director_custom(target.custom)), target.length, sha256)


def _parsed(what: str, parse: Callable[[], _T]) -> _T:
    try:
        return parse()
    except ModuleError as error:
        raise TrustError(f"{what}: {error}", "bad-metadata") from error
