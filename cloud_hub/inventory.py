"""What the hub keeps of a device's last report beside its bytes: columns and rows for lists, queries and counts. Pure.

Called by `intake` with each report that counts; `module_rows` are written only where they have changed.
"""

from __future__ import annotations

from typing import Any, Final

from cloud_hub.query.facts import version_number
from modules.messages import DeviceReport, ModuleReport
from modules.vitals import Vitals

MOST: Final = 2**31 - 1  # what a column of whole numbers takes; a device may say anything
MOST_MODULES: Final = 64


def facts_of(report: DeviceReport, now: float) -> dict[str, Any]:
    """The columns of `devices` that the report fills, other than the report itself. `now` by the hub's clock."""
    profile = report.profile
    version = _text(report.agent_version, 40)
    return {
        "agent_version": version,
        "agent_number": version_number(version),
        "arch": _text(profile.arch, 32),
        "accelerators": _kinds([accelerator.kind for accelerator in profile.accelerators]),
        "update_state": report.current.state,
        "memory_mib": _known(profile.memory_mib),
        "disk_mib": _known(profile.disk_mib),
        "cores": _known(profile.processor.cores),
        "seen_at": now,
        **_vitals(report.vitals, now),
    }


def _vitals(said: Vitals | None, now: float) -> dict[str, Any]:
    """The same columns, whatever the device has said."""
    vitals = said or Vitals()
    found: dict[str, Any] = {
        "memory_free_mib": _whole(vitals.memory_free_mib),
        "disk_free_mib": _whole(vitals.disk_free_mib),
        "temperature_c": _finite(vitals.temperature_c),
        "load": _finite(vitals.load),
        "rtt_ms": _finite(vitals.link.rtt_ms or None),
        "booted_at": now - vitals.uptime_s if 0 < vitals.uptime_s < now else None,
    }
    if vitals.disk_mib > 0:
        found["disk_mib"] = _known(vitals.disk_mib)
    return found


def module_rows(report: DeviceReport) -> list[dict[str, Any]]:
    """The rows of `reported_modules`: all that the device has from now on."""
    rows = [_row(report.device, module) for module in report.modules[:MOST_MODULES]]
    return list({(row["module"], row["role"]): row for row in rows}.values())


def _row(device: str, module: ModuleReport) -> dict[str, Any]:
    return {
        "device": device,
        "module": _text(module.name, 63),
        "role": "candidate" if module.candidate else "main",
        "version": max(-MOST, min(module.version, MOST)),
        "manifest_sha256": _text(module.manifest_sha256, 64),
        "state": module.state,
        "verified": module.verified,
    }


def _kinds(kinds: list[str]) -> str:
    said = sorted({_text(kind, 32) for kind in kinds if "," not in kind})[:7]
    return f",{','.join(said)}," if said else ""


def _text(said: str, most: int) -> str:
    """Without what a database may not take, such as U+0000."""
    said = said[:most]
    return said if said.isprintable() else "".join(letter for letter in said if letter.isprintable())


def _finite(number: float | None) -> float | None:
    return number if number is not None and abs(number) <= MOST else None


def _whole(number: int | None) -> int | None:
    return None if number is None else max(0, min(number, MOST))


def _known(number: int) -> int | None:
    """None for what the device does not know."""
    return min(number, MOST) if number > 0 else None
