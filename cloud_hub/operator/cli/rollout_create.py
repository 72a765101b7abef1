"""`mooring rollout create`: a plan from a file and from options, looked at with `--dry-run` or made."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from cloud_hub.operator.cli import rollout_options as options
from cloud_hub.operator.cli.references import versioned
from cloud_hub.operator.cli.rollout_plan import margins, new_rollout, rate, thresholds
from cloud_hub.operator.cli.rollout_watch import Watch, shown
from cloud_hub.operator.cli.session import Format, ModelRef, Output, act, note, show, told

if TYPE_CHECKING:
    from cloud_hub.rollouts.new import NewRollout

EXAMPLE = (
    "Example:  mooring rollout create digits:2 --target 'site=lab' --group 1 --group 50% --group rest --start --watch"
)


def create(
    context: typer.Context,
    module: Annotated[
        ModelRef,
        versioned("Such as digits:2."),
    ],
    plan: options.PlanFile = None,
    target: options.Target = None,
    group: options.Groups = None,
    window: options.Windows = None,
    conflict: options.Conflicts = None,
    joining: options.Joining = None,
    per_minute: options.Rate = None,
    growth: options.Growth = None,
    most: options.MostRate = None,
    device_deadline: options.DeviceDeadline = None,
    deadline: options.Deadline = None,
    retries: options.Retries = None,
    retry_after: options.RetryAfter = None,
    success: options.Success = None,
    max_errors: options.MaxErrors = None,
    min_count: options.MinCount = None,
    threshold: options.Thresholds = None,
    on_failure: options.WhenFailed = None,
    compare: options.Compare = None,
    baseline: options.Baseline = None,
    margin: options.MarginTexts = None,
    gate_deadline: options.GateDeadline = None,
    undecided: options.WhenUndecided = None,
    alerts: options.AlertGates = None,
    alert_kind: options.AlertKinds = None,
    alert_severity: options.LeastSeverity = None,
    soak: options.Soak = None,
    approval: options.Approver = None,
    approvals: options.Approvers = None,
    approve_before: options.Stages = None,
    own_approval: options.OwnApproval = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show devices, bytes and times, with this plan; create nothing.")
    ] = False,
    start: Annotated[bool, typer.Option("--start", help="Start at once; else it stays a draft.")] = False,
    watch: Watch = False,
    output: Output = Format.TABLE,
) -> None:
    """Create a rollout of a signed module. Devices are taken in the order of their ids.

    Success is a device that reports the module verified healthy after probation. A device that fails, or says nothing
    by its deadline, gets back what it had before.
    """
    said = {
        "target": target,
        "groups": group,
        "windows": window,
        "conflict": conflict,
        "joining": joining,
        "rate": rate(per_minute, growth, most),
        "device_deadline_s": device_deadline,
        "deadline_s": deadline,
        "retries": retries,
        "retry_after_s": retry_after,
        "success_threshold": success,
        "error_threshold": max_errors,
        "min_count": min_count,
        "thresholds": thresholds(threshold),
        "on_failure": on_failure,
        "gate": {
            "wanted": compare,
            "baseline": baseline,
            "margins": margins(margin),
            "deadline_s": gate_deadline,
            "undecided": undecided,
        },
        "alert_gate": {"wanted": alerts, "kinds": alert_kind, "severity": alert_severity},
        "soak_s": soak,
        "approval": {
            "role": approval,
            "people": approvals,
            "stages": approve_before,
            "others": None if own_approval is None else not own_approval,
        },
        "start": start or None,
    }
    with told():
        new = new_rollout(module.name, module.version, plan, said)
    if dry_run:
        _preview(context, new, output)
        return
    shown(context, lambda hub: hub.create_rollout(new), output, watch and new.start)
    if watch and not new.start:
        note("a draft has nothing to watch; start it with `mooring rollout start`")


def _preview(context: typer.Context, new: NewRollout, output: Format) -> None:
    found = act(context, lambda hub: hub.preview_rollout(new))
    from cloud_hub.operator import render_preview

    show(found, output, render_preview.preview)
