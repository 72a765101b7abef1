"""What ran where: what a module asked of its device, what it got, and why. Part of the device's signed report.

Pure values. Made by a backend in the worker after it has loaded, see `agent.backends`.
"""

from __future__ import annotations

import msgspec


class StageExecution(msgspec.Struct, frozen=True, omit_defaults=True):
    """Of one stage. `asked` are the providers (or delegates) in the order wished for; `got` counts the graph's nodes by
    the one that runs them, empty where the runtime does not tell. `why` says what kept a wish from being met.
    `emulated` is true when a model of the hardware answers in its place, bit for bit but not in its time.
    """

    backend: str
    asked: tuple[str, ...] = ()
    got: dict[str, int] = {}
    why: str = ""
    emulated: bool = False
    note: str = ""

    def __str__(self) -> str:
        total = sum(self.got.values())
        parts = [f"{count}/{total} nodes on {name}" for name, count in sorted(self.got.items())]
        parts += [self.note] if self.note else []
        parts += ["emulated"] if self.emulated else []
        parts += [f"({self.why})"] if self.why else []
        return f"{self.backend}: {', '.join(parts) or 'loaded'}"
