"""Which agent a device runs, by its last report, and whether it is new enough. Used by `desired` and `asking`."""

from __future__ import annotations

import msgspec

from firmware_profiles.profile import DeviceProfile, Requirements, why_not


class _Reported(msgspec.Struct):
    """The one field of a report that is needed."""

    agent_version: str = ""


_reported = msgspec.json.Decoder(_Reported)


def agent_version(report: bytes | None) -> str:
    """Of a stored report; empty without one."""
    return "" if report is None else _reported.decode(report).agent_version


def older(version: str, wanted: str) -> bool:
    """Whether an agent is known, and lower than `wanted`; empty texts ask for nothing."""
    profile = DeviceProfile(name="any", arch="", agent_version=version)
    return bool(why_not(Requirements(agent_version=wanted), profile))
