"""`mooring device logs|restart|diagnose` and `mooring command`: what devices are asked to do, and what they answer."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, TypeVar

import typer
from rich.console import Console

from cloud_hub.asking import words
from cloud_hub.operator.cli import completing
from cloud_hub.operator.cli.devices import DeviceId
from cloud_hub.operator.cli.devices import app as devices
from cloud_hub.operator.cli.session import Format, Output, act, fail, note, show
from cloud_hub.operator.errors import Refused
from cloud_hub.words import counted

if TYPE_CHECKING:
    from cloud_hub.asking.book import AskedCommand
    from cloud_hub.asking.wanted import NewCommand
    from cloud_hub.operator.client import HubClient

app = typer.Typer(no_args_is_help=True, help="Commands: what devices were asked to do, and what became of it.")
LOOK_S: Final = 0.5
SLOWEST_LOOK_S: Final = 3.0
BLOB_S: Final = 900.0  # for a large result, after the answer that names it
_T = TypeVar("_T")

CommandId = Annotated[str, typer.Argument(metavar="COMMAND", help="Its id, as `mooring command list` shows it.")]
Expires = Annotated[str, typer.Option(metavar="TIME", help="How long the device may take to answer: 90s, 1h, 2d.")]
NoWait = Annotated[bool, typer.Option("--no-wait", help="Only ask; see `mooring command show` for the answer.")]
Target = Annotated[str, typer.Option("--target", metavar="QUERY", help="All these devices: 'site=lab and online'.")]
Lines = Annotated[int, typer.Option(min=1, max=20_000, help="At most so many lines, the newest.")]


@devices.command("logs", epilog="Example:  mooring device logs cam-17 --module digits --since 1h --level warning")
def device_logs(
    context: typer.Context,
    device: DeviceId,
    module: Annotated[
        str,
        typer.Option(
            help="Of this module's worker; without it of the agent itself.", autocompletion=completing.module_names
        ),
    ] = "",
    since: Annotated[str, typer.Option(metavar="TIME", help="The last 90s, 15m, 2h, 3d before it answers.")] = "",
    level: Annotated[str, typer.Option(help="At least debug, info, warning or error.")] = "debug",
    lines: Lines = 1000,
    most: Annotated[str, typer.Option("--max", metavar="SIZE", help="At most so much, the newest.")] = "256KiB",
    expires: Expires = "1h",
    no_wait: NoWait = False,
    output: Output = Format.TABLE,
) -> None:
    """Print the last lines of a device's log. Ctrl-C stops the waiting, not the command."""
    size = _said(words.size, most) or 256 * 1024
    last_s = _said(words.seconds, since) or 0.0 if since else 0.0
    new = _new(
        kind="logs", device=device, module=module, last_s=last_s, level=level, lines=lines, max_bytes=size,
        expires_s=_life(expires),
    )  # fmt: skip
    found, brought = _asked(context, new, no_wait)
    if output is Format.TABLE and found.state == "done" and not found.found:
        note(_silent(module or "the agent", since, level))
        return
    _answered(found, output if brought is None or output is not Format.TABLE else None)
    if output is Format.TABLE and brought is not None:
        sys.stdout.write(brought.decode(errors="replace"))
        if found.count < found.found:
            note(f"the newest {found.count} of {found.found} lines that fit")


@devices.command("restart", epilog="Example:  mooring device restart cam-17 digits")
def device_restart(
    context: typer.Context,
    device: DeviceId,
    module: Annotated[
        str,
        typer.Argument(
            metavar="[MODULE]", help="The module whose worker is replaced.", autocompletion=completing.module_names
        ),
    ] = "",
    agent: Annotated[bool, typer.Option("--agent", help="The agent itself, with all its modules.")] = False,
    expires: Expires = "1h",
    no_wait: NoWait = False,
    output: Output = Format.TABLE,
) -> None:
    """Replace a module's worker by another one of the same version, without a gap where there is memory for both."""
    if bool(module) == agent:
        fail("say which module, or --agent")
    new = _new(kind="restart", device=device, module=module, expires_s=_life(expires))
    found, _ = _asked(context, new, no_wait)
    _answered(found, output)


