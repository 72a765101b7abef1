"""Commands and sampling policies as tables for a terminal. Pure; as `render`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from rich.console import Group, RenderableType
from rich.text import Text

from cloud_hub.asking.book import AskedCommand
from cloud_hub.asking.policies import DevicePolicy
from cloud_hub.operator.render import card, size, table, when
from modules.commands import SAMPLES
from modules.sampling import Redaction, SamplingPolicy, Stratum

LISTED = 50


def commands(found: Sequence[AskedCommand]) -> RenderableType:
    rows = [
        (one.id, when(one.created_at), one.device, one.module or "-", f"{one.kind} {_words(one.asked)}".strip(),
         one.state, _came(one), one.text)
        for one in found
    ]  # fmt: skip
    names = ("command", "asked", "device", "module", "what", "state", "arrived", "why")
    return table(names, rows, "nothing was asked")


def command(found: AskedCommand) -> RenderableType:
    return card(
        {
            "command": found.id,
            "device": found.device,
            "module": found.module or "-",
            "what": f"{found.kind} {_words(found.asked)}".strip(),
            "state": found.state,
            "why": found.text,
            "arrived": _came(found),
            "asked": f"{when(found.created_at)} by {found.created_by}",
            "together with": found.batch or "-",
            "until": when(found.expires_at),
            "ended": when(found.ended_at),
        }
    )


def policies(found: Sequence[DevicePolicy]) -> RenderableType:
    """Devices with the same policy share a line."""
    same: dict[bytes, list[DevicePolicy]] = {}
    for one in found:
        same.setdefault(msgspec.json.encode((one.version, one.own, one.policy)), []).append(one)
    rows = [
        (_names([one.device for one in some]), str(some[0].version), "own" if some[0].own else "module's",
         *_policy(some[0].policy))
        for some in same.values()
    ]  # fmt: skip
    names = ("devices", "version", "policy", "rate", "strata", "quota a day", "redact", "ring", "blobs")
    return table(names, rows, "no device holds the module")


def changes(found: Sequence[DevicePolicy], dry_run: bool) -> RenderableType:
    """What changes, for how many devices; those that change alike share a line."""
    same: dict[bytes, list[DevicePolicy]] = {}
    for one in found:
        same.setdefault(msgspec.json.encode(one.changed), []).append(one)
    rows = [
        (_names([one.device for one in some]), field, _value(before), _value(after))
        for some in same.values()
        for field, (before, after) in sorted(some[0].changed.items())
    ]
    single = len(found) == 1
    words = "would change" if dry_run else f"{'changes with its' if single else 'change with their'} next contact"
    words = f"{len(found)} {'device' if single else 'devices'} {words}"
    return Group(table(("devices", "field", "before", "after"), rows, "nothing differs"), Text(words, style="dim"))


def _policy(policy: SamplingPolicy) -> tuple[str, ...]:
    quota, ring = policy.quota_bytes_per_day, policy.ring_rows
    return (
        f"{policy.rate:g}",
        "\n".join(_stratum(one) for one in policy.strata or ()),
        size(quota) if quota else "",
        "\n".join(f"{name} {_redaction(how)}" for name, how in (policy.redact or {}).items()),
        f"{ring} rows" if ring else "",
        f"above {size(policy.blob_bytes)}" if policy.blob_bytes else "",
    )


def _stratum(one: Stratum) -> str:
    """As `--stratum` takes it."""
    return f"{one.name}={one.rate:g}:{_condition(one)}"


def _condition(one: Stratum) -> str:
    if one.when == "between":
        low = "" if one.at_least is None else f"{one.at_least:g}"
        if one.below is None:
            return f"{one.feature}>={low}"
        return f"{low}{'<=' if low else ''}{one.feature}<{one.below:g}"
    if one.when in ("low_confidence", "low_margin"):
        return f"{one.when.removeprefix('low_')}<{one.below:g}"
    if one.when == "equals":
        return f"{one.feature or 'class'}={one.equals}"
    return one.when.replace("_", "-") + (f"({one.feature})" if one.feature else "")


def _redaction(how: Redaction) -> str:
    region = f" {','.join(map(str, how.region))}" if how.region else ""
    return f"{how.action}{region}{f' by {how.step:g}' if how.step else ''}"


def _came(one: AskedCommand) -> str:
    if one.kind != SAMPLES:
        return f"{size(one.result_size)} packed" if one.result_sha256 else ""
    if one.state == "pending" and not one.arrived:
        return ""
    if one.state == "done" and not one.found:
        return "nothing kept fits"
    return f"{one.arrived} of {one.count}"


def _words(asked: Mapping[str, Any]) -> str:
    """What was asked; a range of rows begins at 0 where nothing else is said."""
    said = {name: when(value) if name in ("since", "until") else str(value) for name, value in asked.items()}
    if seconds := float(said.pop("last_s", "0")):  # 0: all
        said["last"] = f"{seconds:g} s"
    if most := said.pop("max_bytes", ""):
        said["up to"] = size(int(most))
    if rows := [said.pop(name, "0") for name in ("first", "last") if "last" in asked or name in asked]:
        said = {"rows": " to ".join(rows), **said}
    if limit := said.pop("limit", ""):
        said["at most"] = limit
    return ", ".join(f"{name} {value}" for name, value in said.items())


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


def _value(value: object) -> str:
    return "" if value is None else value if isinstance(value, str) else msgspec.json.encode(value).decode()
