"""`mooring module`: list, show, patches, verify, export, run. `build` stands in `building`, signing in `releasing`."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cloud_hub.operator.cli import completing
from cloud_hub.operator.cli.building import build
from cloud_hub.operator.cli.exporting import Image, Kubernetes, Reference, write_container
from cloud_hub.operator.cli.pinned import PinnedRoot, hub_source
from cloud_hub.operator.cli.releasing import Module, pending, releases_of, renew, sign
from cloud_hub.operator.cli.running import Cpus, Engine, Memory, NoConfine, Port, run_in
from cloud_hub.operator.cli.session import Format, ModuleRef, Output, act, note, show, told
from cloud_hub.operator.errors import FileError, OperatorError, VerificationFailed
from modules.targets import TargetPath

if TYPE_CHECKING:
    from cloud_hub.operator.client import HubClient
    from cloud_hub.operator.verify import Verification

app = typer.Typer(no_args_is_help=True, help="Modules: a model version made ready for a device profile, and signed.")
_BUILD = """\
Example:  mooring module build digits:2 -p raspberry-pi-5 --reference train.npz --golden golden.npz

mooring module build cats:3 -p jetson-orin-nano --reference train.npz --provider CUDAExecutionProvider --allow-fallback

mooring module build cats:3 -p generic-x86_64 --runtime runtime.toml --input picture:BYTES:-1 --golden pictures.npz

mooring module build score:1 -p generic-aarch64 --entry score.py --environment conda.yml --golden golden.npz
 --input data:FP32:-1,10 --result class:INT64:-1

mooring module build score:1 -p generic-x86_64 --reference train.npz --base python-slim.tar

