"""Routes of devices: claim tokens, enrolment, the fleet in lists and counts, and one device in detail."""

from __future__ import annotations

import logging

import msgspec

from cloud_hub.api.pages import Page, PageQuery, WholeQuery, cut, page_of_all
from cloud_hub.api.route import Call, Route
from cloud_hub.claims import IssuedToken, KnownToken, NewToken
from cloud_hub.desired import Assignment
from cloud_hub.device_rows import Device
from cloud_hub.errors import HubError, NotFound
from cloud_hub.explaining import Coming, coming, explained
from cloud_hub.expulsion import Expelled
from cloud_hub.fleet import FleetQuery, FleetSummary
from cloud_hub.query import DeviceFacts
from cloud_hub.renewals import Readmission
from cloud_hub.reports import Difference
from cloud_hub.roles import Role
from cloud_hub.rooms import Rooms
from modules.enrolment import EnrollAnswer, EnrollRequest, RenewAnswer, RenewRequest

_log = logging.getLogger(__name__)


class TokenQuery(WholeQuery, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """With `spent` also those that let nobody in any more."""

    spent: bool = False


class Readmitted(msgspec.Struct, frozen=True):
    """Until when (seconds since the epoch) the device may renew its expired certificate."""

    device: str
    until: float


class DeviceQuery(PageQuery, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which devices: `all`, or a query such as `site=lyon and (agent < 0.2 or state = differs)`. Retired ones only on
    request; with `brief` without their reports.
    """

    query: str = "all"
    retired: bool = False
    brief: bool = False


class SummaryQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which devices to count, as in lists."""

    query: str = "all"
    retired: bool = False


class NewTags(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All tags that the device shall have."""

    tags: dict[str, str]


class DeviceDetail(msgspec.Struct, frozen=True):
    """A device, what it shall run, what is not as desired and why, and what rollouts under way are going to do."""

    device: Device
    desired: tuple[Assignment, ...]
    differences: tuple[Difference, ...]
    coming: tuple[Coming, ...] = ()
    groups: tuple[str, ...] = ()


async def create_token(rooms: Rooms, call: Call) -> IssuedToken:
    body: NewToken = call.body
    await call.access.require_admission(body.device, body.profile, body.tags)
    return await rooms.claims.create(body, call.actor)


async def list_tokens(rooms: Rooms, call: Call) -> Page[KnownToken]:
    query: TokenQuery = call.query
    found = await rooms.claims.list(query.spent)
    seen = [token for token in found if call.access.sees(DeviceFacts(token.device, token.profile, token.tags))]
    return page_of_all(seen, query, lambda token: (-int(1000 * token.created_at), token.id))


async def revoke_token(rooms: Rooms, call: Call) -> None:
    token = await rooms.claims.get(call.path["id"])
    if not call.access.sees(DeviceFacts(token.device, token.profile, token.tags)):
        raise NotFound("token-not-found", f"no claim token {token.id!r}", id=token.id)
    await rooms.claims.revoke(token.id, call.actor)


async def renew_certificate(rooms: Rooms, call: Call) -> RenewAnswer:
    body: RenewRequest = call.body
    return await rooms.renewals.renew(body)


async def readmit_device(rooms: Rooms, call: Call) -> Readmitted:
    body: Readmission = call.body
    device = call.path["id"]
    return Readmitted(device, await rooms.renewals.readmit(device, body, call.actor))


async def revoke_device(rooms: Rooms, call: Call) -> Expelled:
    return await rooms.expulsion.expel(call.path["id"], call.actor)


async def enroll_device(rooms: Rooms, call: Call) -> EnrollAnswer:
    body: EnrollRequest = call.body
    answer = await rooms.devices.enroll(body, actor=f"token of {body.device}")
    await _may_join(rooms, body.device)
    return answer


async def list_devices(rooms: Rooms, call: Call) -> Page[Device]:
    query: DeviceQuery = call.query
    wanted = FleetQuery(query.query, query.retired)
    found = await rooms.fleet.page(wanted, query.after, query.limit + 1, query.brief, call.principal.scope)
    return cut(found, query.limit, lambda device: device.id)


async def count_devices(rooms: Rooms, call: Call) -> FleetSummary:
    query: SummaryQuery = call.query
    return await rooms.fleet.summary(FleetQuery(query.query, query.retired), call.principal.scope)


async def show_device(rooms: Rooms, call: Call) -> DeviceDetail:
    device = await rooms.devices.get(call.path["id"])
    desired = await rooms.desired.of(device.id)
    parts = await rooms.fleet.parts(device.id)
    found = explained(device, desired, parts)
    shown = msgspec.structs.replace(device, differs=bool(found))
    groups = tuple(await rooms.fleet.groups(device.id))
    return DeviceDetail(shown, desired, found, coming(parts, rooms.clock()), groups)


async def show_device_tags(rooms: Rooms, call: Call) -> NewTags:
    return NewTags((await rooms.devices.get(call.path["id"])).tags)


async def set_device_tags(rooms: Rooms, call: Call) -> Device:
    body: NewTags = call.body
    before = await rooms.devices.get(call.path["id"])
    # Nobody puts a device where they could not see it any more, and others could.
    call.access.require_inside(DeviceFacts(before.id, before.profile, body.tags), "a device with these tags")
    found = await rooms.devices.set_tags(call.path["id"], body.tags, call.actor)
    await _may_join(rooms, found.id)
    return found


async def retire_device(rooms: Rooms, call: Call) -> None:
    await rooms.devices.retire(call.path["id"], call.actor)


async def _may_join(rooms: Rooms, device: str) -> None:
    """What a device came for is done; that a rollout could not take it in is the rollout's trouble."""
    try:
        await rooms.rollouts.join(device)
    except HubError as error:
        _log.warning("%s could not join a rollout: %s", device, error.message)


_DEVICE = "/devices/{id}"
ROUTES: tuple[Route, ...] = (
    Route(
        "POST",
        "/tokens",
        create_token,
        "Make a claim token, for one device or for a batch",
        returns=IssuedToken,
        body=NewToken,
        status=201,
        role=Role.OPERATOR,
        whole=True,
    ),
    Route(
        "GET",
        "/tokens",
        list_tokens,
        "List claim tokens, without their secrets",
        returns=list[KnownToken],
        query=TokenQuery,
        role=Role.OPERATOR,
        paged=True,
    ),
    Route("DELETE", "/tokens/{id}", revoke_token, "Revoke a claim token", role=Role.OPERATOR),
    Route(
        "POST",
        "/renew",
        renew_certificate,
        "Give a device a certificate for its new key, signed for by its old one",
        returns=RenewAnswer,
        body=RenewRequest,
        status=201,
        public=True,
    ),
    Route(
        "POST",
        "/enroll",
        enroll_device,
        "Enrol a device with its claim token and certificate request",
        returns=EnrollAnswer,
        body=EnrollRequest,
        status=201,
        public=True,
    ),
    Route(
        "GET",
        "/devices",
        list_devices,
        "List devices that a query means, by id",
        returns=list[Device],
        query=DeviceQuery,
        role=Role.VIEWER,
        paged=True,
    ),
    Route(
        "GET",
        "/fleet",
        count_devices,
        "Count devices by profile, agent and state, and modules by version and state",
        returns=FleetSummary,
        query=SummaryQuery,
        role=Role.VIEWER,
    ),
    Route(
        "GET",
        _DEVICE,
        show_device,
        "Show a device, what it shall run, and what differs and why",
        returns=DeviceDetail,
        role=Role.VIEWER,
    ),
    Route("GET", f"{_DEVICE}/tags", show_device_tags, "Show a device's tags", returns=NewTags, role=Role.VIEWER),
    Route(
        "PUT",
        f"{_DEVICE}/tags",
        set_device_tags,
        "Replace a device's tags",
        returns=Device,
        body=NewTags,
        role=Role.OPERATOR,
    ),
    Route(
        "DELETE",
        _DEVICE,
        retire_device,
        "Retire a device: revoke its certificate and take its modules away",
        role=Role.OPERATOR,
    ),
    Route(
        "POST",
        f"{_DEVICE}/readmit",
        readmit_device,
        "Let a device renew a certificate that has expired, for a while",
        returns=Readmitted,
        body=Readmission,
        role=Role.OPERATOR,
    ),
    Route(
        "POST",
        f"{_DEVICE}/revoke",
        revoke_device,
        "Throw a device out: block renewal, revoke, end its session, stop directing, each proven",
        returns=Expelled,
        role=Role.OPERATOR,
    ),
)
