"""`mooring drift` and `mooring alerts`: what has changed, what is wrong, and who sees to it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Final

import typer

from cloud_hub.operator.cli import completing
from cloud_hub.operator.cli.references import watched
from cloud_hub.operator.cli.session import Format, Output, WatchedRef, act, note, show

if TYPE_CHECKING:
    from cloud_hub.monitoring.alert_book import AlertDetail

drift = typer.Typer(no_args_is_help=True, help="Drift: have inputs or answers changed since training?")
alerts = typer.Typer(no_args_is_help=True, help="Alerts: drift, bad data, worse answers; with the evidence.")

_STATES: Final = ("open", "acknowledged", "snoozed", "resolved", "live")
_UNITS: Final = {"m": 60.0, "h": 3600.0, "d": 86_400.0}
Number = Annotated[int, typer.Argument(metavar="ALERT", min=1, help="Its number, as listed.")]
Comment = Annotated[str, typer.Option("--comment", "-m", help="Why; it stands in the alert's history.")]
Name = Annotated[
    WatchedRef,
    watched("Without a version the newest."),
]
OfDevice = Annotated[str, typer.Option(help="One device; without it the fleet.", autocompletion=completing.devices)]
OfGroup = Annotated[str, typer.Option(help="Devices with this in common, as KEY=VALUE.")]


def _duration(text: str) -> float:
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([mhd])", text)
    if match is None:
        raise typer.BadParameter(f"expected a time such as 30m, 4h or 2d, got {text!r}")
    return float(match[1]) * _UNITS[match[2]]


@drift.command("show", epilog="Example:  mooring drift show digits:2 --device cam-17 --reference fleet")
def show_drift(
    context: typer.Context,
    module: Name,
    device: OfDevice = "",
    group: OfGroup = "",
    reference: Annotated[
        str,
        typer.Option(
            help="Compare with training, period:FROM..TO, version:N or fleet (all other devices), this once. "
            "Without it with what is set."
        ),
    ] = "",
    everything: Annotated[bool, typer.Option("--all", help="Every feature, not only the strongest.")] = False,
    output: Output = Format.TABLE,
) -> None:
    """Show how large each feature's change is, and the evidence for it against its threshold."""
    found = act(context, lambda hub: hub.drift(module.name, module.version, device, group, reference))
    from cloud_hub.operator import render_drift

    show(found, output, lambda reports: render_drift.drift(reports, everything))


@drift.command("watch", epilog="Example:  mooring drift watch digits --reference period:2026-11-01..2026-11-08")
def watch(
    context: typer.Context,
    module: Annotated[str, typer.Argument(metavar="NAME", help="The module.")],
    reference: Annotated[
        str,
        typer.Option(
            help="training, period:FROM..TO (what was counted then), version:N (what was counted of it), or "
            "fleet (what all other devices count: which one is odd?)."
        ),
    ],
    device: Annotated[str, typer.Option(help="Of this device only.")] = "",
    group: Annotated[str, typer.Option(help="Of devices with this in common only, as KEY=VALUE.")] = "",
) -> None:
    """Choose what a module is compared with from now on."""
    scope = f"device:{device}" if device else f"group:{group}" if group else "fleet"
    made = act(context, lambda hub: hub.set_watch(module, reference, scope))
    if scope == "fleet":
        note(f"{made.module} is compared with {made.reference} wherever nothing else is set (mooring drift watches)")
    elif str(made.reference) == "training":
        note(f"nothing of its own is set for {scope} any more; it follows the rest of {made.module}")
    else:
        note(f"{made.module} is compared with {made.reference} for {scope}")


@drift.command("watches", epilog="Example:  mooring drift watches")
def watches(
    context: typer.Context,
    module: Annotated[str, typer.Option(help="Of this module only.")] = "",
    output: Output = Format.TABLE,
) -> None:
    """List what is compared with something else than its training data."""
    found = act(context, lambda hub: hub.all_of(hub.watches(module)))
    from cloud_hub.operator import render_alerts

    show(found, output, render_alerts.watches)


@alerts.command("list", epilog="Example:  mooring alerts list --state live")
def list_alerts(
    context: typer.Context,
    state: Annotated[
        str, typer.Option(help="open, acknowledged, snoozed, resolved, or live (all but resolved); any without it.")
    ] = "",
    module: Annotated[str, typer.Option(help="Of this module only.")] = "",
    everything: Annotated[bool, typer.Option("--all", help="Also those for which a wider alert speaks.")] = False,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="At most so many.")] = 100,
    output: Output = Format.TABLE,
) -> None:
    """List alerts, newest first: what, where, since when, how large, and who sees to it."""
    if state and state not in _STATES:
        raise typer.BadParameter(f"--state: expected one of {', '.join(_STATES)}, got {state!r}")
    found = act(context, lambda hub: hub.alerts(state, module, limit, everything))
    from cloud_hub.operator import render_alerts

    show(found, output, render_alerts.alerts)


@alerts.command("show", epilog="Example:  mooring alerts show 12")
def show_alert(context: typer.Context, number: Number, output: Output = Format.TABLE) -> None:
    """Show one alert: what is behind it, what else happened then, its history, and what to do next."""
    _print(act(context, lambda hub: hub.alert(number)), output)


@alerts.command(epilog='Example:  mooring alerts acknowledge 12 -m "lens is being cleaned"')
def acknowledge(context: typer.Context, number: Number, comment: Comment = "", output: Output = Format.TABLE) -> None:
    """Say that you see to it. It is open again by itself when it becomes critical."""
    _print(act(context, lambda hub: hub.acknowledge_alert(number, comment)), output)


@alerts.command(epilog='Example:  mooring alerts snooze 12 --for 2d -m "until the crew is there"')
def snooze(
    context: typer.Context,
    number: Number,
    for_s: Annotated[float, typer.Option("--for", parser=_duration, metavar="TIME", help="Such as 30m, 4h or 2d.")],
    comment: Comment = "",
    output: Output = Format.TABLE,
) -> None:
    """Put it off. It is open again after that, unless it has become calm."""
    _print(act(context, lambda hub: hub.snooze_alert(number, for_s, comment)), output)


@alerts.command(epilog='Example:  mooring alerts resolve 12 --new-normal -m "the camera was moved"')
def resolve(
    context: typer.Context,
    number: Number,
    comment: Comment = "",
    normal: Annotated[
        bool, typer.Option("--new-normal", help="What was counted since the change began is the reference from now on.")
    ] = False,
    output: Output = Format.TABLE,
) -> None:
    """End it by hand: what was counted up to now is not weighed again."""
    _print(act(context, lambda hub: hub.resolve_alert(number, comment, normal)), output)


def _print(found: AlertDetail, output: Format) -> None:
    from cloud_hub.operator import render_alerts

    show(found, output, render_alerts.detail)
