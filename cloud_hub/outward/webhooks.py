"""Webhooks as an administrator keeps them: created, listed, tried, paused, given a new secret, removed.

Every change is one transaction with its event, which names the endpoint's origin only: a URL may hold a secret. What
is delivered when is `courier`. Called by `api.webhooks`.
"""

from __future__ import annotations

import secrets
from typing import Final
from urllib.parse import urlsplit

import msgspec
from sqlalchemy.ext.asyncio import AsyncConnection

from cloud_hub.clock import Clock
from cloud_hub.errors import BadRequest, Conflict, NotFound
from cloud_hub.events import Events
from cloud_hub.outward import book
from cloud_hub.outward.book import Delivery, Webhook
from cloud_hub.outward.choice import Choice
from cloud_hub.outward.cloud_events import ping
from cloud_hub.outward.destinations import checked_url
from cloud_hub.outward.feed import EventFeed
from cloud_hub.outward.secrets import Vault, key_of, new_secret
from cloud_hub.outward.sending import Sender
from cloud_hub.outward.settings import OutwardSettings
from cloud_hub.store.engine import Store

MAX_WEBHOOKS: Final = 64
GRACE_S: Final = 86_400.0  # for which the secret before a new one signs too
MAX_GRACE_S: Final = 30 * 86_400.0
SHOWN: Final = 20


