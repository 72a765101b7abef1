"""A publisher's list of modules: what to sign next, and what somebody else proposes. Pure but for the blobs it checks.

Called by `mooring module sign` and `renew`; what is published comes verified from `trusted`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from tuf.api.metadata import Metadata, TargetFile, Targets

from cloud_hub.operator.errors import OperatorError, VerificationFailed
from cloud_hub.operator.trusted import PublishedImage
from cloud_hub.operator.verify import Source, check_files, read_manifest
from modules.errors import ModuleError
from modules.targets import ImageCustom, TargetPath, image_custom, to_custom

MAX_COUNTER = 2**31


@dataclass(frozen=True)
class Release:
    """A module to be signed: where, and the digest of its manifest."""

    path: TargetPath
    manifest_sha256: str


def propose(
    image: PublishedImage,
    publisher: str,
    releases: Sequence[Release],
    source: Source,
    used: Mapping[str, int],
    until: datetime,
) -> Metadata[Targets]:
    """The publisher's next list with each of `releases` in it, unsigned.

    `used` are release counters that the hub remembers, by module name: those of revoked publishers are not published
    any more, and yet devices remember them. A hub that exaggerates only makes numbers larger.
    Every manifest and file is fetched and checked first. Raises VerificationFailed, OperatorError `not-delegated`.
    """
    _check_delegated(image, publisher)
    current = image.publishers.get(publisher)
    # A copy, so that what was verified stays as it was.
    targets = copy.deepcopy(current.signed) if current else Targets(1)
    counters = _highest_counters(image)
    for release in releases:
        target = _checked(release, source)
        name = release.path.name
        counters[name] = max(counters.get(name, 0), min(used.get(name, 0), MAX_COUNTER)) + 1
        custom = ImageCustom((release.path.profile,), counters[name])
        target.unrecognized_fields["custom"] = to_custom(custom)
        targets.targets[str(release.path)] = target
    targets.version = current.signed.version + 1 if current else 1
    targets.expires = until
    return Metadata(targets)


def check_proposal(image: PublishedImage, publisher: str, proposed: Targets, source: Source) -> tuple[str, ...]:
    """What a second publisher is asked to sign, in words, with everything checked that the first one checked.

    Raises VerificationFailed `proposal-refused`, and as the checks of manifest and files.
    """
    _check_delegated(image, publisher)
    current = image.publishers.get(publisher)
    before: Mapping[str, TargetFile] = current.signed.targets if current else {}
    if proposed.version != (current.signed.version if current else 0) + 1:
        raise _refused(publisher, f"version {proposed.version} does not follow what is published")
    if proposed.delegations is not None or set(before) - set(proposed.targets):
        raise _refused(publisher, "it delegates, or takes modules away")
    counters = _highest_counters(image)
    said: list[str] = []
    for text, target in proposed.targets.items():
        if before.get(text) == target:
            continue
        path, counter = _read_target(publisher, text, target)
        if counter <= counters.get(path.name, 0):
            raise _refused(publisher, f"{path}: release counter {counter} is not above {counters[path.name]}")
        signed = _checked(Release(path, target.hashes.get("sha256", "")), source)
        if (signed.length, signed.hashes) != (target.length, target.hashes):
            raise _refused(publisher, f"{path}: length or hashes are not those of the manifest")
        said.append(f"{path} with release counter {counter}")
    return tuple(said) or (f"nothing new: {publisher} is renewed until {proposed.expires:%Y-%m-%d}",)


def _checked(release: Release, source: Source) -> TargetFile:
    """The target for a manifest whose bytes, files and chunks are what they say."""
    body = source.blob(release.manifest_sha256)
    target = TargetFile.from_data(str(release.path), body, ["sha256"])
    if target.hashes["sha256"] != release.manifest_sha256:
        raise VerificationFailed("manifest-differs", f"{release.path}: the hub sent other bytes; nothing was signed")
    check_files(read_manifest(release.path, target, body), source)
    return target


def _read_target(publisher: str, text: str, target: TargetFile) -> tuple[TargetPath, int]:
    try:
        path, custom = TargetPath.parse(text), image_custom(target.custom)
    except ModuleError as error:
        raise _refused(publisher, str(error)) from error
    if path.publisher != publisher or custom.hardware_ids != (path.profile,):
        raise _refused(publisher, f"{path}: another publisher's, or for other hardware")
    return path, custom.release_counter


def _highest_counters(image: PublishedImage) -> dict[str, int]:
    """Of every module name, over all publishers."""
    highest: dict[str, int] = {}
    for metadata in image.publishers.values():
        for text, target in metadata.signed.targets.items():
            name = TargetPath.parse(text).name
            highest[name] = max(highest.get(name, 0), image_custom(target.custom).release_counter)
    return highest


def _check_delegated(image: PublishedImage, publisher: str) -> None:
    if not image.delegates_to(publisher):
        known = ", ".join(image.delegations.roles or {}) or "nobody"
        raise OperatorError(
            "not-delegated", f"publisher {publisher}: nothing is delegated to it, but to {known}; nothing was signed"
        )


def _refused(publisher: str, why: str) -> VerificationFailed:
    return VerificationFailed("proposal-refused", f"the proposal for {publisher}: {why}; nothing was signed")
