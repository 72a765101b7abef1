"""By which ways a device may get its files beside asking for blocks over MQTT: an address, a grant, patches.

Only files that the device may have (by the rule of `serving`) get an answer; nothing is kept about it. Called by `link`
for each `Offers` question.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final, Protocol

import msgspec

from cloud_hub.capabilities import Capabilities
from cloud_hub.clock import Clock
from cloud_hub.serving import Serving
from cloud_hub.transfer_settings import TransferSettings
from modules.bundle import check_digest
from modules.errors import ChunkError
from modules.messages import MAX_OFFERS, Offered, Offers, PatchOffer, Refusal, Way

# What an answer may take on the way, so that nobody thinks a right is good that has just ended.
ON_THE_WAY_S: Final = 30.0
MAX_PATCHES: Final = 4
BLOBS_PATH: Final = "/api/v1/blobs"
log = logging.getLogger(__name__)


class Patches(Protocol):
    """Which patches lead to a file from one of those that a device holds, the cheapest first; addresses empty."""

    async def offers(self, device: str, file_sha256: str, held: Sequence[str]) -> tuple[PatchOffer, ...]: ...


class Elsewhere(Protocol):
    """Another place that has files: an address there, good until `expires`; empty where it has not got the file yet."""

    async def url(self, sha256: str, expires: int) -> str: ...


class Ways:
    """Composes answers. Without `patches` and `elsewhere` there are only the hub's own addresses and grants."""

    def __init__(
        self,
        settings: TransferSettings,
        serving: Serving,
        capabilities: Capabilities,
        clock: Clock,
        patches: Patches | None = None,
        elsewhere: Elsewhere | None = None,
    ) -> None:
        self._settings = settings
        self._serving = serving
        self._capabilities = capabilities
        self._clock = clock
        self._patches = patches
        self._elsewhere = elsewhere

    async def answer(self, device: str, offers: Offers) -> Offered | Refusal:
        """A way for each file asked for that the device may have, in the order asked for."""
        if len(offers.files) > MAX_OFFERS or len(offers.held) > MAX_OFFERS:
            return Refusal("bad-request", f"offers: expected at most {MAX_OFFERS} files, and as many held")
        try:
            for digest in (*offers.files, *offers.held):
                check_digest(digest)
        except ChunkError as error:
            return Refusal("bad-request", f"offers: {error}")
        permitted = await self._serving.permitted(device, offers.files)
        expires = self._capabilities.end(self._settings.url_life_s)
        wanted = [digest for digest in dict.fromkeys(offers.files) if digest in permitted]
        ways = [await self._way(device, digest, offers.held, expires) for digest in wanted]
        return Offered(tuple(ways), max(0.0, expires - self._clock() - ON_THE_WAY_S))

    async def _way(self, device: str, digest: str, held: Sequence[str], expires: int) -> Way:
        patches = await self._patched(device, digest, held)
        return Way(
            digest,
            await self._url(digest, expires),
            self._capabilities.give("grant", digest, expires),
            tuple([await self._addressed(patch, expires) for patch in patches]),
        )

    async def _patched(self, device: str, digest: str, held: Sequence[str]) -> tuple[PatchOffer, ...]:
        if self._patches is None or not held:
            return ()
        try:
            return (await self._patches.offers(device, digest, held))[:MAX_PATCHES]
        except Exception:
            # Patches save bytes; without them the file comes whole.
            log.exception("no patches could be offered: device=%s file=%s", device, digest)
            return ()

    async def _addressed(self, patch: PatchOffer, expires: int) -> PatchOffer:
        url = await self._url(patch.sha256, expires)
        return msgspec.structs.replace(patch, url=url, grant=self._capabilities.give("grant", patch.sha256, expires))

    async def _url(self, digest: str, expires: int) -> str:
        """Where another place has the file, there; else at this hub, relative to its address; else empty."""
        if self._elsewhere is not None and (url := await self._elsewhere.url(digest, expires)):
            return url
        if not self._settings.https:
            return ""
        right = self._capabilities.give("url", digest, expires)
        return f"{self._settings.public_url.rstrip('/')}{BLOBS_PATH}/{digest}?right={right}"
