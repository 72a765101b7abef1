"""A query's text, read. Every fault says where it is and what was expected there."""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from cloud_hub.errors import BadRequest
from cloud_hub.query.query import Query
from cloud_hub.query.tree import depth

MAX_QUERY_CHARS: Final = 2000
MAX_DEPTH: Final = 16  # what reads a tree goes down it, in Python and in the database
REMEMBERED: Final = 512  # scopes are read at every request


@lru_cache(REMEMBERED)
def parse(text: str, *, only_tags: bool = False, most_chars: int = MAX_QUERY_CHARS) -> Query:
    """`only_tags`: names of facts that devices report are names of tags, as in scopes.

    Raises BadRequest `query-invalid` with the place of the first fault and what was expected there.
    """
    if len(text) > most_chars:
        raise BadRequest("query-invalid", f"query: expected at most {most_chars} characters, got {len(text)}")
    from cloud_hub.query.reader import read  # the parser takes a while to load, and help does without it

    node = read(text, only_tags)
    if (deep := depth(node)) > MAX_DEPTH:
        raise BadRequest("query-invalid", f"query: expected at most {MAX_DEPTH} levels of and, or and not, got {deep}")
    return Query(" ".join(text.split()), node)
