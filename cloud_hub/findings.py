"""What `mooring-hub doctor` found. Made by `doctor` and `doctor_database`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "note", "problem"]


@dataclass(frozen=True)
class Finding:
    """One check: what was looked at, how it is, and what to do where it is not well."""

    subject: str
    state: State
    text: str
