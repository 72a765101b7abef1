"""A whole valid world of two TUF repositories in memory, signed with python-tuf, of which a test spoils one thing.

Written from the contracts alone, independent of the hub's own code. `World.get` answers as the hub would; `files` may
be handed to a `FakeHub`. After a change, `publish()` signs everything anew with higher versions, `write(role)` signs
and puts out one role as it stands, so that a test can make it inconsistent.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

from agent.errors import Refused
from modules.bundle import MAX_CHUNK_BYTES, Chunk, FileEntry, sha256_hex
from modules.manifest import Lineage, Manifest, Runtime, encode_manifest
from modules.messages import Answer, Repository
from modules.targets import DEVICE_ID_FIELD, DirectorCustom, ImageCustom, TargetPath, to_custom
from modules.tensors import TensorSpec

PUBLISHER = "dev"
HARDWARE = "generic-x86_64"
ROLES = ("root", "targets", "snapshot", "timestamp")


class Repo:
    """One repository: its metadata objects, who signs them, and the files it puts out."""

    def __init__(self, name: Repository, files: dict[tuple[str, str], bytes], *, consistent: bool) -> None:
        self.name, self.files = name, files
        self.expires = datetime.now(UTC).replace(microsecond=0) + timedelta(days=7)
        self.signers = {role: [CryptoSigner.generate_ed25519()] for role in ROLES}
        self.signers["root"] = [CryptoSigner.generate_ed25519() for _ in range(3)]
        self.root = Metadata(Root(expires=self.expires, consistent_snapshot=consistent))
        self.targets = Metadata(Targets(expires=self.expires))
        self.snapshot = Metadata(Snapshot(expires=self.expires))
        self.timestamp = Metadata(Timestamp(expires=self.expires))
        self.roles: dict[str, Metadata[Targets]] = {}
        for role in ROLES:
            for signer in self.signers[role]:
                self.root.signed.add_key(signer.public_key, role)
        self.root.signed.roles["root"].threshold = 2

    def delegate(self, name: str, pattern: str) -> None:
        """A terminating delegation to a key of its own."""
        self.signers[name] = [CryptoSigner.generate_ed25519()]
        key = self.signers[name][0].public_key
        role = DelegatedRole(name, [key.keyid], 1, True, paths=[pattern])
        held = self.targets.signed.delegations
        if held is None:
            held = self.targets.signed.delegations = Delegations({}, {})
        assert held.roles is not None
        held.keys[key.keyid] = key
        held.roles[name] = role
        self.roles[name] = Metadata(Targets(expires=self.expires))

    def publish(self) -> None:
        """Everything but the root, one version up, consistent."""
        for name, metadata in {"targets": self.targets, **self.roles}.items():
            metadata.signed.version = self.snapshot.signed.version + 1
            self.snapshot.signed.meta[f"{name}.json"] = MetaFile(metadata.signed.version)
        self.snapshot.signed.version += 1
        self.timestamp.signed.version += 1
        self.timestamp.signed.snapshot_meta = MetaFile(self.snapshot.signed.version)
        for role in ("targets", *self.roles, "snapshot", "timestamp"):
            self.write(role)

    def metadata(self, role: str) -> Metadata[Any]:
        """`Any`: what kind it is depends on the role's name."""
        if role in self.roles:
            return self.roles[role]
        found: Metadata[Any] = getattr(self, role)
        return found

    def sign(self, role: str, signers: Iterable[CryptoSigner] | None = None) -> bytes:
        """The role's bytes with signatures of its signers, or of others."""
        metadata = self.metadata(role)
        metadata.signatures.clear()
        for signer in self.signers[role] if signers is None else signers:
            metadata.sign(signer, append=True)
        return metadata.to_bytes()

    def write(self, role: str, signers: Iterable[CryptoSigner] | None = None) -> None:
        """Signs the role as it stands and puts it out under the name a client asks for."""
        self.files[self.name, self.filename(role)] = self.sign(role, signers)

    def filename(self, role: str) -> str:
        version = self.metadata(role).signed.version
        versioned = role == "root" or (self.root.signed.consistent_snapshot and role != "timestamp")
        return f"{version}.{role}.json" if versioned else f"{role}.json"

    def rotate(self, role: str) -> None:
        """A new key for the role in a new root, signed by the old root keys and, for the root itself, the new too."""
        old = list(self.signers["root"])
        for signer in self.signers[role]:
            self.root.signed.revoke_key(signer.public_key.keyid, role)
        self.signers[role] = [CryptoSigner.generate_ed25519() for _ in self.signers[role]]
        for signer in self.signers[role]:
            self.root.signed.add_key(signer.public_key, role)
        self.root.signed.version += 1
        self.write("root", {id(signer): signer for signer in (*old, *self.signers["root"])}.values())


