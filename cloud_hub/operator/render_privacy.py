"""Spent privacy, and the cost of a promise, for a terminal. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

import msgspec
from rich.console import RenderableType

from cloud_hub.operator.render import card, table
from cloud_hub.privacy import PrivacySpent
from modules.privacy import Privacy

HOUR_S: Final = 3600.0
BINS: Final = 10


class Cost(msgspec.Struct, frozen=True):
    """Noise in the counts of one hour: of a cell on one device, of all devices together, and against a bin's rows."""

    rho_per_day: float
    noise_of_window: float
    noise_of_hour: float
    rows_of_bin: float
    share_of_bin: float


def cost_of(privacy: Privacy, features: int, window_s: float, devices: int, rows: int) -> Cost:
    """`rows` are predictions of one device in an hour; a bin holds a tenth of them."""
    sigma = privacy.scale(features, window_s)
    of_hour = sigma * math.sqrt(devices * max(1.0, HOUR_S / window_s))
    in_bin = devices * rows / BINS
    return Cost(privacy.rho_per_day, sigma, of_hour, in_bin, of_hour / in_bin)


def spent(found: Sequence[PrivacySpent]) -> RenderableType:
    rows = [
        (
            datetime.fromtimestamp(one.day, UTC).date().isoformat(),
            one.device,
            one.module,
            str(one.windows),
            f"{one.rho:.4g}",
            f"{one.epsilon:.3g}",
        )
        for one in found
    ]
    headers = ("day (UTC)", "device", "module", "windows", "rho", "epsilon")
    return table(headers, rows, "no private windows have come")


def cost(found: Cost) -> RenderableType:
    return card(
        {
            "spent a day (rho)": f"{found.rho_per_day:.4g}",
            "noise of a cell, one window": f"{found.noise_of_window:.4g} rows",
            "noise of a cell, one hour": f"{found.noise_of_hour:.4g} rows",
            "rows of a bin, one hour": f"{found.rows_of_bin:.6g}",
            "noise against rows": f"{100 * found.share_of_bin:.3g} %",
        }
    )
