"""From a plan file and options to the rollout that is asked for. Called by `rollout_create`.

A file has the API's names; windows may stand in it as texts, too. What an option says goes before what the file says,
also inside of a table: `--rate 20` leaves the file's growth alone.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import typer

from cloud_hub.operator.documents import read_document
from cloud_hub.operator.errors import FileError

if TYPE_CHECKING:
    from cloud_hub.rollouts.new import NewRollout

Values = dict[str, Any]  # as the API takes them, not checked yet
_THRESHOLD: Final = re.compile(r"([a-z_]+)=([0-9]+(?:\.[0-9]+)?)%?(?:/([0-9]{1,9}))?")
_GROWTH: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)/([1-9][0-9]{0,8})")


def new_rollout(module: str, version: int, plan: Path | None, said: Mapping[str, object]) -> NewRollout:
    """`said` are the API's fields as options have them; None, and an empty table, say nothing.

    Raises FileError for a file that is none, and BadParameter for what does not make a plan.
    """
    import msgspec

    from cloud_hub.rollouts.new import NewRollout

    values = _from_file(plan, module, version)
    for name, value in said.items():
        if isinstance(value, Mapping):
            _put_over(values, name, value)
        elif value is not None:
            values[name] = _plain(value)
    values |= {"module": module, "version": version}
    if "target" not in values:
        raise typer.BadParameter(
            "name the devices: --target QUERY, or `target` in the plan file; `all` for all of them"
        )
    values["windows"] = windows(values.get("windows", ()))
    try:
        return msgspec.convert(values, NewRollout)
    except ValueError as error:  # msgspec's own is one
        raise typer.BadParameter(f"{error}; nothing was created") from error


def _from_file(plan: Path | None, module: str, version: int) -> Values:
    """A file may name the module it is for; it is then only taken for this one."""
    values = {} if plan is None else read_document(plan)
    for name, asked in (("module", module), ("version", version)):
        if values.get(name, asked) != asked:
            raise FileError(
                "plan-invalid", f"{plan}: its {name} is {values[name]}, and {asked} was asked for; nothing was created"
            )
    return values


def _put_over(values: Values, name: str, said: Mapping[str, object]) -> None:
    given = {field: _plain(value) for field, value in said.items() if value is not None}
    known = values.get(name)
    if given.pop("wanted", False) or given or known is not None:
        values[name] = (known if isinstance(known, dict) else {}) | given


def _plain(value: object) -> object:
    return str(value) if isinstance(value, enum.StrEnum) else value


def rate(per_minute: float | None, growth: str | None, most: float | None) -> Values:
    """`growth` is FACTOR/DEVICES such as 1.5/50."""
    match = _GROWTH.fullmatch(growth or "1/1")
    if match is None:
        raise typer.BadParameter(f"--rate-growth: expected FACTOR/DEVICES such as 1.5/50, got {growth!r}")
    grown = {"factor": float(match[1]), "after": int(match[2])} if growth else {}
    return {"per_minute": per_minute, "max_per_minute": most, **grown}


def thresholds(texts: Sequence[str] | None) -> list[Values] | None:
    """`failed=2%/20`: more than 2 % of at least 20 devices that ended."""
    if texts is None:
        return None
    found = []
    for text in texts:
        match = _THRESHOLD.fullmatch(text)
        if match is None:
            raise typer.BadParameter(f"--threshold: expected KIND=PERCENT/MIN such as failed=2%/20, got {text!r}")
        least = {"min_count": int(match[3])} if match[3] else {}
        found.append({"kind": match[1], "percent": float(match[2]), **least})
    return found


def margins(texts: Sequence[str] | None) -> dict[str, float] | None:
    """`errors=0.02`."""
    from cloud_hub.arms.margins import Margins

    found = {}
    for text in texts or ():
        name, _, amount = text.partition("=")
        try:
            found[name] = float(amount)
        except ValueError:
            name = ""
        if name not in Margins.__struct_fields__:
            known = ", ".join(Margins.__struct_fields__)
            raise typer.BadParameter(f"--margin: expected NAME=NUMBER of {known}, got {text!r}; nothing was created")
    return found or None


def windows(texts: Sequence[object]) -> list[object]:
    """Texts become windows; what a file gives as a table stays."""
    from msgspec import to_builtins

    from cloud_hub.rollouts.maintenance import MaintenanceWindow

    try:
        return [to_builtins(MaintenanceWindow.parse(text)) if isinstance(text, str) else text for text in texts]
    except ValueError as error:
        raise typer.BadParameter(f"{error}; nothing was created") from error