class NewWebhook(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Without a `secret` one is made. Empty filters mean any; `kinds` are such as alert.opened, alert.* or *."""

    url: str
    kinds: tuple[str, ...] = ("*",)
    module: str = ""
    severity: str = ""
    scope: str = ""
    secret: str = ""


class NewSecret(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Without a `secret` one is made. For `grace_s` seconds what is sent is signed with the one before, too."""

    secret: str = ""
    grace_s: float = GRACE_S


class WithSecret(msgspec.Struct, frozen=True):
    """The only answer in which the secret stands."""

    webhook: Webhook
    secret: str


class Counted(msgspec.Struct, frozen=True):
    """A webhook, how many events behind the newest it is, and how many of its deliveries are dead."""

    webhook: Webhook
    behind: int
    dead: int


class Detail(msgspec.Struct, frozen=True):
    """A webhook with its last deliveries, newest first."""

    webhook: Webhook
    behind: int
    dead: int
    deliveries: list[Delivery]


class Tried(msgspec.Struct, frozen=True):
    """What became of a ping. `status` is that of HTTP, 0 where no answer came."""

    delivered: bool
    status: int
    reason: str


class Asked(msgspec.Struct, frozen=True):
    """How many dead deliveries are sent once more."""

    deliveries: int


class Webhooks:
    """The administrator's side."""

    def __init__(
        self, store: Store, events: Events, clock: Clock, settings: OutwardSettings, vault: Vault, source: str
    ) -> None:
        self._store, self._events, self._clock = store, events, clock
        self._settings, self._vault, self._source = settings, vault, source

    async def create(self, new: NewWebhook, actor: str) -> WithSecret:
        """Sends what happens from now on. Raises BadRequest, Conflict `webhooks-full`."""
        url = checked_url(new.url, self._settings.plain_http, self._settings.private_addresses)
        choice = Choice(new.kinds, new.module, new.severity, new.scope).checked()
        secret = new.secret.strip() or new_secret()
        number = f"wh-{secrets.token_hex(6)}"
        sealed = self._vault.seal(key_of(secret), number)
        webhook = Webhook(number, url, choice, "active", "", self._clock(), actor, None, 0, 0.0)
        async with self._store.write() as connection:
            if len(await book.every(connection)) >= MAX_WEBHOOKS:
                raise Conflict("webhooks-full", f"there are {MAX_WEBHOOKS} webhooks already; nothing was changed")
            await EventFeed(self._store, feed_name(number)).open(connection)
            await book.insert_webhook(connection, webhook, sealed)
            await self._record(connection, "created", actor, webhook, choice=msgspec.to_builtins(choice))
        return WithSecret(webhook, secret)

    async def overview(self) -> list[Counted]:
        async with self._store.read() as connection:
            found, counts = await book.every(connection), await book.counts(connection)
            return [
                Counted(one, await self._behind(connection, one.id), counts.get((one.id, "dead"), 0)) for one in found
            ]

    async def show(self, number: str) -> Detail:
        """Raises NotFound `webhook-not-found`, as all others that take a number do."""
        async with self._store.read() as connection:
            webhook, counts = await self._require(connection, number), await book.counts(connection)
            last = await book.newest(connection, number, limit=SHOWN)
            return Detail(webhook, await self._behind(connection, number), counts.get((number, "dead"), 0), last)

    async def pause(self, number: str, actor: str) -> Webhook:
        """Events wait from now on; none is lost."""
        return await self._set_state(number, "paused", actor)

    async def resume(self, number: str, actor: str, skip: bool = False) -> Webhook:
        """Goes on where it stood, or with `skip` behind the newest event."""
        return await self._set_state(number, "active", actor, skip)

    async def delete(self, number: str, actor: str) -> None:
        async with self._store.write() as connection:
            webhook = await self._require(connection, number)
            await book.remove(connection, number)
            await EventFeed(self._store, feed_name(number)).close(connection)
            await self._record(connection, "deleted", actor, webhook)

    async def rotate(self, number: str, new: NewSecret, actor: str) -> WithSecret:
        """Raises BadRequest `secret-invalid` or `grace-invalid`."""
        if not 0 <= new.grace_s <= MAX_GRACE_S:
            raise BadRequest("grace-invalid", f"grace_s: expected 0 to {MAX_GRACE_S:.0f} seconds, got {new.grace_s}")
        secret = new.secret.strip() or new_secret()
        sealed = self._vault.seal(key_of(secret), number)
        async with self._store.write() as connection:
            webhook = await self._require(connection, number)
            before = await book.secrets_of(connection, number)
            previous = before.secret if before is not None and new.grace_s else None
            until = self._clock() + new.grace_s
            await book.change(connection, number, secret=sealed, previous=previous, previous_until=until)
            await self._record(connection, "secret-changed", actor, webhook, grace_s=new.grace_s)
        return WithSecret(webhook, secret)

    async def ping(self, number: str, actor: str, sender: Sender) -> Tried:
        """Sends one event of its own at once, also to a webhook that is paused. Raises Conflict `secret-lost`."""
        async with self._store.read() as connection:
            webhook = await self._require(connection, number)
        event = ping(self._source, number, secrets.token_hex(8), self._clock(), actor)
        answer = await sender.send(webhook.url, await self.keys(number), event, self._clock())
        return Tried(200 <= answer.status < 300, answer.status, answer.reason)

    async def dead(self, number: str, before: int = 0, limit: int = 100) -> list[Delivery]:
        """Deliveries that are not tried any more, newest first."""
        async with self._store.read() as connection:
            await self._require(connection, number)
            return await book.newest(connection, number, "dead", before, limit)

    async def redeliver(self, number: str, delivery: int | None, actor: str) -> Asked:
        """Dead ones are sent once more: that delivery, or with None all. Raises NotFound `delivery-not-found`."""
        async with self._store.write() as connection:
            webhook = await self._require(connection, number)
            count = await book.ask_again(connection, number, delivery)
            if delivery is not None and not count:
                raise NotFound("delivery-not-found", f"webhook {number} has no dead delivery {delivery}")
            await self._record(connection, "redelivery-asked", actor, webhook, deliveries=count)
        return Asked(count)

    async def keys(self, number: str) -> list[bytes]:
        """What signs for a webhook now, newest first. Raises NotFound, Conflict `secret-lost`."""
        async with self._store.read() as connection:
            kept = await book.secrets_of(connection, number)
        if kept is None:
            raise _unknown(number)
        return self.unsealed(number, kept)

    def unsealed(self, number: str, kept: book.Sealed) -> list[bytes]:
        """As `keys`, of what was read already. Raises Conflict `secret-lost`."""
        keys = [self._vault.unseal(kept.secret, number)]
        if kept.previous is not None and self._clock() < (kept.previous_until or 0.0):
            keys.append(self._vault.unseal(kept.previous, number))
        return keys

    async def _set_state(self, number: str, state: book.State, actor: str, skip: bool = False) -> Webhook:
        async with self._store.write() as connection:
            webhook = await self._require(connection, number)
            await book.change(
                connection, number, state=state, reason="", failing_since=None, failures=0, not_before=0.0
            )
            if skip:
                await EventFeed(self._store, feed_name(number)).skip(connection)
            kind = {"paused": "paused", "active": "resumed", "disabled": "disabled"}[state]
            await self._record(connection, kind, actor, webhook, skip=skip)
            return await self._require(connection, number)

    async def _behind(self, connection: AsyncConnection, number: str) -> int:
        return await EventFeed(self._store, feed_name(number)).behind(connection)

    async def _require(self, connection: AsyncConnection, number: str) -> Webhook:
        webhook = await book.find(connection, number)
        if webhook is None:
            raise _unknown(number)
        return webhook

    async def _record(
        self, connection: AsyncConnection, kind: str, actor: str, webhook: Webhook, **details: object
    ) -> None:
        origin = origin_of(webhook.url)
        await self._events.record(connection, f"webhook.{kind}", actor, webhook.id, endpoint=origin, **details)


def feed_name(webhook: str) -> str:
    return f"webhook:{webhook}"


def origin_of(url: str) -> str:
    """Without path and query, which often are what lets one in."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


def _unknown(number: str) -> NotFound:
    return NotFound("webhook-not-found", f"no webhook {number[:80]}", id=number[:80])
