"""What a query says, as a tree of few kinds of nodes. Pure values; made by `parsing`, read by `matching` and `sql`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Sign = Literal["<", "<=", "=", ">=", ">"]


@dataclass(frozen=True)
class Among:
    """The fact has a text that is one of `values`, where `*` stands for any part of a text."""

    fact: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Compared:
    """The fact is a number, and compares so."""

    fact: str
    sign: Sign
    number: float


@dataclass(frozen=True)
class Both:
    """All parts hold; without any, it holds for every device."""

    parts: tuple[Node, ...]


@dataclass(frozen=True)
class Either:
    """One of the parts holds; without any, it holds for no device."""

    parts: tuple[Node, ...]


@dataclass(frozen=True)
class Not:
    part: Node


Leaf = Among | Compared
Node = Leaf | Both | Either | Not
EVERYTHING = Both(())
NOTHING = Either(())


def both(parts: list[Node]) -> Node:
    """Flat, and without what holds anyway."""
    flat = [one for part in parts for one in (part.parts if isinstance(part, Both) else (part,))]
    if NOTHING in flat:
        return NOTHING
    return flat[0] if len(flat) == 1 else Both(tuple(flat))


def either(parts: list[Node]) -> Node:
    flat = [one for part in parts for one in (part.parts if isinstance(part, Either) else (part,))]
    if EVERYTHING in flat:
        return EVERYTHING
    return flat[0] if len(flat) == 1 else Either(tuple(flat))


def negated(part: Node) -> Node:
    if isinstance(part, Not):
        return part.part
    if part == EVERYTHING:
        return NOTHING
    return EVERYTHING if part == NOTHING else Not(part)


def depth(node: Node) -> int:
    """How many nodes stand above each other. Counted without recursion: it is asked before anything is bounded."""
    deepest = 0
    waiting: list[tuple[Node, int]] = [(node, 1)]
    while waiting:
        one, level = waiting.pop()
        deepest = max(deepest, level)
        waiting.extend((part, level + 1) for part in _below(one))
    return deepest


def leaves(node: Node, positive: bool = True) -> Iterator[tuple[Leaf, bool]]:
    """Every condition, and whether it must hold (or must not) for the device to be meant."""
    if isinstance(node, Among | Compared):
        yield node, positive
        return
    for part in _below(node):
        yield from leaves(part, positive != isinstance(node, Not))


def _below(node: Node) -> tuple[Node, ...]:
    if isinstance(node, Both | Either):
        return node.parts
    return (node.part,) if isinstance(node, Not) else ()