class World:
    """One device, its director repository, the image repository, and the blobs. Valid until spoilt."""

    def __init__(self, device: str = "cam-17", hardware_id: str = HARDWARE) -> None:
        self.device, self.hardware_id = device, hardware_id
        self.files: dict[tuple[str, str], bytes] = {}
        self.asked: list[tuple[str, str]] = []
        self.says_ahead = True  # an older hub does not send the timestamp along with the refusal of a root
        self.image = Repo("image", self.files, consistent=True)
        self.director = Repo("director", self.files, consistent=False)
        self.director.targets.signed.unrecognized_fields[DEVICE_ID_FIELD] = device
        self.image.delegate(PUBLISHER, TargetPath.pattern(PUBLISHER))
        self.image.write("root")
        self.director.write("root")
        self.roots = {repo.name: self.files[repo.name, "1.root.json"] for repo in (self.image, self.director)}
        self.publish()

    def publish(self) -> None:
        self.image.publish()
        self.director.publish()

    def add(self, manifest: Manifest, files: Mapping[str, bytes], counter: int) -> TargetPath:
        """Signs the module into the image repository (published by `publish`); its files become blobs."""
        path = TargetPath(PUBLISHER, manifest.name, manifest.version, manifest.profile)
        data = encode_manifest(manifest)
        for content in (data, *files.values()):
            self.files["blob", sha256_hex(content)] = content
        target = TargetFile.from_data(str(path), data, ["sha256"])
        target.unrecognized_fields["custom"] = to_custom(ImageCustom((self.hardware_id,), counter))
        self.image.roles[PUBLISHER].signed.targets[str(path)] = target
        return path

    def assign(self, path: TargetPath, deployment: str = "rollout-1", **changed: Any) -> None:
        """Lets the director want it. `changed` are fields of DirectorCustom (`Any`: whatever they are)."""
        image = self.image.roles[PUBLISHER].signed.targets[str(path)]
        counter = image.unrecognized_fields["custom"]["release_counter"]
        fields = {"hardware_id": self.hardware_id, "release_counter": counter, "deployment": deployment, **changed}
        target = TargetFile(image.length, dict(image.hashes), str(path))
        target.unrecognized_fields["custom"] = to_custom(DirectorCustom(**fields))
        self.director.targets.signed.targets[str(path)] = target

    def install(self, name: str = "digits", version: int = 1, counter: int = 1) -> TargetPath:
        """A small module, signed, assigned and published."""
        manifest, files = make_module(name, version)
        path = self.add(manifest, files, counter)
        self.director.targets.signed.targets.clear()
        self.assign(path)
        self.publish()
        return path

    def get(self, repository: Repository, name: str, offset: int, length: int, held: bytes | None = None) -> Answer:
        """As the hub would answer a Get. Raises Refused (not-found), a root's with the timestamp."""
        self.asked.append((repository, name))
        data = self.files.get((repository, name))
        if data is None:
            raise Refused(f"no {repository} file {name}", "not-found", self._ahead(repository, name, held))
        return Answer(len(data), offset, data[offset : offset + length])

    def _ahead(self, repository: Repository, name: str, held: bytes | None) -> bytes | None:
        data = self.files.get((repository, "timestamp.json"))
        if not self.says_ahead or held is None or data is None or not name.endswith(".root.json"):
            return None
        return b"" if sha256(data).digest() == held else data

    def write_roots(self, folder: Path) -> None:
        """What a device gets at enrolment."""
        for name, data in self.roots.items():
            (folder / f"{name}.root.json").write_bytes(data)


def make_module(
    name: str = "digits", version: int = 1, files: Mapping[str, bytes] | None = None, profile: str = HARDWARE
) -> tuple[Manifest, dict[str, bytes]]:
    """A manifest over files that need not be a real model."""
    held = dict(files or {"model.onnx": f"weights of {name} {version}".encode() * 100})
    manifest = Manifest(
        name=name,
        version=version,
        profile=profile,
        lineage=Lineage(model=name, model_version=version),
        inputs=(TensorSpec("x", "FP32", (-1, 4)),),
        outputs=(TensorSpec("y", "FP32", (-1, 3)),),
        files=tuple(make_entry(path, data) for path, data in held.items()),
        runtime=Runtime(model=next(iter(held))),
    )
    return manifest, held


def make_entry(path: str, data: bytes, chunk: int = MAX_CHUNK_BYTES) -> FileEntry:
    """A file cut into chunks of one size."""
    pieces = [data[at : at + chunk] for at in range(0, len(data), chunk)]
    chunks = tuple(Chunk(sha256_hex(piece), len(piece)) for piece in pieces)
    return FileEntry(path, len(data), sha256_hex(data), chunks)
