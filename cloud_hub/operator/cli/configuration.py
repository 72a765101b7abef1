"""`mooring config`: the configuration of modules, for the fleet, for groups and for single devices."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cloud_hub.operator.cli import completing
from cloud_hub.operator.cli.session import Format, Output, act, fail, note, show, told
from cloud_hub.operator.documents import read_document

if TYPE_CHECKING:
    from cloud_hub.configuration.configurations import ConfigurationChange

app = typer.Typer(no_args_is_help=True, help="Configuration of modules: set, see, compare, roll out, go back.")

ModuleName = Annotated[
    str, typer.Argument(metavar="MODULE", help="The module's name.", autocompletion=completing.module_names)
]
GroupName = Annotated[
    str,
    typer.Option("--group", metavar="NAME", help="For the devices of this group.", autocompletion=completing.groups),
]
Target = Annotated[str, typer.Option("--target", metavar="QUERY", help="For these devices: 'site=lab and arch=arm64'.")]
OneDevice = Annotated[
    str,
    typer.Option("--device", metavar="ID", help="For this device, over all else.", autocompletion=completing.devices),
]
Comment = Annotated[str, typer.Option(help="Why, for the history.")]
PlanFile = Annotated[
    Path | None,
    typer.Option("--plan", metavar="FILE", help="How it is rolled out: YAML, JSON or TOML as for `rollout create`."),
]
Stages = Annotated[
    list[str] | None,
    typer.Option("--stage", metavar="SIZE", help="In order: a number, a share such as 20%, or rest. Repeatable."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would change, and on which devices.")]


@app.command("set", epilog="Example:  mooring config set digits threshold=0.7 --group pilot --stage 1 --stage rest")
def set_configuration(
    context: typer.Context,
    module: ModuleName,
    values: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME=VALUE]...", help="JSON or plain text; camera.fps=15 names an inner one."),
    ] = None,
    group: GroupName = "",
    target: Target = "",
    device: OneDevice = "",
    unset: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Say nothing of it here. Repeatable.")] = None,
    file: Annotated[Path | None, typer.Option(help="Names and values from a YAML, JSON or TOML file.")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Here shall be nothing but what is said now.")] = False,
    remove: Annotated[
        bool, typer.Option("--remove", help="Nothing of its own for this group, target or device.")
    ] = False,
    comment: Comment = "",
    plan: PlanFile = None,
    stage: Stages = None,
    draft: Annotated[bool, typer.Option("--draft", help="Keep it; `mooring config apply` rolls it out.")] = False,
    dry_run: DryRun = False,
    output: Output = Format.TABLE,
) -> None:
    """Change a part of a module's configuration, check it by the schema of each device's version, roll it out.

    null takes away what the parts before this one say; --unset says nothing of a name any more.
    """
    with told():
        said = _overlaid(read_document(file) if file else {}, [_pair(text) for text in values or ()])
        rollout = _rollout(plan, stage)
    if not (said or unset or replace or remove):
        fail("say what to change: NAME=VALUE, --unset, --file, --replace or --remove")
    from cloud_hub.configuration.changes import LayerChange
    from cloud_hub.configuration.configurations import ConfigurationChange

    try:
        layer = LayerChange(_target(group, target), device, said, tuple(unset or ()), replace, remove)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    change = ConfigurationChange(layer, comment=comment, rollout=rollout, draft=draft, dry_run=dry_run)
    _change(context, module, change, output)


@app.command("show", epilog="Example:  mooring config show digits --device cam-17")
def show_configuration(
    context: typer.Context,
    module: ModuleName,
    device: OneDevice = "",
    revision: Annotated[int, typer.Option(min=0, help="This revision; without it what stands.")] = 0,
    output: Output = Format.TABLE,
) -> None:
    """Show a module's configuration: what stands and what is newer, or what one device has and where it comes from."""
    from cloud_hub.operator import render_configuration

    if device:
        of = act(context, lambda hub: hub.device_configuration(device, module))
        show(of, output, render_configuration.device)
    elif revision:
        one = act(context, lambda hub: hub.configuration_revision(module, revision))
        show(one, output, render_configuration.revision)
    else:
        found = act(context, lambda hub: hub.configuration(module))
        show(found, output, render_configuration.module)


