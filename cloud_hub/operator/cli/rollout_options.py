"""The options of `mooring rollout create`. One that is not given says nothing: a file counts, or the hub's default.

What their texts mean is in `rollout_plan`.
"""

from __future__ import annotations

import enum
import re
from pathlib import Path
from typing import Annotated, Final

import typer

_UNITS: Final = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}


class OnFailure(enum.StrEnum):
    STOP = "stop"
    PAUSE = "pause"
    ROLL_BACK = "roll_back"


class ConflictRule(enum.StrEnum):
    REFUSE = "refuse"
    SKIP = "skip"
    SUPERSEDE = "supersede"


class Undecided(enum.StrEnum):
    STOP = "stop"
    OPEN = "open"


class Severity(enum.StrEnum):
    WARNING = "warning"
    CRITICAL = "critical"


def seconds(text: str) -> float:
    """`90`, `90s`, `30m`, `4h` or `2d`."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([smhd]?)", text)
    if match is None:
        raise typer.BadParameter(f"expected seconds, or a time such as 30m, 4h or 2d, got {text!r}")
    return float(match[1]) * _UNITS[match[2]]


_WHO, _PACE, _FAILURE, _GATE = "Who and when", "How fast", "What counts as failure", "Gates and approval"
PlanFile = Annotated[
    Path | None,
    typer.Option(
        "--plan",
        metavar="FILE",
        rich_help_panel=_WHO,
        help="YAML, JSON or TOML with the API's names; options go before it.",
    ),
]
Target = Annotated[
    str | None,
    typer.Option("--target", rich_help_panel=_WHO, help="Devices: `all`, or a query such as 'site=lab and online'."),
]
Groups = Annotated[
    list[str] | None,
    typer.Option(
        "--group",
        metavar="SIZE",
        rich_help_panel=_WHO,
        help="In order: a number, a share such as 20%, a query such as site=lab, or rest. Repeatable.",
    ),
]
Windows = Annotated[
    list[str] | None,
    typer.Option(
        "--window",
        metavar="WHEN",
        rich_help_panel=_WHO,
        help="Only then, by the clock where the device is (its tag `timezone`), such as "
        "'sat,sun 02:00-05:00 Europe/Berlin'. Repeatable.",
    ),
]
Conflicts = Annotated[
    ConflictRule | None,
    typer.Option("--conflict", rich_help_panel=_WHO, help="With devices that another rollout of the module has."),
]
Joining = Annotated[
    bool | None,
    typer.Option("--joining/--not-joining", rich_help_panel=_WHO, help="Also devices that match only later."),
]
Rate = Annotated[
    float | None, typer.Option("--rate", metavar="PER_MINUTE", rich_help_panel=_PACE, help="Devices begun a minute.")
]
Growth = Annotated[
    str | None,
    typer.Option(
        "--rate-growth",
        metavar="FACTOR/DEVICES",
        rich_help_panel=_PACE,
        help="Such as 1.5/50: half as fast again after every 50 verified devices.",
    ),
]
MostRate = Annotated[
    float | None,
    typer.Option("--rate-max", metavar="PER_MINUTE", rich_help_panel=_PACE, help="However much it has grown."),
]
DeviceDeadline = Annotated[
    float | None,
    typer.Option(
        "--device-deadline",
        metavar="TIME",
        rich_help_panel=_PACE,
        parser=seconds,
        help="For each device, from its turn on.",
    ),
]
Deadline = Annotated[
    float | None,
    typer.Option(
        "--deadline", metavar="TIME", rich_help_panel=_PACE, parser=seconds, help="For the rollout as a whole."
    ),
]
Retries = Annotated[
    int | None, typer.Option("--retries", min=0, rich_help_panel=_PACE, help="Attempts more for a device that failed.")
]
RetryAfter = Annotated[
    float | None,
    typer.Option(
        "--retry-after", metavar="TIME", rich_help_panel=_PACE, parser=seconds, help="Before another attempt."
    ),
]
Success = Annotated[
    float | None,
    typer.Option(
        "--success",
        metavar="PERCENT",
        rich_help_panel=_FAILURE,
        help="Verified devices of a group that open the next one.",
    ),
]
MaxErrors = Annotated[
    float | None,
    typer.Option(
        "--max-errors",
        metavar="PERCENT",
        rich_help_panel=_FAILURE,
        help="More of the ended devices failing is too many.",
    ),
]
MinCount = Annotated[
    int | None,
    typer.Option(
        "--min-count", min=1, rich_help_panel=_FAILURE, help="Devices that must have ended before errors count."
    ),
]
Thresholds = Annotated[
    list[str] | None,
    typer.Option(
        "--threshold",
        metavar="KIND=PERCENT/MIN",
        rich_help_panel=_FAILURE,
        help="For one kind of failure: failed, reverted, rejected, timed_out or silent, such as reverted=2%/20. "
        "Repeatable.",
    ),
]
WhenFailed = Annotated[
    OnFailure | None,
    typer.Option(
        "--on-failure", rich_help_panel=_FAILURE, help="stop: verified devices keep it; roll_back: they go back, too."
    ),
]
Compare = Annotated[
    bool | None,
    typer.Option("--compare", rich_help_panel=_GATE, help="Open each next group only once the version is no worse."),
]
Baseline = Annotated[
    int | None,
    typer.Option(
        "--baseline", min=0, rich_help_panel=_GATE, help="Compare with this version; 0: what devices ran before."
    ),
]
MarginTexts = Annotated[
    list[str] | None,
    typer.Option(
        "--margin",
        metavar="MEASURE=AMOUNT",
        rich_help_panel=_GATE,
        help="So much worse is still as good, such as errors=0.02. Repeatable.",
    ),
]
GateDeadline = Annotated[
    float | None,
    typer.Option("--gate-deadline", metavar="TIME", rich_help_panel=_GATE, parser=seconds, help="For each comparison."),
]
WhenUndecided = Annotated[
    Undecided | None,
    typer.Option("--undecided", rich_help_panel=_GATE, help="What follows when none was found by then."),
]
AlertGates = Annotated[
    bool | None,
    typer.Option("--alerts", rich_help_panel=_GATE, help="Live alerts about the version say that it is worse."),
]
AlertKinds = Annotated[
    list[str] | None,
    typer.Option(
        "--alert-kind",
        metavar="KIND",
        rich_help_panel=_GATE,
        help="Only these: drift, quality, concept, performance. Repeatable.",
    ),
]
LeastSeverity = Annotated[
    Severity | None, typer.Option("--alert-severity", rich_help_panel=_GATE, help="At least this severe.")
]
Soak = Annotated[
    float | None,
    typer.Option(
        "--soak",
        metavar="TIME",
        rich_help_panel=_GATE,
        parser=seconds,
        help="Verified groups wait so long before the next.",
    ),
]
Approver = Annotated[
    str | None,
    typer.Option(
        "--approval", metavar="ROLE", rich_help_panel=_GATE, help="Who must say yes: operator, publisher, admin."
    ),
]
Approvers = Annotated[
    int | None, typer.Option("--approvals", min=1, rich_help_panel=_GATE, help="So many people, each other ones.")
]
Stages = Annotated[
    list[str] | None,
    typer.Option(
        "--approve-before",
        metavar="STAGE",
        rich_help_panel=_GATE,
        help="start, or group:2 (groups from 1). Repeatable.",
    ),
]
OwnApproval = Annotated[
    bool | None, typer.Option("--own-approval", rich_help_panel=_GATE, help="Whoever creates it may be one of them.")
]
