"""What the demo tells and what it proves: stages with their seconds, claims with their evidence, one report.

A claim is checked or it is not made. Used by the acts; rendered by `command`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
from rich.console import Console


class Claim(msgspec.Struct, frozen=True):
    """Something the demo says, whether it was so, and by what numbers."""

    claim: str
    ok: bool
    evidence: str


class DemoReport(msgspec.Struct, frozen=True):
    """What `--json` prints. Times are seconds."""

    ok: bool
    seconds: float
    claims: tuple[Claim, ...]
    stages: dict[str, float]
    error: str = ""


class ClaimError(Exception):
    """A claim did not hold, and the rest of the story builds on it."""


class Story:
    """Collects stages and claims, and tells them on standard error while they happen."""

    def __init__(self, quiet: bool = False) -> None:
        self.console = Console(stderr=True, quiet=quiet, highlight=False, soft_wrap=True)
        self._claims: list[Claim] = []
        self._stages: dict[str, float] = {}
        self._started = time.monotonic()

    @contextmanager
    def stage(self, name: str, text: str) -> Iterator[None]:
        """One act: shown with a spinner while it runs, with its seconds once it has run."""
        started = time.monotonic()
        with self.console.status(f"[bold]{text}[/bold]"):
            try:
                yield
            finally:
                self._stages[name] = round(time.monotonic() - started, 2)
        self.console.print(f"[bold cyan]{name:>10}[/bold cyan]  {text} [dim]({self._stages[name]:.1f} s)[/dim]")

    def say(self, text: str) -> None:
        """A line of the story."""
        self.console.print(f"{'':>10}  {text}")

    def claim(self, claim: str, ok: bool, evidence: str, *, needed: bool = False) -> None:
        """Record a claim that was checked. Raises ClaimError when it failed and the rest `needed` it."""
        self._claims.append(Claim(claim, bool(ok), evidence))
        mark = "[green]holds[/green]" if ok else "[bold red]FAILS[/bold red]"
        self.console.print(f"{'':>10}  {mark}  {claim} [dim]- {evidence}[/dim]")
        if needed and not ok:
            raise ClaimError(f"{claim}: {evidence}")

    def report(self, error: str = "") -> DemoReport:
        """Ok only if something was claimed, everything claimed held, and nothing went wrong."""
        ok = not error and bool(self._claims) and all(claim.ok for claim in self._claims)
        seconds = round(time.monotonic() - self._started, 2)
        return DemoReport(ok, seconds, tuple(self._claims), dict(self._stages), error)


def print_json(report: DemoReport) -> None:
    """The report as one line on standard output."""
    sys.stdout.write(msgspec.json.encode(report).decode() + "\n")
    sys.stdout.flush()
