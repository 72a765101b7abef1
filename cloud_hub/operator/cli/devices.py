"""`mooring device`: claim tokens, inventory, tags, the way back in, and the end."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cloud_hub.operator.cli import completing
from cloud_hub.operator.cli.session import Format, Output, act, note, parse_pairs, show, stdout, transferring

if TYPE_CHECKING:
    from cloud_hub.claims import IssuedToken, NewToken
    from cloud_hub.device_rows import Device
    from cloud_hub.operator.client import HubClient
    from cloud_hub.operator.offline import Exported

app = typer.Typer(no_args_is_help=True, help="Devices: how they come in, what they are, what they run.")
DeviceId = Annotated[str, typer.Argument(metavar="DEVICE", help="The device's id.", autocompletion=completing.devices)]


Query = Annotated[
    str,
    typer.Option("--query", "-q", help="`all`, or such as: site=lab and (agent < 0.2 or state = differs)."),
]
Retired = Annotated[bool, typer.Option("--retired", help="Retired devices too.")]


@app.command("list", epilog="Example:  mooring device list --query 'site=lab and not online'")
def list_devices(
    context: typer.Context,
    query: Query = "all",
    retired: Retired = False,
    limit: Annotated[int, typer.Option(min=1, max=999, help="How many at most.")] = 100,
    after: Annotated[str, typer.Option(metavar="DEVICE", help="Those behind this device.")] = "",
    everyone: Annotated[bool, typer.Option("--all", help="All of them, page by page.")] = False,
    output: Output = Format.TABLE,
) -> None:
    """List devices with what they run, by id. `device show` explains what differs from what a device shall run."""

    async def work(hub: HubClient) -> list[Device]:
        if everyone:
            return await hub.all_of(hub.devices(query, retired, brief=True, limit=1000, after=after))
        return await hub.devices(query, retired, brief=True, limit=limit + 1, after=after)

    found = act(context, work)
    from cloud_hub.operator import render_fleet

    shown = found if everyone else found[:limit]
    show(shown, output, render_fleet.devices)
    if len(shown) < len(found):
        note(f"there are more: --all, or --after {shown[-1].id}")


@app.command(epilog="Example:  mooring device summary --query site=lab")
def summary(
    context: typer.Context, query: Query = "all", retired: Retired = False, output: Output = Format.TABLE
) -> None:
    """Count devices by profile, agent and state, and the modules that they run."""
    found = act(context, lambda hub: hub.fleet(query, retired))
    from cloud_hub.operator import render_fleet

    show(found, output, render_fleet.summary)


@app.command("show", epilog="Example:  mooring device show cam-17")
def show_device(context: typer.Context, device: DeviceId, output: Output = Format.TABLE) -> None:
    """Show a device: what it shall run, what it runs, and what differs."""
    found = act(context, lambda hub: hub.device(device))
    from cloud_hub.operator import render

    show(found, output, render.device)


@app.command(epilog="Example:  mooring device token --batch 50 --id 'cam-*' --hours 48 --tag site=lab")
def token(
    context: typer.Context,
    device: Annotated[
        str,
        typer.Option("--device", "--id", help="Only for this device id, * for any text; without it, for any new one."),
    ] = "",
    batch: Annotated[int, typer.Option(min=1, max=10_000, help="How many devices it lets in.")] = 1,
    profile: Annotated[str, typer.Option(help="Only for this device profile.")] = "",
    tag: Annotated[list[str], typer.Option("--tag", metavar="NAME=VALUE", help="Tags the device gets.")] = [],  # noqa: B006
    hours: Annotated[float, typer.Option(min=0.02, max=720, help="How long it may be used.")] = 1.0,
    output: Output = Format.TABLE,
) -> None:
    """Make a claim token, with which a device enrols; single-use unless made for a batch."""
    tags = parse_pairs(tag)

    async def work(hub: HubClient) -> tuple[IssuedToken, str]:
        new = _new_token(device, profile, tags, hours, batch)
        return await hub.issue_token(new), hub.context.url

    made, url = act(context, work)
    if output is not Format.TABLE:
        show({"token": made.token, "id": made.id}, output, str)
        return
    stdout().print(made.token, soft_wrap=True)
    named = f" --device-id {device}" if device and "*" not in device else " --device-id ID"
    often = f", {batch} times" if batch > 1 else ""
    note(f"on the device, within {hours:g} h{often}:  mooring-agent enroll --hub {url}{named} --token-file -")
    note("and paste the token there (an argument could be seen by others on the device)")


@app.command("tokens", epilog="Example:  mooring device tokens --all")
def list_tokens(
    context: typer.Context,
    spent: Annotated[bool, typer.Option("--all", help="Also those that let nobody in any more.")] = False,
    output: Output = Format.TABLE,
) -> None:
    """List claim tokens: for whom, how often used, until when. Their secrets are not kept."""
    found = act(context, lambda hub: hub.all_of(hub.tokens(spent)))
    from cloud_hub.operator import render_devices

    show(found, output, render_devices.tokens)


@app.command("revoke-token", epilog="Example:  mooring device revoke-token 0f3a51c2b7d8")
def revoke_token(
    context: typer.Context, token_id: Annotated[str, typer.Argument(metavar="ID", help="As `tokens` lists it.")]
) -> None:
    """Make a claim token useless, whatever is left of it. Devices that came in with it stay."""
    act(context, lambda hub: hub.revoke_token(token_id))
    note(f"revoked token {token_id}")


@app.command(epilog="Example:  mooring device export cam-17 cam-18 /media/stick/mooring --valid-days 7")
def export(
    context: typer.Context,
    devices: Annotated[
        list[str], typer.Argument(metavar="DEVICE...", help="The devices' ids.", autocompletion=completing.devices)
    ],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where to write; empty, or an earlier export.")],
    valid_days: Annotated[
        float, typer.Option("--valid-days", min=0.05, max=90, help="How long it can be installed; over 7: for admins.")
    ] = 7.0,
    output: Output = Format.TABLE,
) -> None:
    """Write what these devices shall run to a folder, for `mooring-agent install` on a device without a network.

    Everything written is read back and verified. Interrupted, it goes on where it was when run again.
    """
    found = act(context, lambda hub: _export(hub, devices, folder, valid_days))
    from cloud_hub.operator import render_devices

    show(found, output, render_devices.exported)
    if output is Format.TABLE:
        note(f"on the device, with the folder at hand:  mooring-agent install {folder}")


async def _export(hub: HubClient, devices: list[str], folder: Path, valid_days: float) -> Exported:
    from cloud_hub.offline import OfflineRequest
    from cloud_hub.operator.offline import Export

    roots = {
        name: Path(file).read_bytes()
        for name, file in (("image", hub.context.image_root), ("director", hub.context.director_root))
        if file
    }
    with ExitStack() as bars:
        export = Export(
            folder,
            hub.sign_offline,
            hub.append_blob,
            lambda total: bars.enter_context(transferring(str(folder), total)),
        )
        return await export.run(OfflineRequest(tuple(devices), valid_days), roots)


@app.command(epilog="Example:  mooring device tag cam-17 site=lab owner=ann --remove old")
def tag(
    context: typer.Context,
    device: DeviceId,
    tags: Annotated[list[str] | None, typer.Argument(metavar="[NAME=VALUE]...", help="Tags to set.")] = None,
    remove: Annotated[list[str], typer.Option("--remove", metavar="NAME", help="Tags to take away.")] = [],  # noqa: B006
    output: Output = Format.TABLE,
) -> None:
    """Set and remove tags; the others stay."""
    wanted = parse_pairs(tags or [])

    async def work(hub: HubClient) -> Device:
        have = (await hub.device(device)).device.tags
        kept = {name: value for name, value in have.items() if name not in remove}
        return await hub.set_tags(device, {**kept, **wanted})

    found = act(context, work)
    from cloud_hub.operator import render_fleet

    show([found], output, render_fleet.devices)


@app.command(epilog="Example:  mooring device retire cam-17 --yes")
def retire(
    context: typer.Context,
    device: DeviceId,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Revoke a device's certificate and take its modules away. It can come back only with a new token."""
    if not yes:
        typer.confirm(f"Retire {device} for good?", abort=True, err=True)
    act(context, lambda hub: hub.retire(device))
    note(f"retired {device}")


