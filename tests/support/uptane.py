"""Ways to spoil one role of one repository of a `World`, and to take it back.

Faults are made on the bytes: what python-tuf's own objects refuse to hold (a threshold of zero, a signature twice) is
written into the JSON and signed over. Nothing here is sent; `Repo.files` is what the agent will be given.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from securesystemslib.formats import encode_canonical
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata

from support.repository import ROLES, Repo, World

LONG_AGO = "2020-01-01T00:00:00Z"
Change = Callable[[dict[str, Any]], None]  # `Any`: JSON that is being spoilt


def _as_it_is(part: dict[str, Any]) -> None:
    return None


def seal(
    repo: Repo,
    role: str,
    change: Change = _as_it_is,
    *,
    signers: Iterable[CryptoSigner] | None = None,
    after: Change = _as_it_is,
    filename: str = "",
) -> None:
    """Puts the role out with `change` made to what is signed, and `after` to the whole file once it is signed."""
    whole = repo.metadata(role).to_dict()
    change(whole["signed"])
    body = str(encode_canonical(whole["signed"])).encode()
    found = [signer.sign(body) for signer in (repo.signers[role] if signers is None else signers)]
    whole["signatures"] = [{"keyid": signature.keyid, "sig": signature.signature} for signature in found]
    after(whole)
    repo.files[repo.name, filename or repo.filename(role)] = json.dumps(whole).encode()


def fresh(repo: Repo, role: str) -> None:
    """A new version of the role, so that the device asks for it. A root is not put out yet."""
    if role == "root":
        repo.root.signed.version += 1
    else:
        repo.publish()


def need_two(repo: Repo, role: str) -> None:
    """From now on the role needs two signatures, of two keys; properly announced. A root needs two anyway."""
    if role == "root":
        return
    signer = CryptoSigner.generate_ed25519()
    repo.signers[role].append(signer)
    if role in ROLES:
        repo.root.signed.add_key(signer.public_key, role)
        repo.root.signed.roles[role].threshold = 2
        repo.root.signed.version += 1
        repo.write("root")
    else:
        delegations = repo.targets.signed.delegations
        assert delegations is not None
        assert delegations.roles is not None
        delegations.keys[signer.public_key.keyid] = signer.public_key
        delegations.roles[role].keyids.append(signer.public_key.keyid)
        delegations.roles[role].threshold = 2
    repo.publish()


# One fault each: of which role, in which repository, the case says


def bad_key_ids(repo: Repo, role: str) -> None:
    """Good signatures under ids that no key has."""

    def rename(whole: dict[str, Any]) -> None:
        for index, signature in enumerate(whole["signatures"]):
            signature["keyid"] = f"{index:064x}"

    fresh(repo, role)
    seal(repo, role, after=rename)


def expired(repo: Repo, role: str) -> None:
    fresh(repo, role)
    seal(repo, role, lambda signed: signed.update(expires=LONG_AGO))


def non_unique_signatures(repo: Repo, role: str) -> None:
    """Two are needed; one key signs twice."""
    fresh(repo, role)
    seal(
        repo, role, signers=repo.signers[role][:1], after=lambda whole: whole["signatures"].append(*whole["signatures"])
    )


def role_type_mismatch(repo: Repo, role: str) -> None:
    fresh(repo, role)
    seal(repo, role, lambda signed: signed.update(_type="targets" if role in {"snapshot", "root"} else "snapshot"))


def too_large(repo: Repo, role: str) -> None:
    fresh(repo, role)
    seal(repo, role, lambda signed: signed.update(padding="x" * 5_000_000))


def unmet_threshold(repo: Repo, role: str) -> None:
    fresh(repo, role)
    seal(repo, role, signers=repo.signers[role][:1])


def unsigned(repo: Repo, role: str) -> None:
    fresh(repo, role)
    seal(repo, role, signers=[])


def zero_threshold(repo: Repo, role: str) -> None:
    """Whoever names the keys says that none is needed, and none has signed."""
    if role in ROLES:
        repo.root.signed.version += 1
        seal(repo, "root", lambda signed: signed["roles"][role].update(threshold=0))
        repo.publish()
    else:
        repo.publish()
        seal(repo, "targets", lambda signed: signed["delegations"]["roles"][0].update(threshold=0))
    if role != "root":
        seal(repo, role, signers=[])


@contextmanager
def taken_back(world: World) -> Iterator[None]:
    """What is done to the world inside is as if it had never been. Files, metadata and signers; not what was asked."""
    repositories = (world.director, world.image)
    saved = [(repo, _copies(repo), {role: list(held) for role, held in repo.signers.items()}) for repo in repositories]
    files = dict(world.files)
    yield
    world.files.clear()
    world.files.update(files)
    for repo, copies, signers in saved:
        for role in ROLES:
            setattr(repo, role, copies[role])
        repo.roles = {role: copies[role] for role in copies if role not in ROLES}
        repo.signers = signers


def go_on(world: World) -> None:
    """Publishes above the numbers that were well signed in the meantime: those stand, whatever they were about."""
    for repo in (world.director, world.image):
        repo.snapshot.signed.version += 10
        repo.timestamp.signed.version += 10
    world.publish()


def _copies(repo: Repo) -> dict[str, Metadata[Any]]:
    return {role: Metadata.from_bytes(repo.metadata(role).to_bytes()) for role in (*ROLES, *repo.roles)}
