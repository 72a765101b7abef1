"""The next root, and the next top-level targets: computed here from what is published, signed here, judged by the hub.

Pure. Called by the `mooring trust` commands.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from datetime import datetime

from securesystemslib.signer import Key
from tuf.api.metadata import DelegatedRole, Delegations, Metadata, Root, Targets

from cloud_hub.operator.errors import OperatorError
from cloud_hub.operator.trusted import PublishedImage
from modules.targets import TargetPath


def next_root(
    current: Root, keep: Sequence[str], new: Sequence[Key], threshold: int, until: datetime
) -> Metadata[Root]:
    """Root keys become those of `keep` (key ids, or their beginnings) and `new`; with neither they stay as they are.

    `threshold` 0 leaves it as it is. Raises OperatorError `key-unknown`, `threshold-impossible`.
    """
    root = copy.deepcopy(current)
    before = list(root.roles[Root.type].keyids)
    kept = [_named(before, name) for name in keep] if keep or new else before
    for keyid in before:
        if keyid not in kept:
            root.revoke_key(keyid, Root.type)
    for key in new:
        root.add_key(key, Root.type)
    role = root.roles[Root.type]
    role.threshold = threshold or role.threshold
    _check_threshold("root", role.threshold, len(role.keyids))
    root.version += 1
    root.expires = until
    return Metadata(root)


def next_targets(image: PublishedImage, until: datetime) -> Metadata[Targets]:
    """The same delegations for longer: what the two functions below begin with."""
    targets = copy.deepcopy(image.targets.signed)
    targets.delegations = targets.delegations or Delegations({}, {})
    targets.version += 1
    targets.expires = until
    return Metadata(targets)


def with_publisher(metadata: Metadata[Targets], name: str, keys: Sequence[Key], threshold: int) -> None:
    """Delegates the paths of `name` to exactly these keys. Raises OperatorError `threshold-impossible`."""
    _check_threshold(name, threshold, len({key.keyid for key in keys}))
    delegations = _delegations(metadata)
    keyids = list(dict.fromkeys(key.keyid for key in keys))
    role = DelegatedRole(name, keyids, threshold, terminating=True, paths=[TargetPath.pattern(name)])
    roles = {**(delegations.roles or {}), name: role}
    metadata.signed.delegations = _in_use(Delegations({**delegations.keys, **{key.keyid: key for key in keys}}, roles))


def without_publisher(metadata: Metadata[Targets], name: str) -> None:
    """Raises OperatorError `not-delegated`."""
    delegations = _delegations(metadata)
    roles = dict(delegations.roles or {})
    if roles.pop(name, None) is None:
        known = ", ".join(roles) or "none"
        raise OperatorError("not-delegated", f"publisher {name}: not delegated to (those are {known}); nothing to do")
    metadata.signed.delegations = _in_use(Delegations(delegations.keys, roles))


def root_signers(current: Root, proposed: Root) -> list[Key]:
    """Whoever may sign: the keys of the root that stands and those of the one proposed."""
    keys = {keyid: root.keys[keyid] for root in (current, proposed) for keyid in root.roles[Root.type].keyids}
    return list(keys.values())


def describe_root(current: Root, proposed: Root) -> tuple[str, ...]:
    """What a proposed root would change, for the person who is asked to sign it."""
    said = [f"version {current.version} -> {proposed.version}, until {proposed.expires:%Y-%m-%d}"]
    for name, role in proposed.roles.items():
        before = current.roles[name]
        said += [f"{name}: key {keyid} comes" for keyid in role.keyids if keyid not in before.keyids]
        said += [f"{name}: key {keyid} goes" for keyid in before.keyids if keyid not in role.keyids]
        if role.threshold != before.threshold:
            said.append(f"{name}: threshold {before.threshold} -> {role.threshold}")
    return tuple(said)


def describe_targets(current: Targets, proposed: Targets) -> tuple[str, ...]:
    """What proposed top-level targets would change."""
    said = [f"version {current.version} -> {proposed.version}, until {proposed.expires:%Y-%m-%d}"]
    before = (current.delegations.roles or {}) if current.delegations else {}
    after = (proposed.delegations.roles or {}) if proposed.delegations else {}
    said += [f"publisher {name} goes" for name in before if name not in after]
    for name, role in after.items():
        if before.get(name) != role:
            keys = ", ".join(role.keyids)
            said.append(f"publisher {name}: {role.threshold} of {keys} for {', '.join(role.paths or ())}")
    return tuple(said)


def _named(keyids: Sequence[str], name: str) -> str:
    found = [keyid for keyid in keyids if keyid.startswith(name)]
    if len(found) != 1:
        raise OperatorError("key-unknown", f"{name}: expected one of {', '.join(keyids)}; nothing was signed")
    return found[0]


def _check_threshold(role: str, threshold: int, keys: int) -> None:
    if not 1 <= threshold <= keys:
        raise OperatorError(
            "threshold-impossible", f"{role}: {threshold} of {keys} keys cannot sign; nothing was signed"
        )


def _delegations(metadata: Metadata[Targets]) -> Delegations:
    return metadata.signed.delegations or Delegations({}, {})


def _in_use(delegations: Delegations) -> Delegations:
    """Without keys that no role names any more."""
    used = {keyid for role in (delegations.roles or {}).values() for keyid in role.keyids}
    return Delegations({keyid: key for keyid, key in delegations.keys.items() if keyid in used}, delegations.roles)
