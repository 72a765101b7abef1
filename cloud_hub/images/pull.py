"""Pull a base image from a registry by its digest, into a tar archive of an OCI layout. Called by `images.bases`.

Anonymous, or with a token that the registry gives to anybody. What comes is checked by `images.base` like an upload;
here it is bounded, and named by digests only.
Source: OCI distribution specification 1.1; Docker registry token authentication.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import tarfile
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from cloud_hub.errors import Unavailable, Unprocessable
from cloud_hub.images.settings import ImageSettings
from modules.errors import MALFORMED
from modules.images import INDEX_TYPE, MANIFEST_TYPE, MAX_DOCUMENT_BYTES, MAX_LAYERS

_DOCKER = "application/vnd.docker.distribution.manifest"
_ACCEPT = ", ".join([INDEX_TYPE, MANIFEST_TYPE, f"{_DOCKER}.list.v2+json", f"{_DOCKER}.v2+json"])
_CHALLENGE = re.compile(r'(\w+)="([^"]*)"')
_BLOCK = 1024 * 1024


async def pull(host: str, name: str, digest: str, architecture: str, settings: ImageSettings, target: Path) -> None:
    """Raises Unprocessable `image-refused`, Unavailable `registry-unreachable`."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        async with asyncio.timeout(settings.pull_s), aiohttp.ClientSession() as session:
            await _Pull(session, host, name, settings.max_mib * 2**20, target).run(digest, architecture)
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        text = f"registry {host}: {type(error).__name__} {error}; nothing was built, try again later"
        raise Unavailable("registry-unreachable", text) from error


class _Pull:
    """One image. `left` are the bytes that may still come."""

    def __init__(self, session: aiohttp.ClientSession, host: str, name: str, left: int, target: Path) -> None:
        loopback = host.partition(":")[0] in ("localhost", "127.0.0.1")
        self._session = session
        self._base = f"{'http' if loopback else 'https'}://{host}/v2/{name}"
        self._secure = not loopback
        self._left = left
        self._target = target
        self._headers: dict[str, str] = {}

    async def run(self, digest: str, architecture: str) -> None:
        document = await self._document("manifests", digest)
        chain = [digest]
        for _ in range(3):  # an index may name indexes
            entries = document.get("manifests")
            if not entries:
                break
            chain.append(_chosen(entries, architecture))
            document = await self._document("manifests", chain[-1])
        blobs = _blobs(document)
        for one in blobs:
            await self._get("blobs", one, self._file(one))
        await asyncio.to_thread(self._archive, digest, [*chain, *blobs])

    async def _document(self, kind: str, digest: str) -> dict[str, Any]:
        path = self._file(digest)
        await self._get(kind, digest, path)
        if path.stat().st_size > MAX_DOCUMENT_BYTES:
            raise _refused(f"{digest}: expected a document of at most {MAX_DOCUMENT_BYTES} bytes")
        try:
            found: dict[str, Any] = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
        except MALFORMED as error:
            raise _refused(f"{digest}: {error}") from error
        return found

    async def _get(self, kind: str, digest: str, path: Path) -> None:
        """To the file, by its digest. Asks for a token once."""
        for again in (True, False):
            async with self._session.get(
                f"{self._base}/{kind}/{digest}", headers={"Accept": _ACCEPT, **self._headers}
            ) as answer:
                if answer.status == 401 and again:
                    self._headers = {"Authorization": f"Bearer {await self._token(answer)}"}
                    continue
                if answer.status != 200:
                    raise _refused(f"{self._base}/{kind}/{digest}: expected status 200, got {answer.status}")
                return await self._save(answer, digest, path)

    async def _save(self, answer: aiohttp.ClientResponse, digest: str, path: Path) -> None:
        found = hashlib.sha256()
        with path.open("wb") as file:
            async for block in answer.content.iter_chunked(_BLOCK):
                self._left -= len(block)
                if self._left < 0:
                    raise _refused("it is larger than images.max_mib allows")
                found.update(block)
                file.write(block)
        if digest != f"sha256:{found.hexdigest()}":
            raise _refused(f"expected {digest}, got sha256:{found.hexdigest()}")

    async def _token(self, answer: aiohttp.ClientResponse) -> str:
        challenge = dict(_CHALLENGE.findall(answer.headers.get("WWW-Authenticate", "")))
        realm = challenge.pop("realm", "")
        if not realm.startswith("https://" if self._secure else ("http://", "https://")):
            raise _refused("the registry wants credentials; put the image into an archive and upload that")
        async with self._session.get(realm, params=challenge) as given:
            body = await given.content.read(MAX_DOCUMENT_BYTES)
        try:
            said = msgspec.json.decode(body, type=dict[str, Any])
        except MALFORMED as error:
            raise _refused(f"{realm}: expected a token ({error})") from error
        return str(said.get("token") or said.get("access_token") or "")

    def _file(self, digest: str) -> Path:
        return self._target.with_name(f"{self._target.name}-{digest.removeprefix('sha256:')}")

    def _archive(self, digest: str, names: list[str]) -> None:
        index = self._target.with_name("index.json")
        index.write_bytes(msgspec.json.encode({"schemaVersion": 2, "manifests": [{"digest": digest}]}))
        with tarfile.open(self._target, "w") as tar:
            tar.add(index, "index.json")
            for name in dict.fromkeys(names):
                tar.add(self._file(name), f"blobs/{name.replace(':', '/')}")
                self._file(name).unlink()


def _chosen(entries: Any, architecture: str) -> str:  # noqa: ANN401 - as it came
    for entry in entries if isinstance(entries, list) else []:
        platform = entry.get("platform") or {} if isinstance(entry, dict) else {}
        if platform.get("architecture") == architecture and platform.get("os") == "linux":
            return _digest(entry)
    raise _refused(f"it has no image for linux/{architecture}")


def _blobs(document: dict[str, Any]) -> list[str]:
    layers = document.get("layers")
    if not isinstance(layers, list) or not 1 <= len(layers) <= MAX_LAYERS:
        raise _refused("expected an image's manifest with layers")
    return [_digest(entry) for entry in (document.get("config"), *layers)]


def _digest(entry: Any) -> str:  # noqa: ANN401 - as it came
    found = entry.get("digest") if isinstance(entry, dict) else None
    if not isinstance(found, str) or not re.fullmatch(r"sha256:[0-9a-f]{64}", found):
        raise _refused(f"expected digests as sha256:..., got {str(found)[:80]!r}")
    return found


def _refused(text: str) -> Unprocessable:
    return Unprocessable("image-refused", f"base image: {text}; nothing was built")
