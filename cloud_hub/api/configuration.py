"""Routes of configurations: show, change, roll out, history, differences. Changes are of the whole fleet's, so they ask
for a scope that has everything.
"""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec

from cloud_hub.api.pages import Page, PageQuery, cut, row_cursor
from cloud_hub.api.route import Call, Route
from cloud_hub.configuration.book import Revision
from cloud_hub.configuration.configurations import ChangeResult, ConfigurationChange
from cloud_hub.configuration.document import ConfigDifference
from cloud_hub.configuration.viewing import DeviceConfiguration, ModuleConfiguration
from cloud_hub.errors import NotFound
from cloud_hub.roles import Role
from cloud_hub.rooms import Rooms

_Number = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]


class DifferenceQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Two revisions; 0 is the empty one."""

    before: _Number
    after: _Number


class ApplyRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Fields of a new rollout, such as groups and thresholds; without any all devices get it at once."""

    rollout: dict[str, Any] = {}  # as in NewRollout


async def show_configuration(rooms: Rooms, call: Call) -> ModuleConfiguration:
    call.access.require_everything("the configuration of a fleet")
    return await rooms.configuring.views.show(call.path["module"])


async def change_configuration(rooms: Rooms, call: Call) -> ChangeResult:
    call.access.require_everything("a change of a configuration")
    return await rooms.configuring.changes.change(call.path["module"], call.body, call.actor)


async def apply_configuration(rooms: Rooms, call: Call) -> ChangeResult:
    call.access.require_everything("a change of a configuration")
    request: ApplyRequest = call.body
    return await rooms.configuring.changes.apply(call.path["module"], request.rollout, call.actor)


async def list_revisions(rooms: Rooms, call: Call) -> Page[Revision]:
    call.access.require_everything("the configuration of a fleet")
    query: PageQuery = call.query
    before = row_cursor(query.after)
    found = await rooms.configuring.views.history(call.path["module"], query.limit + 1, before)
    return cut(found, query.limit, lambda one: one.revision)


async def show_revision(rooms: Rooms, call: Call) -> Revision:
    call.access.require_everything("the configuration of a fleet")
    return await rooms.configuring.views.revision(call.path["module"], call.int("revision"))


async def compare_revisions(rooms: Rooms, call: Call) -> Page[ConfigDifference]:
    call.access.require_everything("the configuration of a fleet")
    query: DifferenceQuery = call.query
    return Page(await rooms.configuring.views.diff(call.path["module"], query.before, query.after))


async def show_of_device(rooms: Rooms, call: Call) -> DeviceConfiguration:
    """What a device has is its own; which parts of the fleet's it comes from is said to whoever sees the fleet."""
    device = call.path["id"]
    await call.access.require_known_device(device)
    found = await rooms.configuring.views.of_device(call.path["module"], device)
    if not found.revision and found.assigned is None:
        text = f"device {device}: module {found.module[:63]} is not assigned to it, and has no configuration"
        raise NotFound("not-assigned", text, device=device, module=found.module[:63])
    return found if call.access.everything else msgspec.structs.replace(found, layers=())


_MODULE: Final = "/configurations/{module}"
ROUTES = (
    Route(
        "GET",
        _MODULE,
        show_configuration,
        "The configuration of a module: what stands, and the newest revision",
        returns=ModuleConfiguration,
        role=Role.VIEWER,
    ),
    Route(
        "POST",
        _MODULE,
        change_configuration,
        "Change a part of a configuration, or go back to a revision, and roll it out",
        returns=ChangeResult,
        body=ConfigurationChange,
        role=Role.OPERATOR,
    ),
    Route(
        "POST",
        f"{_MODULE}/apply",
        apply_configuration,
        "Roll the newest revision out to the devices that have another configuration",
        returns=ChangeResult,
        body=ApplyRequest,
        role=Role.OPERATOR,
    ),
    Route(
        "GET",
        f"{_MODULE}/revisions",
        list_revisions,
        "Every revision of a configuration, newest first",
        returns=list[Revision],
        query=PageQuery,
        role=Role.VIEWER,
        paged=True,
    ),
    Route(
        "GET",
        f"{_MODULE}/revisions/{{revision}}",
        show_revision,
        "One revision of a configuration",
        returns=Revision,
        role=Role.VIEWER,
    ),
    Route(
        "GET",
        f"{_MODULE}/differences",
        compare_revisions,
        "What differs between two revisions",
        returns=list[ConfigDifference],
        query=DifferenceQuery,
        role=Role.VIEWER,
        paged=True,
    ),
    Route(
        "GET",
        "/devices/{id}/configurations/{module}",
        show_of_device,
        "What one device has of a module's configuration, and where it comes from",
        returns=DeviceConfiguration,
        role=Role.VIEWER,
    ),
)
