"""What has to change so that the hub is as the file says: one step per thing, in the order in which they build on
each other. Only reads the hub; a step, when it is taken, changes only what it has seen (If-Match, base revisions).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from functools import partial

from cloud_hub.asking.policies import PolicyChange
from cloud_hub.configuration.configurations import ConfigurationChange
from cloud_hub.groups.book import DeviceGroup, Members
from cloud_hub.groups.saved import NewQuery
from cloud_hub.operator.applying import making
from cloud_hub.operator.applying.fleet_file import DeclaredConfiguration, DeclaredGroup, DeclaredSampling, FleetFile
from cloud_hub.operator.applying.steps import Act, Change, Line, Make, Step, lines_of, named, text_of
from cloud_hub.operator.client import HubClient
from cloud_hub.operator.errors import FileError, Refused
from cloud_hub.rollouts.new import NewRollout
from cloud_hub.rollouts.states import ACTIVE, RolloutState
from cloud_hub.words import counted

_UNENDED = frozenset({RolloutState.DRAFT, *ACTIVE})


async def compare(hub: HubClient, file: FleetFile, prune: bool = False) -> AsyncIterator[Step]:
    """With `prune` queries and groups that the file does not name are removed, where it names any of that kind.

    What stands later in a file may rest on what comes before (a rollout on a group). So whoever makes the changes takes
    each step before asking for the next.
    """
    for part in (_queries, _groups):
        async for step in part(hub, file, prune):
            yield step
    for device, tags in file.tags.items():
        seen = await hub.seen(hub.tags(device))
        if lines := lines_of(seen.value.tags, tags):
            yield _step("change", "tags", device, lines, partial(making.set_tags, device, tags, seen.etag))
    for module, configuration in file.configurations.items():
        async for step in _configuration(hub, module, configuration):
            yield step
    for module, policies in file.sampling.items():
        for policy in policies:
            async for step in _sampling(hub, module, policy):
                yield step
    for new in file.rollouts:
        async for step in _rollout(hub, new):
            yield step


async def _queries(hub: HubClient, file: FleetFile, prune: bool) -> AsyncIterator[Step]:
    there = {one.name: one for one in await hub.all_of(hub.saved_queries())} if file.queries else {}
    for name in file.queries:
        wanted, old = file.query(name), there.get(name)
        before = {} if old is None else {"query": old.query, "description": old.description}
        if lines := lines_of(before, {"query": wanted.query, "description": wanted.description}):
            make = partial(making.save_query, name, NewQuery(wanted.query, wanted.description))
            yield _step("create" if old is None else "change", "query", name, lines, make)
    for name in sorted(there.keys() - file.queries.keys()) if prune else ():
        yield _step(
            "remove", "query", name, (Line("query", there[name].query, ""),), partial(making.remove_query, name)
        )


async def _groups(hub: HubClient, file: FleetFile, prune: bool) -> AsyncIterator[Step]:
    there = {one.name: one for one in await hub.all_of(hub.groups())} if file.groups else {}
    for name, wanted in file.groups.items():
        async for step in _group(hub, name, wanted, there):
            yield step
    for name in sorted(there.keys() - file.groups.keys()) if prune else ():
        lines = (Line("devices", str(there[name].devices), ""),)
        yield _step("remove", "group", name, lines, partial(making.remove_group, name))


async def _group(
    hub: HubClient, name: str, wanted: DeclaredGroup, there: Mapping[str, DeviceGroup]
) -> AsyncIterator[Step]:
    """Exactly the members that the file names, or that its query means now."""
    if wanted.devices is None:
        members = {one.id async for one in hub.every(hub.devices(wanted.query, brief=True, limit=1000))}
    else:
        members = set(wanted.devices)
    now = {one async for one in hub.every(hub.group_devices(name))} if name in there else set()
    came, left = sorted(members - now), sorted(now - members)
    lines = tuple(
        line for line in (Line("add", "", named(came)), Line("take out", named(left), "")) if line.before or line.after
    )
    if name not in there:
        make = partial(making.create_group, name, wanted.description, Members(tuple(came)))
        yield _step("create", "group", name, lines or (Line("devices", "", "none"),), make)
    elif lines:
        make = partial(making.change_group, name, Members(tuple(came)), Members(tuple(left)))
        yield _step("change", "group", name, lines, make)


async def _configuration(hub: HubClient, module: str, wanted: DeclaredConfiguration) -> AsyncIterator[Step]:
    try:
        document = wanted.document
    except ValueError as error:
        raise FileError("fleet-file-invalid", f"configurations: {module}: {error}; nothing was changed") from error
    asked = ConfigurationChange(document=document, rollout=wanted.rollout, dry_run=True)
    try:
        found = await hub.change_configuration(module, asked)
    except Refused as error:
        yield _later(error, "configuration", module, partial(making.change_configuration, module, asked))
        return
    if not found.differences:
        return
    lines = [Line(f"{one.layer} {one.path}", text_of(one.before), text_of(one.after)) for one in found.differences]
    lines.append(Line("devices", "", f"{found.devices} get another configuration"))
    make = partial(
        making.change_configuration, module,
        ConfigurationChange(document=document, base=found.base, comment="mooring apply", rollout=wanted.rollout),
    )  # fmt: skip
    yield _step("change", "configuration", module, tuple(lines), make)


async def _sampling(hub: HubClient, module: str, wanted: DeclaredSampling) -> AsyncIterator[Step]:
    change = PolicyChange(module, wanted.target, wanted.set)
    try:
        found = await hub.change_sampling(PolicyChange(module, wanted.target, wanted.set, dry_run=True))
    except Refused as error:
        yield _later(error, "sampling", module, partial(making.change_sampling, change))
        return
    changed = [one for one in found if one.changed]
    if changed:
        first = changed[0].changed
        lines = tuple(Line(name, text_of(pair[0]), text_of(pair[1])) for name, pair in sorted(first.items()))
        devices = Line("devices", "", named([one.device for one in changed]))
        yield _step("change", "sampling", module, (*lines, devices), partial(making.change_sampling, change))


async def _rollout(hub: HubClient, new: NewRollout) -> AsyncIterator[Step]:
    """Where some device of the target does not run the version, and no rollout of it is under way there."""
    for one in await hub.rollouts(module=new.module):
        if one.state in _UNENDED and (one.version, one.target) == (new.version, new.target):
            return
    others = f"({new.target}) and not module.{new.module} = {new.version}"
    subject, make = f"{new.module}:{new.version} to {new.target}", partial(making.start_rollout, new)
    try:
        left = (await hub.fleet(others)).devices
    except Refused as error:
        yield _later(error, "rollout", subject, make)
        return
    if not left:
        return
    preview = await hub.preview_rollout(new)
    groups = ", ".join(f"group {group.index + 1}: {counted(group.size, 'device')}" for group in preview.groups)
    lines = [Line("version", f"other on {counted(left, 'device')}", str(new.version)), Line("devices", "", groups)]
    lines += [Line("left out", "", f"{one.count}: {one.reason}") for one in preview.left_out]
    yield _step("roll out", "rollout", subject, tuple(lines), make)


def _later(error: Refused, kind: str, subject: str, make: Make) -> Step:
    """For what names a group, a query or a tag that an earlier step of the file makes. Raises any other error."""
    if error.key not in ("group-unknown", "query-unknown", "no-device-matches"):
        raise error
    act: Act = "roll out" if kind == "rollout" else "change"
    return _step(act, kind, subject, (Line("devices", "", f"known later: {error.message}"),), make)


def _step(act: Act, kind: str, subject: str, lines: tuple[Line, ...], make: Make) -> Step:
    return Step(Change(act, kind, subject, lines), make)
