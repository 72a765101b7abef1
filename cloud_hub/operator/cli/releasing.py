"""`mooring module sign`, `renew` and `pending`: with the publisher's own key on this machine, or with the hub's.

What is signed is computed here from what the pinned root proves, after manifest, files and chunks were checked.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from cloud_hub.operator.cli import completing
from cloud_hub.operator.cli.keys import ask_secret
from cloud_hub.operator.cli.pinned import Days, PinnedRoot, hub_source, published_image, until
from cloud_hub.operator.cli.session import Format, ModuleRef, Output, act, note, show
from cloud_hub.operator.errors import OperatorError

if TYPE_CHECKING:
    from tuf.api.metadata import Metadata, Targets

    from cloud_hub.operator.client import HubClient
    from cloud_hub.operator.trusted import PublishedImage
    from cloud_hub.packaging import ModuleRelease
    from cloud_hub.trust.ceremony import Outcome, Pending

Module = Annotated[
    ModuleRef,
    typer.Argument(
        parser=ModuleRef.parse,
        metavar="NAME:VERSION[/PROFILE]",
        help="Such as digits:2/raspberry-pi-5.",
        autocompletion=completing.modules,
    ),
]
Key = Annotated[
    str,
    typer.Option(
        metavar="URI", help="The publisher's key: a file, or hsm:, awskms:, gcpkms:, azurekms:, hv:... as TUF has them."
    ),
]


def sign(
    context: typer.Context,
    module: Module,
    key: Key = "",
    append: Annotated[
        bool, typer.Option("--append", help="Add a signature to what another key has signed already.")
    ] = False,
    root: PinnedRoot = None,
    days: Days = 365,
    output: Output = Format.TABLE,
) -> None:
    """Sign a module, or every build of the version; signing again gives a new release counter.

    With --key on this machine, without it on the hub, where that holds the publisher's key (a development hub).
    Devices take no release with a lower counter than they have, so this is also the way back to an older version.
    """
    if append and not key:
        raise typer.BadParameter("--append needs --key")
    if not key:
        _sign_on_hub(context, module, output)
        return

    async def work(hub: HubClient) -> list[Outcome]:
        releases = await releases_of(hub, module)
        image = await published_image(hub, root)
        publishers = dict.fromkeys(release.publisher for release in releases)
        if append:
            return [await _append(hub, image, publisher, key) for publisher in publishers]
        return [
            await _sign_here(hub, image, [one for one in releases if one.publisher == publisher], key, days)
            for publisher in publishers
        ]

    _tell(act(context, work), output)


def renew(
    context: typer.Context,
    publisher: Annotated[str, typer.Argument(metavar="PUBLISHER", help="Whose list of modules.")],
    key: Key,
    root: PinnedRoot = None,
    days: Days = 365,
    output: Output = Format.TABLE,
) -> None:
    """Sign a publisher's list for another time, before it expires; modules and release counters stay as they are."""

    async def work(hub: HubClient) -> list[Outcome]:
        from cloud_hub.operator import releases

        image = await published_image(hub, root)
        metadata = releases.propose(image, publisher, (), hub_source(hub), {}, until(days))
        return [await _sign_and_put(hub, image, publisher, metadata, key)]

    _tell(act(context, work), output)


def pending(context: typer.Context, output: Output = Format.TABLE) -> None:
    """List publishers' lists that wait for more signatures; `sign --append` gives one."""

    async def work(hub: HubClient) -> list[Pending]:
        return [one for one in await hub.all_of(hub.trust_pending()) if one.role not in ("root", "targets")]

    found = act(context, work)
    from cloud_hub.operator import render_trust

    show(found, output, render_trust.pending)


async def releases_of(hub: HubClient, module: ModuleRef) -> list[ModuleRelease]:
    """The module named, or every build of the version. Raises OperatorError `module-not-found`."""
    if module.profile:
        return [await hub.module(module.name, module.version, module.profile)]
    found = [r for r in await hub.modules(module.name, 1000) if r.version == module.version]
    if not found:
        raise OperatorError("module-not-found", f"no module {module.name} version {module.version}; build it first")
    return found


def _sign_on_hub(context: typer.Context, module: ModuleRef, output: Format) -> None:
    async def work(hub: HubClient) -> list[ModuleRelease]:
        return [await hub.sign(r.name, r.version, r.profile) for r in await releases_of(hub, module)]

    found = act(context, work)
    from cloud_hub.operator import render

    show(found, output, render.modules)


async def _sign_here(
    hub: HubClient, image: PublishedImage, found: Sequence[ModuleRelease], key: str, days: int
) -> Outcome:
    from cloud_hub.operator import releases
    from modules.targets import TargetPath

    publisher, name = found[0].publisher, found[0].name
    wanted = [releases.Release(TargetPath.parse(one.target), one.manifest_sha256) for one in found]
    used = {name: max((one.release_counter or 0 for one in await hub.modules(name, 1000)), default=0)}
    metadata = await asyncio.to_thread(releases.propose, image, publisher, wanted, hub_source(hub), used, until(days))
    return await _sign_and_put(hub, image, publisher, metadata, key)


async def _append(hub: HubClient, image: PublishedImage, publisher: str, key: str) -> Outcome:
    from tuf.api.metadata import Targets

    from cloud_hub.operator import releases, trusted

    waiting = [
        one for one in await hub.all_of(hub.trust_pending()) if (one.repository, one.role) == ("image", publisher)
    ]
    if not waiting:
        raise OperatorError("nothing-pending", f"{publisher}: nothing waits for a signature; nothing was signed")
    metadata = trusted.parse(waiting[0].metadata.encode(), Targets, f"the proposal for {publisher}")
    changes = await asyncio.to_thread(
        releases.check_proposal, image, publisher, copy.deepcopy(metadata.signed), hub_source(hub)
    )
    for change in changes:
        note(f"  {change}")
    return await _sign_and_put(hub, image, publisher, metadata, key)


async def _sign_and_put(
    hub: HubClient, image: PublishedImage, publisher: str, metadata: Metadata[Targets], key: str
) -> Outcome:
    from cloud_hub.operator import signing

    role = (image.delegations.roles or {})[publisher]
    allowed = [image.delegations.keys[keyid] for keyid in role.keyids]
    await asyncio.to_thread(signing.sign, metadata, key, allowed, ask_secret)
    return await hub.put_publisher(publisher, metadata.to_bytes().decode())


def _tell(outcomes: list[Outcome], output: Format) -> None:
    from cloud_hub.operator import render_trust

    show(outcomes, output, render_trust.outcomes)
