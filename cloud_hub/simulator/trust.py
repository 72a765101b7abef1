"""What simulated devices trust: the chain is verified by python-tuf once per process, each device's own set cheaply.

An agent runs a whole TUF client for both repositories. Here one device does, for all; from then on each device checks
the signature of its director's targets with the key that the verified root names, and that they are for itself.
Called by `fleet` (verifies) and `walk` (checks).
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
from securesystemslib.formats import encode_canonical
from securesystemslib.signer import Key, Signature
from tuf.api.exceptions import DownloadError, DownloadHTTPError, RepositoryError
from tuf.api.metadata import Metadata, Root, Targets
from tuf.ngclient import FetcherInterface, Updater

from cloud_hub.simulator.facts import Untrusted
from modules.errors import MALFORMED, ModuleError
from modules.messages import MAX_BLOCK_BYTES, Answer, Get, Refusal, Repository
from modules.targets import DEVICE_ID_FIELD, DirectorCustom, TargetPath, director_custom

VERIFY_S = 60.0
Ask = Callable[[Get], Awaitable[Answer | Refusal]]


class Wanted(msgspec.Struct, frozen=True):
    """One module that the director wants."""

    path: TargetPath
    custom: DirectorCustom
    sha256: str
    length: int


class DirectorSet(msgspec.Struct, frozen=True):
    """A device's verified targets."""

    version: int
    modules: tuple[Wanted, ...]


class Trust:
    """Before the first `verify` nothing is trusted."""

    def __init__(self, image_root: bytes, director_root: bytes) -> None:
        self._first: dict[Repository, bytes] = {"image": image_root, "director": director_root}
        self._keys: dict[str, Key] = {}
        self._threshold = 1
        self.roots: dict[Repository, int] = {"image": 1, "director": 1}
        self.verified = False

    async def verify(self, ask: Ask) -> None:
        """Both repositories from the first root on, by a TUF client over this device's connection.

        Raises Untrusted, also when the hub does not answer.
        """
        loop = asyncio.get_running_loop()

        def wait_for(get: Get) -> Answer | Refusal:
            async def answer() -> Answer | Refusal:
                return await ask(get)

            return asyncio.run_coroutine_threadsafe(answer(), loop).result(VERIFY_S)

        for name in ("director", "image"):
            root = await asyncio.to_thread(_refreshed, name, self._first[name], wait_for)
            self.roots[name] = root.version
            if name == "director":
                role = root.roles[Targets.type]
                self._keys = {keyid: root.keys[keyid] for keyid in role.keyids}
                self._threshold = role.threshold
        self.verified = True

    def director_set(self, device: str, data: bytes) -> DirectorSet:
        """The targets of this device's director. Raises Untrusted: bad-signature, wrong-device, bad-metadata."""
        try:
            whole = msgspec.json.decode(data)
            signed = whole["signed"]
            payload = str(encode_canonical(signed))
            if self._signers(payload, whole["signatures"]) < self._threshold:
                raise Untrusted("bad-signature", f"director's targets of {device}: not signed by the director")
            if signed.get(DEVICE_ID_FIELD) != device:
                got = str(signed.get(DEVICE_ID_FIELD))[:63]
                raise Untrusted("wrong-device", f"director's targets: expected those of {device}, got {got}")
            modules = tuple(_wanted(path, target) for path, target in signed["targets"].items())
            return DirectorSet(int(signed["version"]), modules)
        except (*MALFORMED, ModuleError, KeyError, TypeError, AttributeError, ValueError) as error:
            raise Untrusted("bad-metadata", f"director's targets of {device}: {error!r}") from error

    def _signers(self, payload: str, signatures: list[dict[str, str]]) -> int:
        good = set()
        for one in signatures:
            key = self._keys.get(one["keyid"])
            if key is not None:
                try:
                    key.verify_signature(Signature(one["keyid"], one["sig"]), payload.encode())
                except Exception:  # noqa: S112 - the library has several ways to say no; none of them counts
                    continue
                good.add(one["keyid"])
        return len(good)


def _wanted(path: str, target: dict[str, Any]) -> Wanted:
    custom = director_custom(target["custom"])
    return Wanted(TargetPath.parse(path), custom, target["hashes"]["sha256"], int(target["length"]))


class _Fetcher(FetcherInterface):
    """Metadata files by `Get`, over the connection of one device."""

    def __init__(self, repository: Repository, ask: Callable[[Get], Answer | Refusal]) -> None:
        self._repository, self._ask = repository, ask

    def _fetch(self, url: str) -> Iterator[bytes]:
        name, offset, total = url.rpartition("/")[2], 0, 1
        while offset < total:
            answer = self._ask(Get(self._repository, name, offset, MAX_BLOCK_BYTES))
            if isinstance(answer, Refusal):
                raise DownloadHTTPError(f"{name}: {answer.text}", 404 if answer.key == "not-found" else 503)
            if not answer.data:
                raise DownloadError(f"{name}: expected bytes from {offset} of {answer.total}, got none")
            total, offset = answer.total, offset + len(answer.data)
            yield answer.data


def _refreshed(name: Repository, bootstrap: bytes, ask: Callable[[Get], Answer | Refusal]) -> Root:
    with tempfile.TemporaryDirectory(prefix="mooring-simulate-") as folder:
        try:
            Updater(folder, f"{name}/", fetcher=_Fetcher(name, ask), bootstrap=bootstrap).refresh()
            return Metadata[Root].from_bytes((Path(folder) / "root.json").read_bytes()).signed
        except (RepositoryError, DownloadError, OSError, TimeoutError) as error:
            raise Untrusted("unreachable", f"{name} repository: {error}") from error
