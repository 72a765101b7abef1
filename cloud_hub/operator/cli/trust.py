"""`mooring trust`: how trust stands, and the ceremonies of those who hold root and targets keys.

Everything is computed and signed on this machine from what a pinned root proves; the hub judges and publishes.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cloud_hub.operator.cli.keys import ask_secret
from cloud_hub.operator.cli.pinned import Days, PinnedRoot, published_image, published_root, until
from cloud_hub.operator.cli.session import Format, Output, act, note, show
from cloud_hub.operator.errors import OperatorError

if TYPE_CHECKING:
    from securesystemslib.signer import Key
    from tuf.api.metadata import Metadata, Targets

    from cloud_hub.operator.client import HubClient
    from cloud_hub.operator.trusted import PublishedImage
    from cloud_hub.trust.ceremony import Outcome, Pending

app = typer.Typer(no_args_is_help=True, help="Trust: roles, keys, expiry, publishers, root keys.")
Publisher = Annotated[str, typer.Argument(metavar="NAME", help="The publisher's name.")]
TargetsKey = Annotated[
    list[str],
    typer.Option(
        "--targets-key", metavar="URI", help="A targets key: a file, or a URI such as awskms:...; may be repeated."
    ),
]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask before signing.")]


class Which(enum.StrEnum):
    IMAGE = "image"
    DIRECTOR = "director"


class Proposed(enum.StrEnum):
    IMAGE_ROOT = "image/root"
    DIRECTOR_ROOT = "director/root"
    TARGETS = "image/targets"


@app.command(epilog="Example:  mooring trust status")
def status(context: typer.Context, output: Output = Format.TABLE) -> None:
    """Show every role with its keys, threshold, version and expiry, and what needs attention."""
    found = act(context, lambda hub: hub.trust_status())
    from cloud_hub.operator import render_trust

    show(found, output, render_trust.status)


@app.command(epilog="Example:  mooring trust pending")
def pending(context: typer.Context, output: Output = Format.TABLE) -> None:
    """List what waits for more signatures."""
    found = act(context, lambda hub: hub.all_of(hub.trust_pending()))
    from cloud_hub.operator import render_trust

    show(found, output, render_trust.pending)


@app.command(
    "add-publisher",
    epilog="Example:  mooring trust add-publisher acme --public-key acme.pub --targets-key image-targets.pem",
)
def add_publisher(
    context: typer.Context,
    name: Publisher,
    public_key: Annotated[list[Path], typer.Option(metavar="FILE", help="A public key of it; may be repeated.")],
    targets_key: TargetsKey,
    threshold: Annotated[int, typer.Option(min=1, help="How many of its keys must sign.")] = 1,
    root: PinnedRoot = None,
    days: Days = 365,
    yes: Yes = False,
    output: Output = Format.TABLE,
) -> None:
    """Let NAME publish modules below modules/NAME/, signed with these keys; they take the place of any it had."""
    from cloud_hub.operator import rotation, signing

    async def work(hub: HubClient) -> Outcome:
        image = await published_image(hub, root)
        metadata = rotation.next_targets(image, until(days))
        keys = [signing.load_public(path) for path in public_key]
        rotation.with_publisher(metadata, name, keys, threshold)
        return await _submit_targets(hub, image, metadata, targets_key, yes)

    _tell(act(context, work), output)


@app.command(
    "revoke-publisher",
    epilog="Example:  mooring trust revoke-publisher acme --targets-key /media/stick/image-targets.pem",
)
def revoke_publisher(
    context: typer.Context,
    name: Publisher,
    targets_key: TargetsKey,
    root: PinnedRoot = None,
    days: Days = 365,
    yes: Yes = False,
    output: Output = Format.TABLE,
) -> None:
    """Take the right to publish from NAME: devices believe none of its modules any more."""
    from cloud_hub.operator import rotation

    async def work(hub: HubClient) -> Outcome:
        image = await published_image(hub, root)
        metadata = rotation.next_targets(image, until(days))
        rotation.without_publisher(metadata, name)
        return await _submit_targets(hub, image, metadata, targets_key, yes)

    _tell(act(context, work), output)


@app.command(epilog="Example:  mooring trust renew --targets-key /media/stick/image-targets.pem")
def renew(
    context: typer.Context,
    targets_key: TargetsKey,
    root: PinnedRoot = None,
    days: Days = 365,
    yes: Yes = False,
    output: Output = Format.TABLE,
) -> None:
    """Sign the top-level targets for another time; publishers stay as they are."""
    from cloud_hub.operator import rotation

    async def work(hub: HubClient) -> Outcome:
        image = await published_image(hub, root)
        metadata = rotation.next_targets(image, until(days))
        return await _submit_targets(hub, image, metadata, targets_key, yes)

    _tell(act(context, work), output)


@app.command(
    "rotate-root",
    epilog="Example:  mooring trust rotate-root --old-key root-1.pem --keep 3f2a91 --keep 77c0de --new-key root-4.pub",
)
def rotate_root(
    context: typer.Context,
    old_key: Annotated[
        list[str], typer.Option(metavar="URI", help="A root key that stands now, to sign with; may be repeated.")
    ],
    repository: Annotated[Which, typer.Option(help="Whose root.")] = Which.IMAGE,
    new_key: Annotated[
        list[Path],
        typer.Option(metavar="FILE", help="A key that comes: public, or private and then it signs; may be repeated."),
    ] = [],  # noqa: B006 - typer reads the default, nobody changes it
    keep: Annotated[
        list[str],
        typer.Option(metavar="KEYID", help="A key that stays, by the beginning of its id; may be repeated."),
    ] = [],  # noqa: B006
    threshold: Annotated[int, typer.Option(min=0, help="How many root keys must sign; 0 leaves it as it is.")] = 0,
    root: PinnedRoot = None,
    days: Days = 365,
    yes: Yes = False,
    output: Output = Format.TABLE,
) -> None:
    """Propose the next root and sign it. Without --keep and --new-key the keys stay and only its life is renewed.

    Enough keys of the root that stands and enough of the new one must sign; the others do with `mooring trust sign`.
    """
    from cloud_hub.operator import rotation, signing

    async def work(hub: HubClient) -> Outcome:
        current = (await published_root(hub, root, repository.value)).signed
        keys = [signing.load_public(path) for path in new_key]
        metadata = rotation.next_root(current, keep, keys, threshold, until(days))
        signers = [*old_key, *(str(path) for path in new_key if signing.is_private(path))]
        allowed = rotation.root_signers(current, metadata.signed)
        await _sign(metadata, rotation.describe_root(current, metadata.signed), signers, allowed, yes)
        return await hub.put_root(repository.value, metadata.to_bytes().decode())

    _tell(act(context, work), output)


@app.command(epilog="Example:  mooring trust sign image/root --key /media/stick/image-root-2.pem")
def sign(
    context: typer.Context,
    role: Annotated[Proposed, typer.Argument(metavar="ROLE", help="image/root, director/root or image/targets.")],
    key: Annotated[list[str], typer.Option(metavar="URI", help="The key to sign with; may be repeated.")],
    root: PinnedRoot = None,
    yes: Yes = False,
    output: Output = Format.TABLE,
) -> None:
    """Sign what somebody else proposed, after showing what it changes; published when enough have signed."""

    async def work(hub: HubClient) -> Outcome:
        proposal = await _proposal(hub, role)
        if role is Proposed.TARGETS:
            return await _sign_targets(hub, proposal, root, key, yes)
        return await _sign_root(hub, proposal, root, key, yes)

    _tell(act(context, work), output)


async def _proposal(hub: HubClient, role: Proposed) -> Pending:
    for one in await hub.all_of(hub.trust_pending()):
        if f"{one.repository}/{one.role}" == role.value:
            return one
    raise OperatorError("nothing-pending", f"{role.value}: nothing waits for a signature; nothing was signed")


async def _sign_root(hub: HubClient, proposal: Pending, root: Path | None, keys: Sequence[str], yes: bool) -> Outcome:
    from tuf.api.metadata import Root

    from cloud_hub.operator import rotation, trusted

    current = (await published_root(hub, root, proposal.repository)).signed
    metadata = trusted.parse(proposal.metadata.encode(), Root, "the proposed root")
    allowed = rotation.root_signers(current, metadata.signed)
    await _sign(metadata, rotation.describe_root(current, metadata.signed), keys, allowed, yes)
    return await hub.put_root(proposal.repository, metadata.to_bytes().decode())


async def _sign_targets(
    hub: HubClient, proposal: Pending, root: Path | None, keys: Sequence[str], yes: bool
) -> Outcome:
    from tuf.api.metadata import Targets

    from cloud_hub.operator import trusted

    image = await published_image(hub, root)
    metadata = trusted.parse(proposal.metadata.encode(), Targets, "the proposed targets")
    return await _submit_targets(hub, image, metadata, keys, yes)


async def _submit_targets(
    hub: HubClient, image: PublishedImage, metadata: Metadata[Targets], keys: Sequence[str], yes: bool
) -> Outcome:
    from cloud_hub.operator import rotation

    root = image.root.signed
    allowed = [root.keys[keyid] for keyid in root.roles["targets"].keyids]
    said = rotation.describe_targets(image.targets.signed, metadata.signed)
    await _sign(metadata, said, keys, allowed, yes)
    return await hub.put_targets(metadata.to_bytes().decode())


async def _sign(
    metadata: Metadata[Any], changes: Sequence[str], uris: Sequence[str], allowed: Sequence[Key], yes: bool
) -> None:
    """Says what is about to be signed, asks, and signs with each key."""
    from cloud_hub.operator import signing

    for change in changes:
        note(f"  {change}")
    if not yes and not await asyncio.to_thread(typer.confirm, "sign this?", err=True):
        raise OperatorError("not-confirmed", "nothing was signed")
    for uri in uris:
        await asyncio.to_thread(signing.sign, metadata, uri, allowed, ask_secret)


def _tell(outcome: Outcome, output: Format) -> None:
    from cloud_hub.operator import render_trust

    show([outcome], output, render_trust.outcomes)
