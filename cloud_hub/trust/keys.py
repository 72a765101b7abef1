"""TUF signing keys as PEM files, one per role: made, loaded once, and refused when others could read them.

Where the files lie is all that differs between a development hub (every key in its own folder) and a hub whose
publisher and root keys are kept elsewhere: a missing file means that this hub cannot sign for that role.
Called by `trust.setup` (makes keys) and by the two repositories (sign with them).
"""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from securesystemslib.signer import CryptoSigner

from cloud_hub.config import HubPaths
from cloud_hub.errors import Conflict
from cloud_hub.hardening import CREDENTIALS, is_opened

PRIVATE_FILE = 0o600
PRIVATE_FOLDER = 0o700

ROOT_KEYS = 3
ROOT_THRESHOLD = 2
IMAGE_ROOTS = tuple(f"image-root-{number}" for number in range(1, ROOT_KEYS + 1))
IMAGE_TARGETS = "image-targets"
IMAGE_SNAPSHOT = "image-snapshot"
IMAGE_TIMESTAMP = "image-timestamp"
DIRECTOR_ROOTS = tuple(f"director-root-{number}" for number in range(1, ROOT_KEYS + 1))
DIRECTOR_TARGETS = "director-targets"
DIRECTOR_SNAPSHOT = "director-snapshot"
DIRECTOR_TIMESTAMP = "director-timestamp"
ONLINE = (IMAGE_SNAPSHOT, IMAGE_TIMESTAMP, DIRECTOR_TARGETS, DIRECTOR_SNAPSHOT, DIRECTOR_TIMESTAMP)


def publisher_key(publisher: str) -> str:
    """The name of a publisher's key."""
    return f"publisher-{publisher}"


def offline(publisher: str) -> tuple[str, ...]:
    """The keys that need not be on a running hub: roots, image targets, and the publisher's."""
    return (*IMAGE_ROOTS, IMAGE_TARGETS, *DIRECTOR_ROOTS, publisher_key(publisher))


class Keys:
    """The signers that lie in `folders`; the first folder that has a key wins. Loaded keys stay in memory."""

    def __init__(self, *folders: Path) -> None:
        self._folders = folders
        self._loaded: dict[str, CryptoSigner] = {}
        self.signed: Counter[str] = Counter()  # how often each was asked for

    def has(self, name: str) -> bool:
        return self._find(name) is not None

    def signer(self, name: str) -> CryptoSigner:
        """Raises Conflict `offline-key` when the key is not here, `key-exposed` when others may read its file."""
        if name not in self._loaded:
            self._loaded[name] = self._load(name)
        self.signed[name] += 1
        return self._loaded[name]

    def _load(self, name: str) -> CryptoSigner:
        path = self._find(name)
        if path is None:
            raise Conflict(
                "offline-key",
                f"signing key {name}: this hub does not hold it, nothing was signed; sign where "
                "that key is: mooring module sign --key",
                key_name=name,
            )
        mode = path.stat().st_mode & 0o777
        if mode & 0o077 and not is_opened(path):
            raise Conflict(
                "key-exposed",
                f"signing key {name}: expected a file that only its owner can read (0600), got {mode:04o}; not used",
                key_name=name,
            )
        private = load_pem_private_key(path.read_bytes(), None)
        if not isinstance(private, Ed25519PrivateKey):
            raise Conflict(
                "key-type",
                f"signing key {name}: expected Ed25519, got {type(private).__name__}; not used",
                key_name=name,
            )
        return CryptoSigner(private)

    def _find(self, name: str) -> Path | None:
        return next((path for folder in self._folders if (path := folder / f"{name}.pem").is_file()), None)


def key_folders(paths: HubPaths) -> tuple[Path, ...]:
    """Where a hub looks for its keys: what systemd has opened for it first, then its own folder."""
    folder = os.environ.get(CREDENTIALS, "")
    return (Path(folder), paths.keys) if folder else (paths.keys,)


def create_key(folder: Path, name: str) -> None:
    """Makes an Ed25519 key in `folder`. Raises FileExistsError rather than put another in its place."""
    path = folder / f"{name}.pem"
    if path.exists():
        raise FileExistsError(f"signing key {name}: {path} exists, nothing was changed")
    write_private(path, CryptoSigner.generate_ed25519().private_bytes)


def write_private(path: Path, data: bytes) -> None:
    """Writes `path` with mode 0600 so that a power cut leaves the old content or the new, never half."""
    path.parent.mkdir(mode=PRIVATE_FOLDER, parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:  # mkstemp made it 0600
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
