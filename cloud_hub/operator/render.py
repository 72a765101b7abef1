"""Answers of the hub as tables for a terminal. Pure: from values to renderables; `cli` prints them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from cloud_hub.api.devices import DeviceDetail
from cloud_hub.chain import Event
from cloud_hub.device_rows import Device
from cloud_hub.monitoring.samples import SampleRow, TensorValue
from cloud_hub.operator.verify import Verification
from cloud_hub.packaging import ModuleRelease
from cloud_hub.registry import ModelVersion
from firmware_profiles.profile import DeviceProfile
from modules.messages import DeviceReport, ModuleReport, UpdateReport
from modules.vitals import Vitals

SHORT_DIGEST = 12
MAX_CELL = 60


def models(found: Sequence[ModelVersion]) -> RenderableType:
    rows = [
        (f"{m.name}:{m.version}", when(m.created_at), m.author, pairs(m.tags), size(sum(f.size for f in m.files)))
        for m in found
    ]
    return table(("model", "registered", "author", "tags", "size"), rows, "no models")


def model(found: ModelVersion) -> RenderableType:
    facts = {
        "model": f"{found.name}:{found.version}",
        "description": found.description,
        "author": found.author,
        "git commit": found.git_commit,
        "training run": found.training_run,
        "mlflow run": " at ".join(filter(None, (found.mlflow_run, found.mlflow_uri))),
        "trained from": found.parent,
        "datasets": ", ".join(found.datasets),
        "tags": pairs(found.tags),
        "registered": when(found.created_at),
    }
    files = [(file.path, size(file.size), file.sha256) for file in found.files]
    return Group(card(facts), Text(""), table(("file", "size", "sha256"), files, "no files"))


def modules(found: Sequence[ModuleRelease]) -> RenderableType:
    rows = [
        (
            f"{m.name}:{m.version}/{m.profile}",
            m.publisher,
            size(m.size),
            m.manifest_sha256[:SHORT_DIGEST],
            "not signed" if m.release_counter is None else str(m.release_counter),
            when(m.signed_at or m.created_at),
        )
        for m in found
    ]
    return table(("module", "publisher", "size", "manifest", "release", "changed"), rows, "no modules")


def module(found: ModuleRelease) -> RenderableType:
    signed = "not signed" if found.signed_at is None else f"{when(found.signed_at)}, release {found.release_counter}"
    return card(
        {
            "module": f"{found.name}:{found.version}/{found.profile}",
            "publisher": found.publisher,
            "target": found.target,
            "manifest": f"{found.manifest_sha256} ({size(found.manifest_size)})",
            "size": size(found.size),
            "built": when(found.created_at),
            "signed": signed,
        }
    )


def verification(found: Verification) -> RenderableType:
    return card(
        {
            "verified": found.target,
            "trust begins": found.root,
            "manifest": found.manifest_sha256,
            "signed for": ", ".join(found.hardware_ids),
            "release": str(found.release_counter),
            "metadata": f"root version {found.root_version}, timestamp version {found.timestamp_version}",
            "files": f"{found.files} with {size(found.bytes)}, every digest and chunk as signed",
            "self-test": f"{found.golden_cases} golden cases",
            "reference": f"{found.reference_features} features",
        }
    )


def device(found: DeviceDetail) -> RenderableType:
    known, report = found.device, found.device.report
    facts = {
        "device": known.id,
        "profile": known.profile,
        "state": online(known),
        "tags": pairs(known.tags),
        "groups": ", ".join(found.groups),
        "enrolled": when(known.created_at),
        "last report": when(known.report_at),
        "last seen": when(known.seen_at),
        "director": f"version {known.director_version}, the device knows {report.director_version if report else 0}",
        "update": _update(report),
        **(_hardware(report.profile) if report is not None else {}),
        **(_vitals(report.vitals) if report is not None and report.vitals is not None else {}),
        **({"heat": f"{report.heat}: modules give way"} if report is not None and report.heat else {}),
    }
    desired = [(a.module, str(a.version), a.mode, a.deployment) for a in found.desired]
    differences = [
        (d.module + (" (candidate)" if d.candidate else ""), d.why, _number(d.desired), _number(d.reported), d.text)
        for d in found.differences
    ]
    coming = [(c.module, str(c.version or ""), c.text) for c in found.coming]
    parts = [card(facts), Text(""), table(("desired module", "version", "mode", "rollout"), desired, "nothing desired")]
    if report is not None:
        parts += [Text(""), _reported(report)]
    if differences:
        parts += [Text(""), table(("difference", "why", "desired", "reported", "because"), differences, "")]
    if coming:
        parts += [Text(""), table(("coming", "version", "how it stands"), coming, "")]
    return Group(*parts)


def _hardware(profile: DeviceProfile) -> dict[str, str]:
    """What the device says it has; agents before 0.2 say less."""
    known = profile.processor
    speed = f"{known.mhz} MHz" if known.mhz else ""
    cores = f"{known.cores} cores" if known.cores else profile.arch
    parts = [f"{a.kind}: {a.name}" + (f" ({a.driver})" if a.driver else "") for a in profile.accelerators]
    size = [f"{profile.memory_mib} MiB"] if profile.memory_mib else []
    size += [f"disk {profile.disk_mib} MiB"] if profile.disk_mib else []
    return {
        "board": profile.board,
        "processor": ", ".join(word for word in (known.model, cores, speed, " ".join(known.features)) if word),
        "accelerators": "; ".join(parts) or "none",
        "memory": ", ".join(size),
        "kernel": profile.kernel,
    }


def _vitals(said: Vitals) -> dict[str, str]:
    """How it was when it last reported."""
    link = said.link
    quality = [f"{link.rtt_ms:g} ms"] if link.rtt_ms else []
    quality += [f"{link.reconnects} reconnects", f"{size(link.sent_bytes)} up, {size(link.received_bytes)} down"]
    memory = "" if said.memory_free_mib is None else f"{said.memory_free_mib} MiB"
    disk = "" if said.disk_free_mib is None else f"{said.disk_free_mib} MiB"
    free = [f"memory {memory}"] if memory else []
    return {
        "free": ", ".join([*free, *([f"disk {disk}"] if disk else [])]),
        "load": "" if said.load is None else f"{said.load:g} per core",
        "temperature": "" if said.temperature_c is None else f"{said.temperature_c:g} °C",
        "up for": f"{said.uptime_s / 3600:.1f} h" if said.uptime_s else "",
        "link": ", ".join(quality),
    }


def events(found: Sequence[Event]) -> RenderableType:
    rows = [(when(e.at), e.kind, e.subject, e.actor, pairs({k: str(v) for k, v in e.details.items()})) for e in found]
    return table(("at", "event", "subject", "actor", "details"), rows, "no events")


def samples(found: Sequence[SampleRow]) -> RenderableType:
    rows = [
        (
            str(s.id),
            when(s.at),
            s.device,
            s.module,
            s.stratum,
            f"{s.probability:g}",
            _tensors(s.inputs),
            _tensors(s.outputs),
        )
        for s in found
    ]
    headers = ("id", "at", "device", "module", "stratum", "kept with", "inputs", "outputs")
    return table(headers, rows, "no samples")


def table(headers: Sequence[str], rows: Sequence[Sequence[str]], empty: str) -> RenderableType:
    """Rows below headers, or the sentence for none."""
    if not rows:
        return Text(empty, style="dim")
    made = Table(box=None, pad_edge=False, header_style="bold")
    for header in headers:
        made.add_column(header, overflow="fold")
    for row in rows:
        made.add_row(*map(Text, row))  # Text: what a device or publisher wrote is never read as markup
    return made


def card(facts: Mapping[str, str]) -> RenderableType:
    """Name and value per line; empty values are left out."""
    made = Table(box=None, pad_edge=False, show_header=False)
    made.add_column(style="bold")
    made.add_column(overflow="fold")
    for name, value in facts.items():
        if value:
            made.add_row(name, Text(value))
    return made


def when(at: float | None) -> str:
    """Local time to the second."""
    return "" if at is None else datetime.fromtimestamp(at, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def size(count: float) -> str:
    """Bytes with the unit that keeps the number short."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def span(seconds: float) -> str:
    """A length of time in its largest units: 45 s, 2 min 20 s, 12 min, 2 h 10 min, 3 d 4 h."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 10:
        return " ".join(f"{count} {unit}" for count, unit in ((minutes, "min"), (rest, "s")) if count) or "0 s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h" if hours else f"{days} d"


def pairs(values: Mapping[str, str]) -> str:
    return " ".join(f"{name}={value}" for name, value in sorted(values.items()))


def online(device: Device) -> str:
    if device.retired_at is not None:
        return "retired"
    return "online" if device.online else "offline"


def _update(report: DeviceReport | None) -> str:
    if report is None:
        return ""
    if report.current.state != "idle":
        return _told(report.current)
    return f"idle; the last: {_told(report.last)}" if report.last.state != "idle" else "idle"


def _told(update: UpdateReport) -> str:
    share = f", {size(update.done_bytes)} of {size(update.total_bytes)}" if update.total_bytes else ""
    why = f" ({update.reason_key}: {update.reason})" if update.reason_key else ""
    return f"{update.state}{share}{why}"


def _reported(report: DeviceReport) -> RenderableType:
    rows = [
        (_held(m), m.state, "yes" if m.verified else "no", str(m.requests), str(m.errors), m.endpoint,
         _samples(m))
        for m in report.modules
    ]  # fmt: skip
    headers = ("reported module", "state", "verified", "requests", "errors", "endpoint", "samples left out")
    return table(headers, rows, "the device reports no modules")


def _held(module: ModuleReport) -> str:
    """A candidate has the name of the version that serves."""
    beside = f" ({module.mode} of {module.share:.4g})" if module.candidate else ""
    return f"{module.name}:{module.version}{beside}"


def _samples(module: ModuleReport) -> str:
    if module.sampling:
        return f"all: {module.sampling}"
    return ", ".join(f"{why} {count}" for why, count in module.samples_dropped.items())


def _number(value: int | None) -> str:
    return "" if value is None else str(value)


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more


def _tensors(tensors: Sequence[TensorValue]) -> str:
    parts = (f"{t.name} {t.shape}" if t.data is None else f"{t.name} {t.data}" for t in tensors)
    text = "; ".join(parts)
    return text if len(text) <= MAX_CELL else text[: MAX_CELL - 3] + "..."