@devices.command("diagnose", epilog="Example:  mooring device diagnose cam-17 --file cam-17.json")
def device_diagnose(
    context: typer.Context,
    device: DeviceId,
    file: Annotated[Path | None, typer.Option(help="Where to write it; without it to standard output.")] = None,
    lines: Lines = 200,
    expires: Expires = "1h",
    no_wait: NoWait = False,
    output: Output = Format.TABLE,
) -> None:
    """Get how a device does as one JSON object: its checks, disk, memory, network, crashes, logs; no secrets."""
    new = _new(kind="diagnostics", device=device, lines=lines, expires_s=_life(expires))
    found, brought = _asked(context, new, no_wait)
    _answered(found, output if brought is None else None)
    if brought is not None and file is None:
        sys.stdout.write(brought.decode(errors="replace") + "\n")
    elif brought is not None and file is not None:
        file.write_bytes(brought)
        note(f"{len(brought)} bytes in {file}")


@app.command(epilog="Example:  mooring command ask logs --target 'site=lab' --module digits --since 1h")
def ask(
    context: typer.Context,
    kind: Annotated[str, typer.Argument(metavar="KIND", help="logs, restart or diagnostics.")],
    target: Target,
    module: Annotated[str, typer.Option(help="Of this module; only devices that shall have it are asked.")] = "",
    since: Annotated[str, typer.Option(metavar="TIME", help="Logs of the last 90s, 15m, 2h, 3d.")] = "",
    lines: Lines = 1000,
    expires: Expires = "1d",
    output: Output = Format.TABLE,
) -> None:
    """Ask many devices at once, at most 1,000: one command for each."""
    last_s = _said(words.seconds, since) or 0.0 if since else 0.0
    new = _new(kind=kind, target=target, module=module, last_s=last_s, lines=lines, expires_s=_life(expires))
    made = act(context, lambda hub: hub.ask_devices(new))
    from cloud_hub.operator import render_asking

    show(made, output, lambda batch: render_asking.commands(batch.commands))
    if output is Format.TABLE:
        left = f"; {len(made.outdated)} run agents too old for it" if made.outdated else ""
        asked = counted(len(made.commands), "device")
        note(f"{asked} asked{left}; what became of it: mooring command list --batch {made.batch}")


@app.command("list", epilog="Example:  mooring command list --device cam-17 --state pending")
def list_commands(
    context: typer.Context,
    device: Annotated[str, typer.Option(help="Of this device only.", autocompletion=completing.devices)] = "",
    module: Annotated[str, typer.Option(help="Of this module only.", autocompletion=completing.module_names)] = "",
    kind: Annotated[str, typer.Option(help="samples, logs, restart or diagnostics.")] = "",
    state: Annotated[str, typer.Option(help="pending, done, refused, failed, expired or cancelled.")] = "",
    batch: Annotated[str, typer.Option(help="Those that were asked together.")] = "",
    limit: Annotated[int, typer.Option(min=1, max=1000, help="At most so many.")] = 100,
    output: Output = Format.TABLE,
) -> None:
    """List what devices were asked to do, newest first, and what became of it."""
    found = act(context, lambda hub: hub.commands(device, module, state, limit, kind, batch))
    from cloud_hub.operator import render_asking

    show(found, output, render_asking.commands)


@app.command("show", epilog="Example:  mooring command show c-0f3a51c2b7d8 --wait")
def show_command(
    context: typer.Context,
    command: CommandId,
    wait: Annotated[bool, typer.Option("--wait", help="Until the device has answered.")] = False,
    output: Output = Format.TABLE,
) -> None:
    """Show a command and its answer."""

    async def work(hub: HubClient) -> AskedCommand:
        found = await hub.command(command)
        return await _ended(hub, found) if wait else found

    found = act(context, work)
    from cloud_hub.operator import render_asking

    show(found, output, render_asking.command)


