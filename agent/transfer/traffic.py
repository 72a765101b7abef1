"""Where the bytes of files came from: counted by source, and those that did not have to come at all.

Filled by `agent.transfer.pull`, `reuse` and `fetch`; logged at the end of each fetch and shown by `status`.
"""

from __future__ import annotations

from collections import Counter


class Traffic:
    """Bytes by origin: the names of sources (mqtt, https, gateway, folder), `reused`, `patched`, `wasted`.

    `reused` were on the device already, `patched` is what patches saved, `wasted` came and was wrong.
    """

    def __init__(self) -> None:
        self._bytes: Counter[str] = Counter()

    def add(self, origin: str, count: int) -> None:
        self._bytes[origin] += count

    def totals(self) -> dict[str, int]:
        """Origins with bytes, by name."""
        return {origin: count for origin, count in sorted(self._bytes.items()) if count}

    def since(self, before: dict[str, int]) -> dict[str, int]:
        """What came since `totals` gave `before`."""
        return {origin: count - before.get(origin, 0) for origin, count in self.totals().items()
                if count > before.get(origin, 0)}  # fmt: skip
