"""Requests that may come again, as they are kept: under a digest of who asks and their key, with a sealed answer.

The answer may hold a secret that can be had only once (a token, say). It is sealed with AES-256-GCM under a key that
is made of the client's own: whoever reads the database has only its digest. Called by `idempotency` and `retention`.
"""

from __future__ import annotations

import hashlib
import secrets
import zlib
from dataclasses import dataclass
from typing import Final

import msgspec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from cloud_hub.clock import Clock
from cloud_hub.store.engine import Store
from cloud_hub.store.tables import kept_requests

KEPT_S: Final = 24 * 3600.0
MAX_ANSWER_BYTES: Final = 256 * 1024
SLICE: Final = 500
_NONCE_BYTES: Final = 12


class Answer(msgspec.Struct, frozen=True):
    """What was said: status, headers that matter, media type and body."""

    status: int
    media: str
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True)
class Asked:
    """One request of one principal with one key. `asked` is a digest of all that it says."""

    id: str
    asked: str
    secret: bytes

    @classmethod
    def of(cls, principal: str, key: str, *said: bytes) -> Asked:
        whole = principal.encode() + b"\0" + key.encode()
        lengths = b"".join(len(part).to_bytes(8, "big") + part for part in said)
        secret = HKDF(SHA256(), 32, None, b"mooring answer").derive(whole)
        return cls(hashlib.sha256(b"mooring key\0" + whole).hexdigest(), hashlib.sha256(lengths).hexdigest(), secret)

    def seal(self, answer: Answer) -> bytes:
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return nonce + AESGCM(self.secret).encrypt(nonce, zlib.compress(msgspec.msgpack.encode(answer), 1), None)

    def unseal(self, kept: bytes) -> Answer:
        raw = AESGCM(self.secret).decrypt(kept[:_NONCE_BYTES], kept[_NONCE_BYTES:], None)
        return msgspec.msgpack.decode(zlib.decompress(raw), type=Answer)


@dataclass(frozen=True)
class Kept:
    """What is known of a request that came before: another one under the same key, or its answer, if there is one."""

    same: bool
    at: float
    here: bool  # this run of the hub worked on it
    answer: Answer | None


class KeptRequests:
    """The table, bounded to `most` rows. One per process."""

    def __init__(self, store: Store, clock: Clock, most: int) -> None:
        self._store, self._clock, self._most = store, clock, most
        self._process = secrets.token_hex(16)
        self._room = 0  # how many may be written before the rows are counted again

    async def find(self, asked: Asked) -> Kept | None:
        """None also for what was kept too long ago."""
        async with self._store.read() as connection:
            row = (await connection.execute(select(kept_requests).where(kept_requests.c.id == asked.id))).one_or_none()
        if row is None or row.at <= self._clock() - KEPT_S:
            return None
        same = row.asked == asked.asked
        answer = asked.unseal(row.answer) if same and row.answer is not None else None
        return Kept(same, row.at, row.process == self._process, answer)

    async def claim(self, connection: AsyncConnection, asked: Asked) -> bool:
        """Notes, in the transaction of what it does, that the request has been begun. False when it was before."""
        here = kept_requests.c.id == asked.id
        await connection.execute(delete(kept_requests).where(here, kept_requests.c.at <= self._clock() - KEPT_S))
        if (await connection.execute(select(kept_requests.c.id).where(here))).one_or_none() is not None:
            return False
        await self._make_room(connection)
        row = {"id": asked.id, "asked": asked.asked, "at": self._clock(), "process": self._process}
        await connection.execute(insert(kept_requests).values(row))
        return True

    async def keep(self, connection: AsyncConnection, asked: Asked, answer: Answer) -> None:
        """Beside what was claimed. An answer that is too large is not kept, the request is."""
        sealed = asked.seal(answer)
        if len(sealed) <= MAX_ANSWER_BYTES:
            row = update(kept_requests).where(kept_requests.c.id == asked.id)
            await connection.execute(row.values(answer=sealed))

    async def _make_room(self, connection: AsyncConnection) -> None:
        if self._room > 0:
            self._room -= 1
            return
        count = (await connection.execute(select(func.count()).select_from(kept_requests))).scalar_one()
        if count >= self._most:
            surplus = count - self._most + max(1, self._most // 20)
            oldest = select(kept_requests.c.id).order_by(kept_requests.c.at).limit(surplus)
            count -= (await connection.execute(delete(kept_requests).where(kept_requests.c.id.in_(oldest)))).rowcount
        self._room = max(0, self._most - count - 1)


async def forget_requests(store: Store, before: float) -> int:
    """Those of before `before`, slice by slice. How many there were."""
    gone = 0
    while True:
        async with store.write() as connection:
            oldest = select(kept_requests.c.id).where(kept_requests.c.at < before).limit(SLICE)
            count = (await connection.execute(delete(kept_requests).where(kept_requests.c.id.in_(oldest)))).rowcount
        gone += count
        if count < SLICE:
            return gone
