"""The calls that make the hub as a fleet file says. Each says in words what came of it, where there is more to say than
that it was done. Bound to their values by `comparing`, called by `mooring apply`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import msgspec

from cloud_hub.asking.policies import PolicyChange
from cloud_hub.configuration.configurations import ConfigurationChange
from cloud_hub.groups.book import Members, NewGroup
from cloud_hub.groups.saved import NewQuery
from cloud_hub.operator.client import HubClient
from cloud_hub.rollouts.new import NewRollout

AT_ONCE: Final = 1000  # members in one request


async def save_query(name: str, new: NewQuery, hub: HubClient) -> str:
    await hub.save_query(name, new)
    return ""


async def remove_query(name: str, hub: HubClient) -> str:
    await hub.remove_query(name)
    return ""


async def create_group(name: str, description: str, members: Members, hub: HubClient) -> str:
    await hub.create_group(NewGroup(name, description))
    return await change_group(name, members, Members(), hub)


async def change_group(name: str, came: Members, left: Members, hub: HubClient) -> str:
    for some in _some(came):
        await hub.add_to_group(name, some)
    for some in _some(left):
        await hub.take_from_group(name, some)
    return ""


async def remove_group(name: str, hub: HubClient) -> str:
    await hub.remove_group(name)
    return ""


async def set_tags(device: str, tags: dict[str, str], etag: str, hub: HubClient) -> str:
    with hub.only_if(etag):
        await hub.set_tags(device, tags)
    return ""


async def change_configuration(module: str, change: ConfigurationChange, hub: HubClient) -> str:
    done = await hub.change_configuration(module, change)
    return f"revision {done.revision}" + (f", rollout {done.rollout}" if done.rollout else "")


async def change_sampling(change: PolicyChange, hub: HubClient) -> str:
    done = await hub.change_sampling(change)
    return f"{len(done)} devices"


async def start_rollout(new: NewRollout, hub: HubClient) -> str:
    status = await hub.create_rollout(msgspec.structs.replace(new, start=True))
    return f"rollout {status.rollout.id}"


def _some(members: Members) -> Iterator[Members]:
    for start in range(0, len(members.devices), AT_ONCE):
        yield Members(members.devices[start : start + AT_ONCE])
