"""The command's root: global options, `demo`, and the groups of commands."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from cloud_hub import __version__
from cloud_hub.operator.cli import (
    alerts,
    applying,
    arms,
    audit,
    candidates,
    commands,
    completing,
    configuration,
    contexts,
    datasets,
    devices,
    exports,
    following,
    fpga,
    groups,
    keys,
    labels,
    models,
    modules,
    monitoring,
    operations,
    people,
    privacy,
    retraining,
    rollouts,
    sampling,
    simulate,
    sites,
    trust,
    webhooks,
)
from cloud_hub.operator.cli.session import INTERRUPTED, Settings, fail

app = typer.Typer(
    name="mooring",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Mooring: models to signed modules, modules to devices, and what they see there.",
)
app.add_typer(models.app, name="model")
app.add_typer(modules.app, name="module")
app.add_typer(fpga.app, name="fpga")
app.add_typer(keys.app, name="key")
app.add_typer(trust.app, name="trust")
app.add_typer(devices.app, name="device")
app.add_typer(groups.groups, name="group")
app.add_typer(groups.queries, name="query")
app.add_typer(commands.app, name="command")
app.add_typer(configuration.app, name="config")
app.add_typer(rollouts.app, name="rollout")
app.add_typer(candidates.app, name="candidate")
app.add_typer(arms.app)
app.add_typer(alerts.drift, name="drift")
app.add_typer(alerts.alerts, name="alerts")
app.add_typer(monitoring.samples, name="samples")
app.add_typer(sampling.app, name="sampling")
app.add_typer(labels.labels, name="labels")
app.add_typer(labels.quality, name="quality")
app.add_typer(exports.windows, name="windows")
app.add_typer(datasets.app, name="dataset")
app.add_typer(retraining.app, name="retrain")
app.add_typer(monitoring.events, name="events")
monitoring.events.command(epilog=following.EPILOG)(following.follow)
app.add_typer(operations.app, name="operation")
app.add_typer(privacy.app, name="privacy")
app.add_typer(webhooks.app, name="webhooks")
app.add_typer(contexts.app, name="context")
app.add_typer(sites.app, name="site")
app.add_typer(people.account)
app.add_typer(people.users, name="user")
app.add_typer(people.tokens, name="token")
app.add_typer(audit.app, name="audit")


def main() -> None:
    """The entry point. An interrupt anywhere ends quietly with status 130."""
    try:
        with completing.whole_words(os.environ):
            app()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def _version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"mooring {__version__}\n")
        raise typer.Exit


@app.callback()
def _all(
    context: typer.Context,
    context_name: Annotated[
        str,
        typer.Option(
            "--context",
            envvar="MOORING_CONTEXT",
            metavar="NAME|FILE",
            help="Which hub: a name that `mooring login --name` gave, or a context file such as a hub's own.",
            autocompletion=contexts.complete,
        ),
    ] = "",
    reason: Annotated[
        str, typer.Option("--reason", metavar="TEXT", help="Why, for the audit trail: kept with every change.")
    ] = "",
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    del version
    context.obj = Settings(context_name, reason)


app.command(epilog=applying.EPILOG)(applying.apply)
app.command(epilog=simulate.EPILOG)(simulate.simulate)


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    epilog="Example:  mooring demo --devices 3 --keep",
)
def demo(context: typer.Context) -> None:
    """The whole loop on this machine: train, sign, roll out, drift, retrain. `mooring demo --help` tells more."""
    # Only here: the demo needs scikit-learn, which operators have no use for.
    try:
        from cloud_hub.operator.demo.command import demo as play
    except ModuleNotFoundError as error:
        fail(f"the demo needs {error.name}: install mooring[demo] and run it again")
    single = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")
    single.command(context_settings={"help_option_names": ["-h", "--help"]})(play)
    typer.main.get_command(single).main(args=context.args, prog_name="mooring demo")
