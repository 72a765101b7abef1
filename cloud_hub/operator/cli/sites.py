"""`mooring site`: hubs without a line to each other. Releases go one way on a medium, what devices saw the other."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cloud_hub.operator.cli.session import Format, Output, act, note, show, told, transferring

if TYPE_CHECKING:
    from cloud_hub.operator.client import HubClient
    from cloud_hub.sites.book import Site
    from cloud_hub.sites.merging import Merged

app = typer.Typer(no_args_is_help=True, help="Hubs without a line to each other: packs and receipts on a medium.")
SiteName = Annotated[str, typer.Argument(metavar="SITE", help="The other hub's name here: 1 to 20 of a-z, 0-9 and -.")]
Pack = Annotated[Path, typer.Argument(metavar="FILE", help="The pack.")]


@app.command("key", epilog="Example:  mooring site key > lyon.pub")
def key(context: typer.Context, output: Output = Format.TABLE) -> None:
    """Print this hub's public key, for `mooring site add` at the other hub."""
    import sys

    found = act(context, lambda hub: hub.site_key())
    if output is not Format.TABLE:
        show(found, output, str)
        return
    sys.stdout.write(found.public_key)
    note(f"its fingerprint, to compare by another way: {found.fingerprint}")


@app.command("add", epilog="Example:  mooring site add lyon lyon.pub")
def add(
    context: typer.Context,
    site: SiteName,
    key_file: Annotated[Path, typer.Argument(metavar="KEY", help="What `mooring site key` printed there.")],
    output: Output = Format.TABLE,
) -> None:
    """Let a hub's packs and receipts count here. Compare the fingerprint with whoever runs it."""

    async def work(hub: HubClient) -> Site:
        from cloud_hub.operator.errors import FileError
        from cloud_hub.sites.registry import NewSite

        try:
            text = key_file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise FileError("site-key-unreadable", f"{key_file}: {error}") from error
        return await hub.add_site(NewSite(site, text))

    found = act(context, work)
    from cloud_hub.operator import render_sites

    show([found], output, render_sites.sites)


@app.command("list", epilog="Example:  mooring site list")
def list_sites(context: typer.Context, output: Output = Format.TABLE) -> None:
    """List the hubs whose packs and receipts count here."""
    found = act(context, lambda hub: hub.all_of(hub.sites()))
    from cloud_hub.operator import render_sites

    show(found, output, render_sites.sites)


@app.command("remove", epilog="Example:  mooring site remove lyon")
def remove(context: typer.Context, site: SiteName) -> None:
    """Let a hub's packs and receipts count no more. What was merged stays."""
    act(context, lambda hub: hub.remove_site(site))
    note(f"{site} is forgotten")


@app.command("devices", epilog="Example:  mooring site devices lyon")
def devices(context: typer.Context, site: SiteName, output: Output = Format.TABLE) -> None:
    """List a site's devices as its newest merged pack has them."""
    found = act(context, lambda hub: hub.all_of(hub.site_devices(site)))
    from cloud_hub.operator import render_sites

    show(found, output, render_sites.devices)


@app.command("pack", epilog="Example:  mooring site pack /media/stick/lyon.pack")
def pack(context: typer.Context, file: Pack) -> None:
    """On a site: write what devices have sent since the last receipt to a file, sealed."""

    async def work(hub: HubClient) -> int:
        with transferring("packing", None) as progress:
            return await hub.pack_site(file, progress)

    size = act(context, work)
    note(f"{file}: {size} bytes; at the other hub:  mooring site merge SITE {file}")


@app.command("merge", epilog="Example:  mooring site merge lyon /media/stick/lyon.pack")
def merge(
    context: typer.Context,
    site: SiteName,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The pack.", exists=True, dir_okay=False)],
    skip_unknown: Annotated[
        bool, typer.Option("--skip-unknown", help="Leave out for good what belongs to modules that are not here.")
    ] = False,
    output: Output = Format.TABLE,
) -> None:
    """Take a site's pack in: nothing counts twice, however often or in which order packs come.

    Writes FILE.receipt beside it, which the site takes by `mooring site receipt`: its next pack begins behind it.
    """

    async def work(hub: HubClient) -> Merged:
        with transferring(f"uploading {file.name}", file.stat().st_size) as progress:
            uploaded = await hub.upload(file, progress)
        return await hub.merge_pack(site, uploaded.sha256, skip_unknown)

    found = act(context, work)
    receipt = file.with_name(f"{file.name}.receipt")
    with told():
        _write(receipt, found.receipt)
    from cloud_hub.operator import render_sites

    show(found, output, render_sites.merged)
    note(f"{receipt} is for the site:  mooring site receipt {receipt}")


@app.command("receipt", epilog="Example:  mooring site receipt /media/stick/lyon.pack.receipt")
def receipt(context: typer.Context, file: Annotated[Path, typer.Argument(metavar="FILE", help="The receipt.")]) -> None:
    """On a site: take the other hub's receipt, so that the next pack begins where that one ended."""
    from cloud_hub.operator.errors import FileError

    with told():
        try:
            text = file.read_text(encoding="ascii")
        except (OSError, UnicodeDecodeError) as error:
            raise FileError("receipt-unreadable", f"{file}: {error}") from error
    found = act(context, lambda hub: hub.take_receipt(text))
    note("the other hub has " + ", ".join(f"each {stream} up to {upto}" for stream, upto in sorted(found.upto.items())))


@app.command(
    "import", epilog="Example:  mooring site import ./digits-2 digits:2/raspberry-pi-5 --root central.root.json"
)
def import_(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Written by `mooring module export` there.")],
    module: Annotated[str, typer.Argument(metavar="NAME:VERSION/PROFILE", help="The module in it.")],
    root: Annotated[
        Path, typer.Option("--root", metavar="FILE", help="The other hub's image root, which you have by another way.")
    ],
    publisher: Annotated[str, typer.Option(help="Who signed it there, where the folder names several.")] = "",
    output: Output = Format.TABLE,
) -> None:
    """Take in a module that another hub has released, after checking it as a device would from that hub's root.

    Here it is unsigned: `mooring module sign` makes it a release of this hub, for this hub's devices.
    """
    from cloud_hub.operator.carrying import import_bundle
    from cloud_hub.operator.cli.session import ModuleRef

    wanted = ModuleRef.parse(module)
    found = act(context, lambda hub: import_bundle(hub, folder, wanted, root, publisher))
    from cloud_hub.operator import render

    show([found], output, render.modules)
    note(f"sign it here:  mooring module sign {module}")


def _write(path: Path, text: str) -> None:
    from cloud_hub.operator.errors import FileError

    try:
        path.write_text(text + "\n", encoding="ascii")
    except OSError as error:
        raise FileError("not-written", f"{path}: {error.strerror}; merge again to have the receipt") from error
