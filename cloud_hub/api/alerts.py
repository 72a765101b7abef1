"""Routes of alerts: what is wrong, who sees to it, and what modules are compared with."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from cloud_hub.api.pages import Page, WholeQuery, cut, page_of_all
from cloud_hub.api.route import Call, Route
from cloud_hub.bounds import Limit, RowId
from cloud_hub.errors import BadRequest
from cloud_hub.monitoring.alert_book import MAX_ALERTS, Alert, AlertDetail
from cloud_hub.monitoring.reference import TRAINING, parse
from cloud_hub.monitoring.scopes import is_device, is_group, of_name
from cloud_hub.monitoring.watches import Watch
from cloud_hub.roles import Role
from cloud_hub.rooms import Rooms

Comment = Annotated[str, msgspec.Meta(max_length=2000)]


class AlertQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Newest first; `before` is the id of the last alert of the page before. `live` is all but resolved. With
    `attached` false those for which a wider alert speaks are left out.
    """

    state: Literal["", "live", "open", "acknowledged", "snoozed", "resolved"] = ""
    module: str = ""
    before: RowId = 0
    limit: Limit = 100
    attached: bool = True


class Acknowledgement(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Somebody sees to it; `comment` stands in the alert's history."""

    comment: Comment = ""


class Snooze(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Put off for so many seconds, at most 92 days; then it is open again unless it has become calm."""

    for_s: float
    comment: Comment = ""


class Resolution(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """It is over: what was counted up to now is not weighed again. With `normal` what was counted since the change
    began becomes the reference of this scope.
    """

    comment: Comment = ""
    normal: bool = False


class NewWatch(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`reference` is training, period:FROM..TO, version:N or fleet; `scope` is fleet (for every scope without a watch
    of its own), device:ID or group:KEY=VALUE.
    """

    reference: Annotated[str, msgspec.Meta(max_length=200)]
    scope: Annotated[str, msgspec.Meta(max_length=280)] = "fleet"


class WatchQuery(WholeQuery, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Of one module, or of all."""

    module: str = ""


async def list_alerts(rooms: Rooms, call: Call) -> Page[Alert]:
    query: AlertQuery = call.query
    mine = await call.access.devices()
    limit = min(query.limit, MAX_ALERTS)
    found = await rooms.alerts.list(query.state, query.module, query.before, limit + 1, mine, query.attached)
    page = cut(found, limit, lambda alert: alert.id, parameter="before")
    shown = [await call.access.shown_alert(alert) for alert in page.rows]
    return page.showing([alert for alert in shown if alert is not None])


async def show_alert(rooms: Rooms, call: Call) -> AlertDetail:
    return await _shown(call, await rooms.alerts.detail(call.int("id")))


async def acknowledge_alert(rooms: Rooms, call: Call) -> AlertDetail:
    body: Acknowledgement = call.body
    number = await _own(rooms, call)
    return await _shown(call, await rooms.alerts.acknowledge(number, call.actor, body.comment))


async def snooze_alert(rooms: Rooms, call: Call) -> AlertDetail:
    body: Snooze = call.body
    number = await _own(rooms, call)
    return await _shown(call, await rooms.alerts.snooze(number, body.for_s, call.actor, body.comment))


async def resolve_alert(rooms: Rooms, call: Call) -> AlertDetail:
    body: Resolution = call.body
    number = await _own(rooms, call)
    return await _shown(call, await rooms.alerts.resolve(number, call.actor, body.comment, body.normal))


async def list_watches(rooms: Rooms, call: Call) -> Page[Watch]:
    query: WatchQuery = call.query
    mine = await call.access.devices()
    found = await rooms.alerts.watches.all(query.module)
    shown = [watch for watch in found if mine is None or of_name(watch.scope) in mine]
    return page_of_all(shown, query, lambda watch: (watch.module, watch.scope))


async def set_watch(rooms: Rooms, call: Call) -> Watch:
    body: NewWatch = call.body
    scope = of_name(body.scope)
    if body.scope != "fleet" and body.scope.partition(":")[0] not in ("device", "group"):
        raise BadRequest(
            "scope-invalid", f"scope: expected fleet, device:ID or group:KEY=VALUE, got {body.scope[:80]!r}"
        )
    if body.scope.startswith("device:"):
        await call.access.require_known_device(scope)
    else:
        call.access.require_everything("a reference of more than one device")
    reference, counted = parse(body.reference), rooms.config.monitoring.group_by
    if is_group(scope) and scope.partition("=")[0] not in counted and reference != TRAINING:
        some = ", ".join(counted) or "nothing"
        text = f"scope: groups are counted by {some} ([monitoring] group_by in hub.toml), got {scope[:80]!r}"
        raise BadRequest("scope-invalid", text)
    return await rooms.alerts.watches.set(call.path["module"], body.scope, reference, call.actor)


async def _own(rooms: Rooms, call: Call) -> int:
    """The number in the path, of an alert that whoever asks may change."""
    number = call.int("id")
    await call.access.require_alert((await rooms.alerts.detail(number)).alert, change=True)
    return number


async def _shown(call: Call, found: AlertDetail) -> AlertDetail:
    alert = await call.access.require_alert(found.alert, change=False)
    if call.access.everything:
        return found
    # What people wrote about an alert of many may speak of any of them.
    return AlertDetail(alert, found.history if is_device(alert.group.device) else (), ())


_ALERT = "/alerts/{id}"
ROUTES: tuple[Route, ...] = (
    Route(
        "GET",
        "/alerts",
        list_alerts,
        "Alerts with their evidence",
        returns=list[Alert],
        query=AlertQuery,
        role=Role.VIEWER,
        paged=True,
    ),
    Route(
        "GET",
        _ALERT,
        show_alert,
        "One alert with its history and what it speaks for",
        returns=AlertDetail,
        role=Role.VIEWER,
    ),
    Route(
        "POST",
        f"{_ALERT}/acknowledge",
        acknowledge_alert,
        "See to an alert",
        returns=AlertDetail,
        body=Acknowledgement,
        role=Role.OPERATOR,
    ),
    Route(
        "POST",
        f"{_ALERT}/snooze",
        snooze_alert,
        "Put an alert off",
        returns=AlertDetail,
        body=Snooze,
        role=Role.OPERATOR,
    ),
    Route(
        "POST",
        f"{_ALERT}/resolve",
        resolve_alert,
        "End an alert by hand, if you like with what is counted now as the new reference",
        returns=AlertDetail,
        body=Resolution,
        role=Role.OPERATOR,
    ),
    Route(
        "GET",
        "/watches",
        list_watches,
        "What modules are compared with, where that is not their training data",
        returns=list[Watch],
        query=WatchQuery,
        role=Role.VIEWER,
        paged=True,
    ),
    Route(
        "PUT",
        "/watches/{module}",
        set_watch,
        "Choose what a module is compared with",
        returns=Watch,
        body=NewWatch,
        role=Role.OPERATOR,
    ),
)
