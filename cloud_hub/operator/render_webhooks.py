"""Webhooks and their deliveries as tables for a terminal. Pure; as `render`."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from cloud_hub.operator.render import card, table, when
from cloud_hub.outward.book import Delivery, Webhook
from cloud_hub.outward.webhooks import Counted, Detail, Tried, WithSecret


def webhooks(found: Sequence[Counted]) -> RenderableType:
    rows = [
        (one.webhook.id, one.webhook.url, ", ".join(one.webhook.choice.kinds), _state(one.webhook),
         str(one.behind), str(one.dead))
        for one in found
    ]  # fmt: skip
    return table(("webhook", "url", "kinds", "state", "behind", "dead"), rows, "no webhooks")


def detail(found: Detail) -> RenderableType:
    webhook = found.webhook
    facts = _facts(webhook) | {"behind": f"{found.behind} events", "dead": f"{found.dead} deliveries"}
    return Group(card(facts), Text(""), deliveries(found.deliveries))


def webhook(found: Webhook) -> RenderableType:
    return card(_facts(found))


def with_secret(found: WithSecret) -> RenderableType:
    return card(_facts(found.webhook) | {"secret": found.secret})


def deliveries(found: Sequence[Delivery]) -> RenderableType:
    rows = [
        (str(one.id), str(one.event), one.kind, one.state, str(one.attempts),
         str(one.status or ""), when(one.last_at), one.reason)
        for one in found
    ]  # fmt: skip
    names = ("delivery", "event", "kind", "state", "attempts", "status", "last", "reason")
    return table(names, rows, "no deliveries")


def tried(found: Tried) -> RenderableType:
    words = "delivered" if found.delivered else f"not delivered: {found.reason}"
    return Text(f"{words} (HTTP {found.status})" if found.status else words, overflow="fold")


def _facts(webhook: Webhook) -> dict[str, str]:
    choice = webhook.choice
    return {
        "webhook": webhook.id,
        "url": webhook.url,
        "kinds": ", ".join(choice.kinds),
        "module": choice.module or "any",
        "severity": f"{choice.severity} and above" if choice.severity else "any",
        "scope": choice.scope or "every device",
        "state": _state(webhook),
        "created": f"{when(webhook.created_at)} by {webhook.created_by}",
    }


def _state(webhook: Webhook) -> str:
    if webhook.state != "active":
        return f"{webhook.state}: {webhook.reason}" if webhook.reason else webhook.state
    if not webhook.failures:
        return webhook.state
    return f"failing since {when(webhook.failing_since)}, next attempt {when(webhook.not_before)}"
