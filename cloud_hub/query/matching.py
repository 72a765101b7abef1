"""A query applied to the facts of one device. Pure; the twin of `sql`, which does it in the database."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Final

from cloud_hub.query.facts import DeviceFacts
from cloud_hub.query.tree import Among, Both, Compared, Either, Node, Sign

SIGNS: Final[Mapping[Sign, Callable[[float, float], bool]]] = {
    "<": operator.lt,
    "<=": operator.le,
    "=": operator.eq,
    ">=": operator.ge,
    ">": operator.gt,
}


def holds(node: Node, device: DeviceFacts) -> bool:
    """As deep as the tree, which `parsing` bounds."""
    if isinstance(node, Both):
        return all(holds(part, device) for part in node.parts)
    if isinstance(node, Either):
        return any(holds(part, device) for part in node.parts)
    if isinstance(node, Among):
        return any(fits(value, have) for have in device.texts(node.fact) for value in node.values)
    if isinstance(node, Compared):
        number = device.number(node.fact)
        return number is not None and SIGNS[node.sign](number, node.number)
    return not holds(node.part, device)


def fits(pattern: str, text: str) -> bool:
    """Whether `text` is the pattern's parts in order, with anything in between. Takes linear time on any pattern."""
    first, *rest = pattern.split("*")
    if not rest:
        return text == pattern
    if not text.startswith(first):
        return False
    *middle, last = rest
    at = len(first)
    for part in middle:
        found = text.find(part, at)
        if found < 0:
            return False
        at = found + len(part)
    return len(text) - at >= len(last) and text.endswith(last)
