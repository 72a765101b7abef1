"""The part of the hub's client that has to do with webhooks. Mixed into `client.HubClient`."""

from __future__ import annotations

from cloud_hub.api.webhooks import Again, Resumed
from cloud_hub.operator.transport import Transport, path_of
from cloud_hub.outward.book import Delivery, Webhook
from cloud_hub.outward.webhooks import GRACE_S, Asked, Counted, Detail, NewSecret, NewWebhook, Tried, WithSecret


class WebhookCalls:
    _http: Transport

    async def webhooks(self) -> list[Counted]:
        return await self._http.ask(list[Counted], "GET", "/webhooks")

    async def create_webhook(self, new: NewWebhook) -> WithSecret:
        """The secret cannot be had again."""
        return await self._http.ask(WithSecret, "POST", "/webhooks", new)

    async def webhook(self, number: str) -> Detail:
        return await self._http.ask(Detail, "GET", path_of("webhooks", number))

    async def delete_webhook(self, number: str) -> None:
        await self._http.raw("DELETE", path_of("webhooks", number))

    async def pause_webhook(self, number: str) -> Webhook:
        return await self._http.ask(Webhook, "POST", path_of("webhooks", number, "pause"))

    async def resume_webhook(self, number: str, skip: bool = False) -> Webhook:
        """With `skip` it does not get what waited."""
        return await self._http.ask(Webhook, "POST", path_of("webhooks", number, "resume"), Resumed(skip))

    async def rotate_webhook(self, number: str, secret: str = "", grace_s: float = GRACE_S) -> WithSecret:
        """The secret cannot be had again."""
        new = NewSecret(secret, grace_s)
        return await self._http.ask(WithSecret, "POST", path_of("webhooks", number, "secret"), new)

    async def ping_webhook(self, number: str) -> Tried:
        return await self._http.ask(Tried, "POST", path_of("webhooks", number, "ping"))

    async def dead_deliveries(self, number: str, limit: int = 100) -> list[Delivery]:
        """Newest first."""
        path = path_of("webhooks", number, "dead")
        return await self._http.ask(list[Delivery], "GET", path, query={"limit": limit})

    async def redeliver(self, number: str, delivery: int = 0) -> int:
        """One dead delivery, or all with 0. How many are sent once more."""
        found = await self._http.ask(Asked, "POST", path_of("webhooks", number, "redeliver"), Again(delivery))
        return found.deliveries
