"""Retraining plans and runs as tables for a terminal. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from cloud_hub.operator.render import card, table, when
from cloud_hub.retraining.judging import Finding, Verdict
from cloud_hub.retraining.plan import RetrainPlan
from cloud_hub.retraining.records import KnownPlan, Run


def plans(found: Sequence[KnownPlan]) -> RenderableType:
    rows = [
        (
            one.plan.name,
            one.plan.module,
            _when(one.plan),
            "; ".join(one.plan.judging.accept),
            "never" if one.last_run_at is None else when(one.last_run_at),
            "stopped" if one.stopped_at else (f"{when(one.due_at)}: {one.due_why}" if one.due_at else ""),
        )
        for one in found
    ]
    return table(("plan", "module", "runs", "accepts", "last run", "next"), rows, "no retraining plans")


def plan(found: KnownPlan) -> RenderableType:
    one = found.plan
    training, data, rollout = one.training, one.data, one.rollout
    return card(
        {
            "plan": one.name,
            "module": one.module,
            "description": one.description,
            "runs": _when(one),
            "data": f"of {data.days:g} days, {data.held_out:.0%} held out, at least {data.least_labelled} labelled",
            "command": " ".join(training.command),
            "files": ", ".join(sorted(training.files)),
            "image": training.image,
            "deadline": f"{training.deadline_s:g} s",
            "accepts": "\n".join(one.judging.accept),
            "confidence": f"{one.judging.confidence:g}, of at least {one.judging.least_rows} rows",
            "rollout": f"{rollout.target} in groups of {', '.join(rollout.groups)}" if rollout else "none",
            "champion": str(one.champion) if one.champion else "what most devices are to have",
            "made": f"{when(found.created_at)} by {found.author}",
            "stopped": when(found.stopped_at) if found.stopped_at else "",
            "next run": f"{when(found.due_at)}: {found.due_why}" if found.due_at else "",
        }
    )


def runs(found: Sequence[Run]) -> RenderableType:
    rows = [
        (
            run.id,
            run.plan,
            run.state.value,
            run.why,
            when(run.created_at),
            f"{run.module}:{run.result.version}" if run.result.version else "",
            run.result.reason,
        )
        for run in found
    ]
    return table(("run", "plan", "state", "why", "started", "candidate", "reason"), rows, "no retraining runs")


def run(found: Run) -> RenderableType:
    result = found.result
    facts = {
        "run": found.id,
        "plan": found.plan,
        "state": found.state.value,
        "reason": result.reason,
        "next": result.next,
        "started": f"{when(found.created_at)} by {found.actor}: {found.why}",
        "ended": when(found.finished_at) if found.finished_at else "",
        "runner": f"{found.runner}, {result.training_s:.1f} s" if result.training_s else found.runner,
        "champion": f"{found.module}:{result.champion}" if result.champion else "",
        "data set": result.dataset,
        "git commit": result.git_commit,
        "mlflow run": result.mlflow_run,
        "candidate": f"{found.module}:{result.version}" if result.version else "",
        "modules": ", ".join(result.modules),
        "rollout": result.rollout,
    }
    parts: list[RenderableType] = [card(facts)]
    if result.verdict is not None:
        parts += [Text(""), _verdict(result.verdict)]
    if result.log:
        parts += [Text(""), Text(result.log.rstrip())]
    return Group(*parts)


def _verdict(verdict: Verdict) -> RenderableType:
    figures = [
        (metric, f"{verdict.candidate[metric]:.4g}", f"{verdict.champion[metric]:.4g}") for metric in verdict.candidate
    ]
    found = [
        (
            one.text,
            one.group,
            str(one.rows),
            _number(one.candidate),
            _number(one.champion),
            _number(one.sure),
            f"{one.needed:.4g}",
            _holds(one),
        )
        for one in verdict.findings
    ]
    titles = ("criterion", "group", "rows", "candidate", "champion", "sure of", "needed", "")
    rows = f"{verdict.rows} held-out rows, worth {verdict.effective_rows:.0f} of equal weight"
    return Group(
        Text(rows),
        table(("figure", "candidate", "champion"), figures, "no figures"),
        Text(""),
        table(titles, found, verdict.why),
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _holds(finding: Finding) -> str:
    return finding.why or ("holds" if finding.holds else "does not hold")


def _when(plan: RetrainPlan) -> str:
    said = [f"after alerts of {', '.join(plan.when.alerts)}"] if plan.when.alerts else []
    said += [f"every {plan.when.every_s / 3600:g} h"] if plan.when.every_s else []
    return " and ".join([*said, "by hand"])
