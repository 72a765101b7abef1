"""`mooring group` and `mooring query`: devices put together by hand, and queries kept under a name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from cloud_hub.operator.cli import completing
from cloud_hub.operator.cli.session import Format, Output, act, note, show
from cloud_hub.words import counted

if TYPE_CHECKING:
    from cloud_hub.groups.book import DeviceGroup, Members
    from cloud_hub.groups.saved import SavedQuery
    from cloud_hub.operator.client import HubClient

groups = typer.Typer(no_args_is_help=True, help="Groups of devices, for `group = NAME` in every query.")
queries = typer.Typer(no_args_is_help=True, help="Queries kept under a name, for `query = NAME` in every other.")
GroupName = Annotated[str, typer.Argument(metavar="GROUP", help="The group's name.", autocompletion=completing.groups)]
QueryName = Annotated[str, typer.Argument(metavar="NAME", help="The query's name.", autocompletion=completing.queries)]
Devices = Annotated[
    list[str] | None, typer.Argument(metavar="[DEVICE]...", help="The devices' ids.", autocompletion=completing.devices)
]
Which = Annotated[str, typer.Option("--query", "-q", help="All devices that this query means now.")]
About = Annotated[str, typer.Option("--description", help="What it is for.")]


@groups.command("list", epilog="Example:  mooring group list")
def list_groups(context: typer.Context, output: Output = Format.TABLE) -> None:
    """List groups, with how many devices they have."""
    found = act(context, lambda hub: hub.groups())
    from cloud_hub.operator import render_fleet

    show(found, output, render_fleet.groups)


@groups.command("create", epilog="Example:  mooring group create pilot --description 'first to get anything'")
def create_group(
    context: typer.Context, group: GroupName, description: About = "", output: Output = Format.TABLE
) -> None:
    """Make a group."""

    async def work(hub: HubClient) -> DeviceGroup:
        from cloud_hub.groups.book import NewGroup

        return await hub.create_group(NewGroup(group, description))

    found = act(context, work)
    from cloud_hub.operator import render_fleet

    show([found], output, render_fleet.groups)


@groups.command("show", epilog="Example:  mooring group show pilot -o json")
def show_group(context: typer.Context, group: GroupName, output: Output = Format.TABLE) -> None:
    """List the ids of a group's devices."""

    async def work(hub: HubClient) -> list[str]:
        found: list[str] = []
        while page := await hub.group_devices(group, after=found[-1] if found else ""):
            found += page
        return found

    found = act(context, work)
    from cloud_hub.operator import render_fleet

    show(found, output, render_fleet.members)


@groups.command("add", epilog="Example:  mooring group add pilot cam-17 cam-18;  mooring group add pilot -q site=lab")
def add_devices(context: typer.Context, group: GroupName, devices: Devices = None, query: Which = "") -> None:
    """Put devices into a group; those that are in it stay."""
    changed = act(context, lambda hub: hub.add_to_group(group, _members(devices, query)))
    note(f"{counted(changed.devices, 'device')} came into {group}")


@groups.command("remove", epilog="Example:  mooring group remove pilot cam-17;  mooring group remove pilot -q offline")
def remove_devices(context: typer.Context, group: GroupName, devices: Devices = None, query: Which = "") -> None:
    """Take devices out of a group. They stay what they are."""
    changed = act(context, lambda hub: hub.take_from_group(group, _members(devices, query)))
    note(f"{counted(changed.devices, 'device')} left {group}")


@groups.command("delete", epilog="Example:  mooring group delete pilot --yes")
def delete_group(
    context: typer.Context,
    group: GroupName,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Remove a group. Its devices stay what they are; queries that name it mean nothing any more."""
    if not yes:
        typer.confirm(f"Remove the group {group}?", abort=True, err=True)
    act(context, lambda hub: hub.remove_group(group))
    note(f"removed group {group}")


@queries.command("list", epilog="Example:  mooring query list")
def list_queries(context: typer.Context, output: Output = Format.TABLE) -> None:
    """List saved queries."""
    found = act(context, lambda hub: hub.saved_queries())
    from cloud_hub.operator import render_fleet

    show(found, output, render_fleet.queries)


@queries.command("save", epilog="Example:  mooring query save old-agents 'agent < 0.2 and not group=pilot'")
def save_query(
    context: typer.Context,
    name: QueryName,
    query: Annotated[str, typer.Argument(metavar="QUERY", help="Its text.")],
    description: About = "",
    output: Output = Format.TABLE,
) -> None:
    """Keep a query under a name, in the place of what the name meant before."""

    async def work(hub: HubClient) -> SavedQuery:
        from cloud_hub.groups.saved import NewQuery

        return await hub.save_query(name, NewQuery(query, description))

    found = act(context, work)
    from cloud_hub.operator import render_fleet

    show([found], output, render_fleet.queries)


@queries.command("show", epilog="Example:  mooring query show old-agents")
def show_query(context: typer.Context, name: QueryName, output: Output = Format.TABLE) -> None:
    """Show a saved query."""
    found = act(context, lambda hub: hub.saved_query(name))
    from cloud_hub.operator import render_fleet

    show([found], output, render_fleet.queries)


@queries.command("delete", epilog="Example:  mooring query delete old-agents")
def delete_query(context: typer.Context, name: QueryName) -> None:
    """Remove a saved query. One that another names stays."""
    act(context, lambda hub: hub.remove_query(name))
    note(f"removed query {name}")


def _members(devices: list[str] | None, query: str) -> Members:
    from cloud_hub.groups.book import Members

    return Members(tuple(devices or ()), query)