@app.command("result", epilog="Example:  mooring command result c-0f3a51c2b7d8 > digits.log")
def download_result(
    context: typer.Context,
    command: CommandId,
    file: Annotated[Path | None, typer.Option(help="Where to write it; without it to standard output.")] = None,
) -> None:
    """Get what a command has brought: lines of a log, or diagnostics as JSON."""
    brought = act(context, lambda hub: hub.command_result(command))
    if file is None:
        sys.stdout.write(brought.decode(errors="replace"))
    else:
        file.write_bytes(brought)
        note(f"{len(brought)} bytes in {file}")


@app.command("cancel", epilog="Example:  mooring command cancel c-0f3a51c2b7d8")
def cancel_command(context: typer.Context, command: CommandId, output: Output = Format.TABLE) -> None:
    """Give up a command that waits. A device that has it already may do it all the same; then its answer counts."""
    found = act(context, lambda hub: hub.cancel_command(command))
    from cloud_hub.operator import render_asking

    show(found, output, render_asking.command)


def _silent(who: str, since: str, level: str) -> str:
    """That a log is kept, and nothing in it fits."""
    least = "" if level == "debug" else f" of level {level} or above"
    return f"{who} has said nothing{least}{f' in the last {since}' if since else ''}"


def _asked(context: typer.Context, new: NewCommand, no_wait: bool) -> tuple[AskedCommand, bytes | None]:
    """The command, ended unless nobody waits, and what it has brought."""

    async def work(hub: HubClient) -> tuple[AskedCommand, bytes | None]:
        (made,) = (await hub.ask_devices(new)).commands
        if no_wait:
            note(f"asked; the answer: mooring command show {made.id}")
            return made, None
        found = await _ended(hub, made)
        return found, await _brought(hub, found) if found.result_sha256 else None

    return act(context, work)


async def _ended(hub: HubClient, made: AskedCommand) -> AskedCommand:
    """Looks until the device has answered, or its time is over. Interrupted, it says how to go on."""
    console = Console(stderr=True)
    words = f"waiting for {made.device} (Ctrl-C stops the waiting, the command stays)"
    pause_s = LOOK_S
    with console.status(words) if console.is_terminal else nullcontext():
        try:
            while (found := await hub.command(made.id)).state == "pending":
                await asyncio.sleep(pause_s)
                pause_s = min(SLOWEST_LOOK_S, pause_s * 1.2)
        except asyncio.CancelledError:
            note(f"command {made.id} is still pending: mooring command show {made.id} --wait")
            raise
    return found


async def _brought(hub: HubClient, found: AskedCommand) -> bytes:
    """A large result comes in pieces after the answer, which the hub puts together."""
    until = time.monotonic() + BLOB_S
    try:
        while True:
            try:
                return await hub.command_result(found.id)
            except Refused as error:
                if error.key != "blob-not-found" or time.monotonic() > until:
                    raise
            await asyncio.sleep(LOOK_S)
    except asyncio.CancelledError:
        note(f"its result is on its way: mooring command result {found.id}")
        raise


def _answered(found: AskedCommand, output: Format | None) -> None:
    """Says what was answered, and ends with status 1 where it was not done."""
    if found.state not in ("done", "pending"):
        if output is not None and output is not Format.TABLE:
            show(found, output, str)
        fail(f"{found.device}: {found.state}: {found.text or found.key} ({found.id})")
    if output is not None:
        from cloud_hub.operator import render_asking

        show(found, output, render_asking.command)


def _new(**fields: object) -> NewCommand:
    import msgspec

    from cloud_hub.asking.wanted import NewCommand

    try:
        return msgspec.convert(fields, NewCommand)
    except (msgspec.ValidationError, ValueError) as error:
        raise typer.BadParameter(str(error)) from error


def _life(text: str) -> float:
    return _said(words.seconds, text) or 30 * 86_400.0


def _said(parse: Callable[[str], _T], text: str) -> _T:
    """What an option says. What is wrong ends the command."""
    try:
        return parse(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
