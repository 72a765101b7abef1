"""Routes of groups of devices, and of saved queries."""

from __future__ import annotations

from cloud_hub.api.pages import Page, PageQuery, WholeQuery, cut, page_of_all
from cloud_hub.api.route import Call, Route
from cloud_hub.groups.book import Changed, DeviceGroup, Members, NewGroup
from cloud_hub.groups.saved import NewQuery, SavedQuery
from cloud_hub.roles import Role
from cloud_hub.rooms import Rooms


async def list_groups(rooms: Rooms, call: Call) -> Page[DeviceGroup]:
    found = await rooms.groups.list(call.principal.scope)
    return page_of_all(found, call.query, lambda group: (group.name,))


async def create_group(rooms: Rooms, call: Call) -> DeviceGroup:
    return await rooms.groups.create(call.body, call.actor)


async def show_group(rooms: Rooms, call: Call) -> DeviceGroup:
    return await rooms.groups.get(call.path["name"], call.principal.scope)


async def remove_group(rooms: Rooms, call: Call) -> None:
    await rooms.groups.remove(call.path["name"], call.actor, call.principal.scope)


async def list_members(rooms: Rooms, call: Call) -> Page[str]:
    query: PageQuery = call.query
    found = await rooms.groups.members(call.path["name"], query.after, query.limit + 1, call.principal.scope)
    return cut(found, query.limit, lambda device: device)


async def add_members(rooms: Rooms, call: Call) -> Changed:
    return await rooms.groups.add(call.path["name"], call.body, call.actor, call.principal.scope)


async def remove_members(rooms: Rooms, call: Call) -> Changed:
    return await rooms.groups.take(call.path["name"], call.body, call.actor, call.principal.scope)


async def list_queries(rooms: Rooms, call: Call) -> Page[SavedQuery]:
    return page_of_all(await rooms.saved.list(), call.query, lambda query: (query.name,))


async def show_query(rooms: Rooms, call: Call) -> SavedQuery:
    return await rooms.saved.get(call.path["name"])


async def save_query(rooms: Rooms, call: Call) -> SavedQuery:
    # Others mean devices by it, which may be out of the scope of whoever changes it.
    call.access.require_everything("a saved query")
    return await rooms.saved.put(call.path["name"], call.body, call.actor)


async def remove_query(rooms: Rooms, call: Call) -> None:
    call.access.require_everything("a saved query")
    await rooms.saved.remove(call.path["name"], call.actor)


_GROUP, _QUERY = "/groups/{name}", "/queries/{name}"
ROUTES = (
    Route(
        "GET",
        "/groups",
        list_groups,
        "List groups of devices",
        returns=list[DeviceGroup],
        query=WholeQuery,
        role=Role.VIEWER,
        paged=True,
    ),
    Route(
        "POST",
        "/groups",
        create_group,
        "Make a group of devices",
        returns=DeviceGroup,
        body=NewGroup,
        status=201,
        role=Role.OPERATOR,
    ),
    Route("GET", _GROUP, show_group, "Show a group", returns=DeviceGroup, role=Role.VIEWER),
    Route("DELETE", _GROUP, remove_group, "Remove a group; its devices stay what they are", role=Role.OPERATOR),
    Route(
        "GET",
        f"{_GROUP}/devices",
        list_members,
        "List the ids of a group's devices",
        returns=list[str],
        query=PageQuery,
        role=Role.VIEWER,
        paged=True,
    ),
    Route(
        "POST",
        f"{_GROUP}/devices/add",
        add_members,
        "Put devices into a group: by their ids, or those that a query means now",
        returns=Changed,
        body=Members,
        role=Role.OPERATOR,
    ),
    Route(
        "POST",
        f"{_GROUP}/devices/remove",
        remove_members,
        "Take devices out of a group: by their ids, or those that a query means now",
        returns=Changed,
        body=Members,
        role=Role.OPERATOR,
    ),
    Route(
        "GET",
        "/queries",
        list_queries,
        "List saved queries",
        returns=list[SavedQuery],
        query=WholeQuery,
        role=Role.VIEWER,
        paged=True,
    ),
    Route("GET", _QUERY, show_query, "Show a saved query", returns=SavedQuery, role=Role.VIEWER),
    Route(
        "PUT",
        _QUERY,
        save_query,
        "Save a query under a name, in the place of what the name meant before",
        returns=SavedQuery,
        body=NewQuery,
        role=Role.OPERATOR,
    ),
    Route("DELETE", _QUERY, remove_query, "Remove a saved query", role=Role.OPERATOR),
)