@app.command(epilog="Example:  mooring device readmit cam-17 --for 24h")
def readmit(
    context: typer.Context,
    device: DeviceId,
    within: Annotated[str, typer.Option("--for", metavar="TIME", help="How long, such as 30m, 24h or 7d.")] = "24h",
    output: Output = Format.TABLE,
) -> None:
    """Let a device back in that was away for longer than its certificate's life: it may renew it once."""
    seconds = _seconds(within)
    found = act(context, lambda hub: hub.readmit(device, seconds))
    if output is not Format.TABLE:
        show(found, output, str)
        return
    note(f"{device} may renew its expired certificate within {within}; it tries by itself every few minutes")


@app.command(epilog="Example:  mooring device revoke cam-17 --yes")
def revoke(
    context: typer.Context,
    device: DeviceId,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    output: Output = Format.TABLE,
) -> None:
    """Throw a device out at once and prove it: no renewal, certificate refused, session ended, nothing directed."""
    if not yes:
        typer.confirm(f"Throw {device} out?", abort=True, err=True)
    found = act(context, lambda hub: hub.revoke(device))
    from cloud_hub.operator import render_devices

    show(found, output, render_devices.expelled)
    if not found.out:
        raise typer.Exit(1)


def _seconds(text: str) -> float:
    """30m, 24h, 7d."""
    units = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
    number, unit = text[:-1], text[-1:]
    if unit not in units or not number.replace(".", "", 1).isdecimal():
        raise typer.BadParameter(f"expected a time such as 30m, 24h or 7d, got {text[:20]!r}", param_hint="--for")
    return float(number) * units[unit]


def _new_token(device: str, profile: str, tags: dict[str, str], hours: float, uses: int) -> NewToken:
    from cloud_hub.claims import NewToken

    try:
        return NewToken(device, profile, tags, hours * 3600, uses)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--batch") from error