Every option with an example: docs/operate/building.md"""
app.command(epilog=_BUILD)(build)
app.command(epilog="Example:  mooring module sign digits:2 --key /media/stick/publisher-acme.pem")(sign)
app.command(epilog="Example:  mooring module pending")(pending)
app.command(epilog="Example:  mooring module renew acme --key /media/stick/publisher-acme.pem")(renew)


@app.command("list", epilog="Example:  mooring module list --name digits")
def list_modules(
    context: typer.Context,
    name: Annotated[str, typer.Option(help="Modules of this model only.")] = "",
    limit: Annotated[int, typer.Option(min=1, max=1000, help="At most so many.")] = 200,
    output: Output = Format.TABLE,
) -> None:
    """List modules, newest versions first."""
    found = act(context, lambda hub: hub.modules(name, limit))
    from cloud_hub.operator import render

    show(found, output, render.modules)


@app.command("show", epilog="Example:  mooring module show digits:2/raspberry-pi-5")
def show_module(context: typer.Context, module: Module, output: Output = Format.TABLE) -> None:
    """Show a module, or every build of the version."""
    found = act(context, lambda hub: releases_of(hub, module))
    from rich.console import Group

    from cloud_hub.operator import render

    show(found, output, lambda releases: Group(*(render.module(release) for release in releases)))


@app.command(epilog="Example:  mooring module patches digits")
def patches(
    context: typer.Context,
    name: Annotated[
        str,
        typer.Argument(metavar="[NAME]", help="Patches of this module only.", autocompletion=completing.module_names),
    ] = "",
    limit: Annotated[int, typer.Option(min=1, max=1000, help="At most so many.")] = 200,
    output: Output = Format.TABLE,
) -> None:
    """List patches between versions: built, waiting, dropped (they would save too little) and failed.

    `devices` are those that hold the old version and are to have the new one, of all that hold the old one.
    """
    found = act(context, lambda hub: hub.patches(name, limit))
    from cloud_hub.operator.render_patches import patches as rendered

    show(found, output, rendered)


@app.command(epilog="Example:  mooring module verify digits:2/raspberry-pi-5 --bundle ./digits-2 --root 1.root.json")
def verify(
    context: typer.Context,
    module: Module,
    root: PinnedRoot = None,
    bundle: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Verify from a folder that `export` wrote: no network.")
    ] = None,
    publisher: Annotated[str, typer.Option(help="Who signed it; asked of the hub, or of the bundle, without it.")] = "",
    output: Output = Format.TABLE,
) -> None:
    """Check a module as a device does: signatures from a pinned root down, digests of manifest, files and chunks."""
    if bundle is not None:
        with told():
            found = _verify_bundle(module, bundle, root, publisher)
    else:
        found = act(context, lambda hub: _verify_hub(hub, module, root, None))
    from cloud_hub.operator import render

    show(found, output, render.verification)


@app.command(epilog="Example:  mooring module export digits:2/raspberry-pi-5 ./digits-2")
def export(
    context: typer.Context,
    module: Module,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Made where it is not there.")],
    root: PinnedRoot = None,
    image: Image = None,
    kubernetes: Kubernetes = None,
    reference: Reference = "",
    output: Output = Format.TABLE,
) -> None:
    """Write a module with the metadata that proves it to a folder, verifying it on the way.

    The folder can be verified without a network until the metadata expires, about a week after it was signed. Of a
    module in a container, --image and --kubernetes write what runs it without an agent.
    """
    found = act(context, lambda hub: _verify_hub(hub, module, root, folder))
    from cloud_hub.operator import render

    with told():
        write_container(folder, found.manifest_sha256, reference, image, kubernetes)
    show(found, output, render.verification)
    note(f"written to {folder}")


@app.command(epilog="Example:  mooring module run digits:2/raspberry-pi-5 --port 8000")
def run(
    context: typer.Context,
    module: Annotated[
        str,
        typer.Argument(
            metavar="NAME:VERSION/PROFILE|FOLDER", help="A module, or its folder.", autocompletion=completing.modules
        ),
    ],
    port: Port = 8000,
    memory: Memory = 0,
    cpus: Cpus = 0,
    engine: Engine = "",
    no_confine: NoConfine = False,
    root: PinnedRoot = None,
) -> None:
    """Run a module on this machine as a device would: its worker, its limits, its endpoint; logs on the terminal.

    FOLDER is one that `export` wrote, or a device's slot. A module in a container needs an engine here.
    """
    given = {"--port": port, "--memory": memory, "--cpus": cpus, "--engine": engine}
    arguments = [text for name, value in given.items() if value for text in (name, str(value))]

    def exported(context: typer.Context, module: ModuleRef, folder: Path) -> str:
        return act(context, lambda hub: _verify_hub(hub, module, root, folder)).manifest_sha256

    run_in(context, module, exported, [*arguments, *(["--no-confine"] if no_confine else [])])


async def _verify_hub(hub: HubClient, module: ModuleRef, root: Path | None, folder: Path | None) -> Verification:
    from cloud_hub.operator import verify as checks

    releases = await releases_of(hub, module)
    if len(releases) != 1:
        profiles = ", ".join(release.profile for release in releases)
        raise OperatorError("profile-missing", f"expected NAME:VERSION/PROFILE: {module.name} is built for {profiles}")
    path = TargetPath.parse(releases[0].target)
    known = root or (Path(hub.context.image_root) if hub.context.image_root else None)
    own = f"the hub's own {checks.FIRST_ROOT} (over TLS, not pinned)"
    pinned, name = _pinned(known) or (await _own_root(hub), own)
    source = hub_source(hub)
    if folder is None:
        return await asyncio.to_thread(checks.verify, path, source, pinned, name)
    return await asyncio.to_thread(checks.export, path, source, pinned, name, folder)


def _verify_bundle(module: ModuleRef, bundle: Path, root: Path | None, publisher: str) -> Verification:
    from cloud_hub.operator import verify as checks

    source = checks.folder_source(bundle)
    own = source.metadata(checks.FIRST_ROOT)
    if own is None:
        raise FileError("bundle-incomplete", f"{bundle}: expected a folder written by `mooring module export`")
    pinned, name = _pinned(root) or (own, f"the bundle's own {checks.FIRST_ROOT} (proves only that it is whole)")
    known = checks.publishers(source)
    if not publisher and len(known) != 1:
        raise VerificationFailed("publisher-missing", f"{bundle}: name the --publisher; there are {', '.join(known)}")
    if not module.profile:
        raise OperatorError("profile-missing", "expected NAME:VERSION/PROFILE")
    path = TargetPath(publisher or known[0], module.name, module.version, module.profile)
    return checks.verify(path, source, pinned, name)


def _pinned(root: Path | None) -> tuple[bytes, str] | None:
    if root is None:
        return None
    try:
        return root.read_bytes(), f"{root} (pinned)"
    except OSError as error:
        raise FileError("not-readable", f"{root}: {error.strerror}; nothing was verified") from error


async def _own_root(hub: HubClient) -> bytes:
    from cloud_hub.operator.verify import FIRST_ROOT

    body = await hub.image_metadata(FIRST_ROOT)
    if body is None:
        raise VerificationFailed("metadata-incomplete", f"the hub has no {FIRST_ROOT}; nothing was verified")
    return body
