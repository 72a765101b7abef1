"""The calls that make the hub as a fleet file says. Bound to their values by `comparing`, called by `mooring apply`."""

from __future__ import annotations

from typing import Final

import msgspec

from cloud_hub.asking.policies import PolicyChange
from cloud_hub.configuration.configurations import ConfigurationChange
from cloud_hub.groups.book import Members, NewGroup
from cloud_hub.groups.saved import NewQuery
from cloud_hub.operator.applying.steps import Made
from cloud_hub.operator.client import HubClient
from cloud_hub.rollouts.new import NewRollout
from cloud_hub.store.bulk import in_slices
from cloud_hub.words import counted

AT_ONCE: Final = 1000  # members in one request


async def save_query(name: str, new: NewQuery, hub: HubClient) -> Made:
    await hub.save_query(name, new)
    return Made()


async def remove_query(name: str, hub: HubClient) -> Made:
    await hub.remove_query(name)
    return Made()


async def create_group(name: str, description: str, members: Members, hub: HubClient) -> Made:
    await hub.create_group(NewGroup(name, description))
    return await change_group(name, members, Members(), hub)


async def change_group(name: str, came: Members, left: Members, hub: HubClient) -> Made:
    for some in in_slices(came.devices, AT_ONCE):
        await hub.add_to_group(name, Members(tuple(some)))
    for some in in_slices(left.devices, AT_ONCE):
        await hub.take_from_group(name, Members(tuple(some)))
    return Made()


async def remove_group(name: str, hub: HubClient) -> Made:
    await hub.remove_group(name)
    return Made()


async def set_tags(device: str, tags: dict[str, str], etag: str, hub: HubClient) -> Made:
    with hub.only_if(etag):
        await hub.set_tags(device, tags)
    return Made()


async def change_configuration(module: str, change: ConfigurationChange, hub: HubClient) -> Made:
    done = await hub.change_configuration(module, change)
    words = f"revision {done.revision}" + (f", rollout {done.rollout}" if done.rollout else "")
    return Made(words, done.rollout)


async def change_sampling(change: PolicyChange, hub: HubClient) -> Made:
    done = await hub.change_sampling(change)
    return Made(counted(len(done), "device"))


async def start_rollout(new: NewRollout, hub: HubClient) -> Made:
    status = await hub.create_rollout(msgspec.structs.replace(new, start=True))
    return Made(f"rollout {status.rollout.id}", status.rollout.id)
