"""The command `mooring-hub`: make a hub, run it, describe its API, find out what ails it.

Parses, calls, and says how it went; exit status 1 when something failed, 2 when the command was not understood.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from gc import collect, freeze
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer
from rich.console import Console
from rich.markup import escape

from cloud_hub import __version__
from cloud_hub.config import HubConfig, HubPaths
from cloud_hub.errors import HubError
from cloud_hub.hardening import keep_memory_private

if TYPE_CHECKING:
    from cloud_hub.retention import Swept

_CONTEXT = {"help_option_names": ["-h", "--help"]}
app = typer.Typer(
    name="mooring-hub",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings=_CONTEXT,
    rich_markup_mode="rich",
    help="The Mooring hub: registry, signed modules, devices, rollouts and monitoring.",
)
blobs_app = typer.Typer(no_args_is_help=True, context_settings=_CONTEXT, help="Where the hub's files lie.")
app.add_typer(blobs_app, name="blobs")
out, err = Console(soft_wrap=True), Console(stderr=True, soft_wrap=True)

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The hub's directory.", show_default=False)]


def _version(wanted: bool) -> None:
    if wanted:
        out.print(f"mooring-hub {__version__}")
        raise typer.Exit


@app.callback()
def _all(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    del version


@app.command(
    epilog="Example:  mooring-hub init /var/lib/mooring-hub --host hub.example.com --offline-keys /media/stick"
)
def init(
    folder: Folder,
    dev: Annotated[
        bool, typer.Option("--dev", help="Development: keep every private key, also the root keys, in DIR.")
    ] = False,
    host: Annotated[
        str, typer.Option(help="The name or address devices and operators use; it goes into the certificate.")
    ] = "localhost",
    bind: Annotated[
        str, typer.Option(metavar="ADDRESS", help="The address to listen on: loopback for localhost, otherwise all.")
    ] = "",
    api_port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the API; 0 picks a free one.")] = 8443,
    mqtt_port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the broker; 0 picks a free one.")] = 8883,
    offline_keys: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Where root, targets and publisher keys go; outside DIR. Needed without --dev."
        ),
    ] = None,
    publisher: Annotated[str, typer.Option(help="The name that modules are published under.")] = "dev",
    look: Annotated[float, typer.Option(metavar="SECONDS", help="Length of one look at the evidence.")] = 3600.0,
    false_alarm_months: Annotated[
        float, typer.Option(metavar="MONTHS", help="At most one false alarm is expected in this time.")
    ] = 12.0,
    broker: Annotated[str, typer.Option(metavar="URL", help="Use the broker at mqtts://HOST:PORT.")] = "",
    database: Annotated[
        str, typer.Option(metavar="URL", help="sqlite, or postgresql://USER@HOST:PORT/NAME with nothing in it.")
    ] = "sqlite",
    database_password_file: Annotated[
        str, typer.Option(metavar="FILE", help="Holds the password for the database, on this machine.")
    ] = "",
    settings: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="More settings, as in hub.toml. What it says counts before these options."),
    ] = None,
) -> None:
    """Make a new hub in DIR: settings, keys, certificates, database and the operator's token."""
    from cloud_hub.initialise import free_ports, initialise  # heavy: cryptography, TUF, SQLAlchemy

    free = free_ports(2)
    everywhere = "0.0.0.0"  # noqa: S104 - devices come from elsewhere
    address = bind or ("127.0.0.1" if host in ("localhost", "127.0.0.1") else everywhere)
    with _told():
        config = _config(
            settings,
            dev=dev,
            api_host=address,
            api_port=api_port or free[0],
            mqtt_host=address,
            mqtt_port=mqtt_port or free[1],
            public_host=host,
            broker=broker,
            look_s=look,
            false_alarm_months=false_alarm_months,
            publisher=publisher,
            database=database,
            database_password_file=database_password_file,
        )
        paths = asyncio.run(initialise(folder, config, offline_keys))
    if dev:
        err.print(
            "[bold red]DEVELOPMENT HUB[/]: ALL private keys, the root and publisher keys too, are on this machine, in "
            f"{escape(str(paths.keys))}.\nWhoever reads them can put any code on every device. Use it for trying out; "
            "for a fleet run `mooring-hub init` without --dev.",
            highlight=False,
        )
    out.print(f"hub made in {escape(str(folder))}", highlight=False)
    out.print(f"  start it:    mooring-hub serve {escape(str(folder))}", highlight=False)
    out.print(f"  operate it:  export MOORING_CONTEXT={escape(str(paths.context.resolve()))}", highlight=False)


