"""Lists as the hub sends them: a page, that knows where the next one is. Made by `transport`, followed by `client`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

_Row = TypeVar("_Row")


class Rows(list[_Row]):
    """A list of the answer's type. `next` is the path of the next page, empty on the last; `total` is how many rows all
    pages have together, None where the hub does not say.
    """

    def __init__(self, rows: Iterable[_Row], kind: type[list[_Row]], next_path: str, total: int | None) -> None:
        super().__init__(rows)
        self.kind = kind
        self.next = next_path
        self.total = total
