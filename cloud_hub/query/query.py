"""A query that has been read: what it needs to know, whom it means, and how the database says the same. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cloud_hub.errors import BadRequest
from cloud_hub.query.facts import DeviceFacts, Moment, field_of
from cloud_hub.query.matching import holds
from cloud_hub.query.tree import EVERYTHING, Among, Both, Either, Node, Not, both, depth, either, leaves, negated

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement

MAX_CONDITIONS: Final = 500  # of a query together with the saved ones that it names
MAX_NESTED: Final = 32  # levels of the same


@dataclass(frozen=True)
class Query:
    """`text` as it was written, but for runs of spaces."""

    text: str
    node: Node

    @property
    def everything(self) -> bool:
        return self.node == EVERYTHING

    def matches(self, device: DeviceFacts) -> bool:
        return holds(self.node, device)

    def needs(self) -> frozenset[str]:
        """The fields of DeviceFacts that it looks at."""
        return frozenset(field_of(leaf.fact) for leaf, _ in leaves(self.node))

    def names(self, fact: str) -> bool:
        """Whether some condition is on the fact: id, profile, tag.NAME, ..."""
        return any(leaf.fact == fact for leaf, _ in leaves(self.node))

    def excludes(self, fact: str) -> bool:
        """Whether some condition is that the fact is something else."""
        return any(leaf.fact == fact and not positive for leaf, positive in leaves(self.node))

    def where(self, moment: Moment) -> ColumnElement[bool]:
        """The same as `matches`, for rows of `devices`: exact, with every fact that the hub keeps.

        Raises BadRequest `query-not-resolved` for one that names saved queries, see `with_saved`.
        """
        from cloud_hub.query.sql import condition  # the command line has queries, and no database

        return condition(self.node, moment)

    def values(self, fact: str) -> frozenset[str]:
        """The texts that it names of a fact."""
        named = (leaf.values for leaf, _ in leaves(self.node) if isinstance(leaf, Among) and leaf.fact == fact)
        return frozenset(value for values in named for value in values)

    def saved(self) -> frozenset[str]:
        """The saved queries that it names."""
        return self.values("query")

    def with_saved(self, queries: Mapping[str, Query]) -> Query:
        """With these queries (which name no others) in the place of their names; the text stays.

        Raises BadRequest `query-invalid` where that becomes too much.
        """
        found = Query(self.text, _replaced(self.node, queries))
        if _conditions(found.node) > MAX_CONDITIONS or depth(found.node) > MAX_NESTED:
            raise BadRequest(
                "query-invalid",
                f"query: expected at most {MAX_CONDITIONS} conditions and {MAX_NESTED} levels with those of the saved "
                f"queries that it names, got {_conditions(found.node)} and {depth(found.node)}",
            )
        return found


EVERY_DEVICE: Final = Query("all", EVERYTHING)


def _replaced(node: Node, queries: Mapping[str, Query]) -> Node:
    if isinstance(node, Both):
        return both([_replaced(part, queries) for part in node.parts])
    if isinstance(node, Either):
        return either([_replaced(part, queries) for part in node.parts])
    if isinstance(node, Not):
        return negated(_replaced(node.part, queries))
    if isinstance(node, Among) and node.fact == "query":
        return either([queries[name].node if name in queries else Among("query", (name,)) for name in node.values])
    return node


def _conditions(node: Node) -> int:
    return sum(1 for _ in leaves(node))
