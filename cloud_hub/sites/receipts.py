"""A receipt: up to where another hub has what a site has packed. Sealed by that hub, carried back, taken in here.

A receipt that is forged would make the site leave out what nobody has, so only hubs that were added as sites count.
"""

from __future__ import annotations

import base64
import binascii
import hashlib

import msgspec

from cloud_hub.errors import Unprocessable
from cloud_hub.events import Events
from cloud_hub.sites import book
from cloud_hub.sites.seal import Seal, holds
from cloud_hub.store.engine import Store
from modules.errors import MALFORMED

MAX_CHARS = 10_000


class Receipt(msgspec.Struct, frozen=True):
    """`upto`: the number of the last row of each stream up to which everything has been merged."""

    epoch: str
    upto: dict[str, int]

    def sealed(self, seal: Seal) -> str:
        """One line of text."""
        body = msgspec.json.encode(self, order="sorted")
        signature = seal.sign(hashlib.sha256(body).digest())
        return f"{base64.b64encode(body).decode()}.{base64.b64encode(signature).decode()}"


class Receipts:
    def __init__(self, store: Store, events: Events) -> None:
        self._store, self._events = store, events

    async def take(self, text: str, epoch: str, actor: str) -> Receipt:
        """From now on packs begin behind it. Raises Unprocessable `receipt-invalid` or `seal-invalid`."""
        body, signature = _parts(text)
        async with self._store.write() as connection:
            digest = hashlib.sha256(body).digest()
            names = [name for name, key in (await book.keys(connection)).items() if holds(key, digest, signature)]
            if not names:
                raise Unprocessable(
                    "seal-invalid", "the receipt is sealed by no hub that was added here; nothing changed"
                )
            receipt = _read(body)
            if receipt.epoch != epoch or not receipt.upto.keys() <= book.STREAMS.keys():
                raise Unprocessable("receipt-invalid", "the receipt is for another hub's pack; nothing was changed")
            await book.move_marks(connection, receipt.upto)
            await self._events.record(connection, "site.received", actor, names[0], upto=receipt.upto)
        return receipt


def _parts(text: str) -> tuple[bytes, bytes]:
    body, _, signature = text.strip()[:MAX_CHARS].partition(".")
    try:
        return base64.b64decode(body, validate=True), base64.b64decode(signature, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Unprocessable("receipt-invalid", f"not to be read as a receipt: {error}") from error


def _read(body: bytes) -> Receipt:
    try:
        return msgspec.json.decode(body, type=Receipt)
    except (*MALFORMED, ValueError) as error:
        raise Unprocessable("receipt-invalid", f"not to be read as a receipt: {error}") from error