@app.command(epilog="Example:  mooring config diff digits 3 5")
def diff(
    context: typer.Context,
    module: ModuleName,
    before: Annotated[int | None, typer.Argument(min=0, help="A revision; without it the one that stands.")] = None,
    after: Annotated[int | None, typer.Argument(min=0, help="Another; without it the newest.")] = None,
    output: Output = Format.TABLE,
) -> None:
    """Show what differs between two revisions, part by part. 0 is the empty one."""
    from cloud_hub.operator import render_configuration

    async def work(hub: Any) -> Any:  # noqa: ANN401 - HubClient, which is imported when the command talks
        now = await hub.configuration(module)
        old = before if before is not None else (now.stands.revision if now.stands else 0)
        new = after if after is not None else (now.newest.revision if now.newest else 0)
        return await hub.configuration_differences(module, old, new)

    show(act(context, work), output, render_configuration.differences)


@app.command(epilog="Example:  mooring config history digits")
def history(
    context: typer.Context,
    module: ModuleName,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="At most so many.")] = 20,
    output: Output = Format.TABLE,
) -> None:
    """List the revisions of a module's configuration, newest first."""
    found = act(context, lambda hub: hub.configuration_revisions(module, limit))
    from cloud_hub.operator import render_configuration

    show(found, output, render_configuration.revisions)


@app.command(epilog="Example:  mooring config rollback digits 3 --comment 'too many false alarms'")
def rollback(
    context: typer.Context,
    module: ModuleName,
    revision: Annotated[int, typer.Argument(min=1, help="What this revision said becomes the newest.")],
    comment: Comment = "",
    plan: PlanFile = None,
    stage: Stages = None,
    dry_run: DryRun = False,
    output: Output = Format.TABLE,
) -> None:
    """Go back to what a revision said: a new revision with its content, checked and rolled out like any other."""
    from cloud_hub.configuration.configurations import ConfigurationChange

    with told():
        rollout = _rollout(plan, stage)
    change = ConfigurationChange(revision=revision, comment=comment, rollout=rollout, dry_run=dry_run)
    _change(context, module, change, output)


@app.command(epilog="Example:  mooring config apply digits --stage 10% --stage rest")
def apply(
    context: typer.Context,
    module: ModuleName,
    plan: PlanFile = None,
    stage: Stages = None,
    output: Output = Format.TABLE,
) -> None:
    """Roll the newest revision out: a draft, one whose rollout failed, or to devices that belong elsewhere by now."""
    with told():
        rollout = _rollout(plan, stage)
    found = act(context, lambda hub: hub.apply_configuration(module, rollout))
    from cloud_hub.operator import render_configuration

    show(found, output, render_configuration.changed)
    if output is Format.TABLE and found.rollout:
        note(f"how it goes: mooring rollout status {found.rollout}")


def _change(context: typer.Context, module: str, change: ConfigurationChange, output: Format) -> None:
    found = act(context, lambda hub: hub.change_configuration(module, change))
    from cloud_hub.operator import render_configuration

    show(found, output, render_configuration.changed)
    if output is Format.TABLE and found.rollout:
        note(f"how it goes: mooring rollout status {found.rollout}")
    elif output is Format.TABLE and found.revision and change.draft:
        note(f"to roll it out: mooring config apply {module}")


def _rollout(plan: Path | None, stages: list[str] | None) -> dict[str, Any]:
    """Fields of a new rollout. Raises FileError."""
    said = read_document(plan) if plan else {}
    return said | ({"groups": stages} if stages else {})


def _target(group: str, target: str) -> str:
    return " and ".join(part for part in (f"group = {group}" if group else "", f"({target})" if target else "") if part)


def _pair(text: str) -> tuple[list[str], Any]:
    """The names from the outermost on, and the value."""
    name, sign, value = text.partition("=")
    path = name.split(".")
    if not sign or not all(path):
        raise typer.BadParameter(f"expected NAME=VALUE, such as threshold=0.7 or camera.fps=15, got {text!r}")
    try:
        return path, json.loads(value)
    except ValueError:
        return path, value


def _overlaid(said: dict[str, Any], pairs: list[tuple[list[str], Any]]) -> dict[str, Any]:
    for path, value in pairs:
        place = said
        for name in path[:-1]:
            inner = place.setdefault(name, {})
            if not isinstance(inner, dict):
                raise typer.BadParameter(f"{'.'.join(path)}: {name} has another value already")
            place = inner
        place[path[-1]] = value
    return said