@app.command(epilog="Example:  mooring-hub serve /var/lib/mooring-hub")
def serve(
    folder: Folder,
    broker: Annotated[
        str, typer.Option(metavar="URL", help="Use the broker at mqtts://HOST:PORT instead of a child.")
    ] = "",
    ready_file: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="Write the addresses here as JSON once everything is up."),
    ] = None,
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.")] = "info",
) -> None:
    """Run the hub in DIR until SIGINT or SIGTERM: API, broker, rollouts and monitoring."""
    keep_memory_private()
    level = logging.getLevelNamesMapping().get(log_level.upper())
    if level is None:
        raise typer.BadParameter(f"expected debug, info, warning or error, got {log_level}", param_hint="--log-level")
    logging.basicConfig(level=level, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("alembic").setLevel(max(level, logging.WARNING))  # it tells of every step it does not take
    if ready_file is not None:
        ready_file.unlink(missing_ok=True)
    with _told():
        asyncio.run(_serve(HubPaths(folder), broker, ready_file))


@app.command(epilog="Example:  mooring-hub seal /var/lib/mooring-hub")
def seal(folder: Folder) -> None:
    """Seal the hub's keys (signing, device CA, capabilities) to this machine, and print what its systemd unit needs.

    Run as root with the hub stopped. The plain files are removed: copy them to a safe place first, because nothing but
    this machine opens the sealed ones.
    """
    from cloud_hub.hardening import seal as seal_files
    from cloud_hub.service import only_one
    from cloud_hub.trust.keys import ONLINE

    paths = HubPaths(folder.resolve())
    # A hub that was never served has no lock: made here, it would be root's, and the hub could not take it.
    alone = only_one(paths) if (paths.root / "hub.lock").exists() else nullcontext()
    with _told(), alone:
        HubConfig.load(paths.root)
        others = (paths.device_ca_key, paths.capability_key, paths.outward_key)
        secret = (*(paths.keys / f"{n}.pem" for n in ONLINE), *others)
        private = [path for path in secret if path.is_file()]
        made = seal_files(paths, private)
    out.print("# systemctl edit mooring-hub\n[Service]", highlight=False, markup=False)
    for place in made:
        out.print(f"LoadCredentialEncrypted={place.stem}:{place}", highlight=False, markup=False)


@app.command(epilog="Example:  mooring-hub gc /var/lib/mooring-hub")
def gc(folder: Folder) -> None:
    """Remove old windows, samples and looks, patches without a use, and files that nothing refers to.

    A hub that runs does so by itself, every six hours. Safe beside one.
    """
    with _told():
        swept = asyncio.run(_gc(HubPaths(folder)))
    rows = f"{swept.windows} windows, {swept.samples} samples, {swept.looks} looks"
    out.print(f"removed {rows}, {swept.patches} patches, {swept.files} files ({swept.bytes} bytes)", highlight=False)


@app.command(epilog="Example:  mooring-hub crl /var/lib/mooring-hub --days 365")
def crl(
    folder: Folder,
    days: Annotated[float, typer.Option(min=0.01, max=3650, help="How long the list shall be good.")] = 30.0,
) -> None:
    """Write the revocation list anew, for a broker that lets nobody in because its list has ended."""
    with _told():
        count = asyncio.run(_crl(HubPaths(folder), days))
    out.print(f"{HubPaths(folder).crl}: {count} certificates revoked, good for {days:g} days", highlight=False)
    out.print("have the broker read it: restart it, or send it SIGHUP", highlight=False)


@app.command(epilog="Example:  mooring-hub openapi > openapi.json")
def openapi() -> None:
    """Print the OpenAPI 3.1 description of the API."""
    from cloud_hub.api.openapi import document
    from cloud_hub.api.table import EVERY_ROUTE

    text = msgspec.json.format(msgspec.json.encode(document(EVERY_ROUTE)), indent=2)
    sys.stdout.write(text.decode() + "\n")


@app.command(epilog="Example:  mooring-hub doctor /var/lib/mooring-hub")
def doctor(folder: Folder) -> None:
    """Check what the hub in DIR needs to run; nothing is changed. Exit status 1 when there is a problem."""
    from cloud_hub.doctor import examine

    findings = examine(HubPaths(folder))
    colours = {"ok": "green", "note": "yellow", "problem": "bold red"}
    for finding in findings:
        state = f"[{colours[finding.state]}]{finding.state:<8}[/]"
        out.print(f"{state} {finding.subject:<16} {escape(finding.text)}", highlight=False)
    if any(finding.state == "problem" for finding in findings):
        raise typer.Exit(1)


@app.command(epilog="Example:  mooring-hub replica /var/lib/mooring-hub /var/lib/mooring-hub-b --name b")
def replica(
    folder: Folder,
    new: Annotated[Path, typer.Argument(metavar="NEW", help="The directory to make.", show_default=False)],
    name: Annotated[str, typer.Option(help="What the new one is called among the replicas.", show_default=False)],
) -> None:
    """Make the directory of one more replica of the hub in DIR, which must share database, bucket and broker.

    Bring NEW to the machine that shall serve it by a way that keeps secrets: all keys of the hub are in it.
    """
    from cloud_hub.replicas.joining import add_replica

    with _told():
        made = add_replica(HubPaths(folder), new, name)
    out.print(f"replica {escape(name)} made in {escape(str(made.root))}", highlight=False)
    out.print(f"  start it:    mooring-hub serve {escape(str(made.root))}", highlight=False)


@blobs_app.command("move", epilog="Example:  mooring-hub blobs move /var/lib/mooring-hub s3://models/fleet")
def blobs_move(
    folder: Folder,
    to: Annotated[str, typer.Argument(metavar="PLACE", help="s3://BUCKET/FOLDER of the store in [bucket], or folder.")],
) -> None:
    """Bring all files to a bucket, or back into the hub's folder. Safe to repeat: what is there is not sent again.

    Beside a hub that runs it only copies: stop the hub then and run it once more, which brings what is left and changes
    the setting `blobs` in DIR/hub.toml. Nothing is removed from the old place.
    """
    from cloud_hub.blob_moving import move

    def told(done: int, files: int) -> None:
        err.print(f"{done} of {files} files", highlight=False)

    with _told():
        moved = asyncio.run(move(HubPaths(folder), to, told))
    out.print(f"{moved.files} files in {to}, {moved.sent} sent now ({moved.bytes} bytes)", highlight=False)
    if moved.switched:
        out.print(f"{HubPaths(folder).config}: blobs = {to}; the old files may be removed now", highlight=False)
    else:
        out.print("the hub runs, and may get more files: stop it and run this again to switch", highlight=False)


async def _gc(paths: HubPaths) -> Swept:
    from cloud_hub.service import open_hub, retention

    async with open_hub(paths) as rooms:
        return await retention(rooms).sweep()


async def _crl(paths: HubPaths, days: float) -> int:
    from cloud_hub.service import open_hub  # heavy: cryptography, TUF, SQLAlchemy

    async with open_hub(paths) as rooms:
        return await rooms.revocations.publish(life=timedelta(days=days))


async def _serve(paths: HubPaths, broker: str, ready_file: Path | None) -> None:
    from cloud_hub.service import Ready
    from cloud_hub.service import serve as run
    from cloud_hub.trust.keys import write_private

    stop, is_up = asyncio.Event(), asyncio.Event()
    running = asyncio.current_task()
    assert running is not None  # noqa: S101 - a coroutine always runs in a task

    def on_signal() -> None:
        # The first asks for an orderly end; while the hub still starts there is nothing to end in order, and whoever
        # asks twice means now. The broker goes down with this process.
        if stop.is_set():
            os._exit(1)
        stop.set()
        if not is_up.is_set():
            running.cancel()

    def on_ready(ready: Ready) -> None:
        is_up.set()
        # What was imported stays: to go through it anew took the collector 150 ms, in which nobody was answered.
        collect()
        freeze()
        if ready_file is not None:
            about = {
                "api": ready.api,
                "broker": ready.broker,
                "context": str(paths.context.resolve()),
                "pid": os.getpid(),
            }
            write_private(ready_file, msgspec.json.encode(about))
        out.print(f"ready: API {ready.api} broker {ready.broker}", highlight=False)
        sys.stdout.flush()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal)
    try:
        await run(paths, stop.wait, on_ready, broker)
    except asyncio.CancelledError:
        if not stop.is_set():
            raise
    finally:
        if ready_file is not None:
            ready_file.unlink(missing_ok=True)


def _config(more: Path | None, **settings: bool | int | float | str) -> HubConfig:
    try:
        return msgspec.convert(settings | (tomllib.loads(more.read_text()) if more else {}), HubConfig)
    except (msgspec.ValidationError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        err.print(f"[bold red]error[/]: {escape(str(error))}; nothing was created", highlight=False)
        raise typer.Exit(2) from error


@contextmanager
def _told() -> Iterator[None]:
    """An error of the hub becomes one line and exit status 1."""
    try:
        yield
    except HubError as error:
        err.print(f"[bold red]error[/] ({error.key}): {escape(error.message)}", highlight=False)
        raise typer.Exit(1) from error
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        err.print(f"[bold red]error[/]: {escape(where + (error.strerror or str(error)))}", highlight=False)
        raise typer.Exit(1) from error


def main() -> None:
    """The console script."""
    app()
