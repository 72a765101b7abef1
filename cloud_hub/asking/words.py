"""Strata, redactions and sizes as an operator writes them on the command line, as parts of a sampling policy. Pure.

Raises ValueError with what was expected. Used by `operator.cli.sampling`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

NONE: Final = "none"
_UNITS: Final = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_NUMBER: Final = r"[-+]?[0-9]*\.?[0-9]+(?:[eE][-+]?[0-9]+)?"
_CONDITIONS: Final = (
    "confidence<0.6, margin<0.1, out-of-range, out-of-range(x[3]), missing, missing(x[3]), x[3]>=2, x[3]<2, "
    "1<=x[3]<2, class=cat, x[3]=word"
)


def stratum(text: str) -> tuple[str, dict[str, Any]]:
    """`hot=0.5:x[temp]>=30` as its name and the rest of it."""
    name, sign, rest = text.partition("=")
    rate, colon, condition = rest.partition(":")
    if not sign or not colon:
        raise ValueError(f"expected NAME=RATE:CONDITION, with one of {_CONDITIONS}, got {text!r}")
    return name, {"rate": number(rate), **_condition(condition.strip())}


def redaction(text: str) -> tuple[str, dict[str, Any] | None]:
    """`face=blur:0,0,40,40/8` as the name and what is done; None for `name=none`, which takes it back."""
    name, sign, how = text.rpartition("=")
    action, colon, rest = how.partition(":")
    if not sign or action not in (NONE, "drop", "hash", "coarsen", "blur") or (colon and action in ("drop", "hash")):
        forms = "drop, hash, coarsen[:STEP], blur[:TOP,LEFT,HEIGHT,WIDTH][/PIXELS], none"
        raise ValueError(f"expected NAME=ACTION, with one of {forms}, got {text!r}")
    if action == NONE:
        return name, None
    if action == "blur":
        return name, {"action": action, **_blur(rest, text)}
    return name, {"action": action, **({"step": number(rest)} if rest else {})}


def policy(
    strata: Sequence[str],
    redact: Sequence[str],
    quota: str | None = None,
    ring_rows: str | None = None,
    blobs_above: str | None = None,
) -> dict[str, Any]:
    """A whole policy's fields; those of which nothing is said are left out."""
    named = dict(map(stratum, strata))
    said = {
        "strata": [{"name": name, **rest} for name, rest in named.items()] or None,
        "redact": {name: how for name, how in map(redaction, redact) if how is not None} or None,
        "quota_bytes_per_day": None if quota is None else size(quota),
        "ring_rows": None if ring_rows is None else count(ring_rows),
        "blob_bytes": None if blobs_above is None else size(blobs_above),
    }
    return {name: value for name, value in said.items() if value is not None}


def size(text: str) -> int | None:
    """`5MB`, `2MiB` or a number of bytes; None for `none`."""
    if text == NONE:
        return None
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)", text)
    if match is None or match[2].upper() not in _UNITS:
        raise ValueError(f"expected bytes such as 5MB, 2MiB or 4096, or none, got {text!r}")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def count(text: str) -> int | None:
    """A whole number; None for `none`."""
    if text == NONE:
        return None
    if not text.isdigit():
        raise ValueError(f"expected a whole number or none, got {text!r}")
    return int(text)


def seconds(text: str) -> float | None:
    """`90`, `90s`, `15m`, `6h`, `2d`; None for `none`."""
    if text == NONE:
        return None
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([smhd]?)", text)
    if match is None:
        raise ValueError(f"expected a time such as 90s, 15m, 6h or 2d, or none, got {text!r}")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}[match[2]]


def number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"expected a number, got {text!r}") from None


def _blur(rest: str, text: str) -> dict[str, Any]:
    region, _, step = rest.partition("/")
    places = region.split(",") if region else []
    if len(places) not in (0, 4) or not all(place.strip().isdigit() for place in places):
        raise ValueError(f"expected blur:TOP,LEFT,HEIGHT,WIDTH in pixels, got {text!r}")
    said: dict[str, Any] = {"region": [int(place) for place in places]} if places else {}
    return said | ({"step": number(step)} if step else {})


def _condition(text: str) -> dict[str, Any]:
    if match := re.fullmatch(rf"(confidence|margin)\s*<\s*({_NUMBER})", text):
        return {"when": f"low_{match[1]}", "below": float(match[2])}
    if match := re.fullmatch(r"(out-of-range|missing)(?:\((.+)\))?", text):
        return {"when": match[1].replace("-", "_"), **({"feature": match[2]} if match[2] else {})}
    if match := re.fullmatch(rf"({_NUMBER})\s*<=\s*([^<>=]+?)\s*<\s*({_NUMBER})", text):
        return {"when": "between", "feature": match[2], "at_least": float(match[1]), "below": float(match[3])}
    if match := re.fullmatch(rf"([^<>=]+?)\s*(>=|<)\s*({_NUMBER})", text):
        end = "at_least" if match[2] == ">=" else "below"
        return {"when": "between", "feature": match[1], end: float(match[3])}
    if match := re.fullmatch(r"([^<>=]+?)\s*=\s*(.+)", text):
        return {"when": "equals", "equals": match[2], **({} if match[1] == "class" else {"feature": match[1]})}
    raise ValueError(f"expected a condition such as {_CONDITIONS}, got {text!r}")
