"""The parser at work: from a text to the tree, or to a fault with its place. Used by `parsing`, which bounds the text.

Imports lark, and so is imported itself only when there is something to read.
"""

from __future__ import annotations

from functools import cache
from typing import Final

from lark import Lark, Token
from lark.exceptions import UnexpectedCharacters, UnexpectedInput, UnexpectedToken, VisitError

from cloud_hub.errors import BadRequest
from cloud_hub.query.grammar import GRAMMAR, WORDS
from cloud_hub.query.reading import Misread, Reading
from cloud_hub.query.tree import Node

SHOWN_CHARS: Final = 40


def read(text: str, only_tags: bool) -> Node:
    """Raises BadRequest `query-invalid`."""
    try:
        return _parser(only_tags).parse(text)  # type: ignore[return-value] # what `Reading` makes
    except VisitError as error:
        if isinstance(error.orig_exc, Misread):
            raise _misread(error.orig_exc) from error
        raise
    except Misread as error:
        raise _misread(error) from error
    except UnexpectedInput as error:
        raise _unexpected(text, error) from error


@cache
def _parser(only_tags: bool) -> Lark:
    """Keeps nothing between texts."""
    return Lark(GRAMMAR, parser="lalr", lexer="contextual", transformer=Reading(only_tags), propagate_positions=False)


def _misread(error: Misread) -> BadRequest:
    at = (error.token.start_pos or 0) + 1
    got = repr(str(error.token)[:SHOWN_CHARS])
    return BadRequest("query-invalid", f"query: expected {error} at character {at}, got {got}", position=at)


def _unexpected(text: str, error: UnexpectedInput) -> BadRequest:
    ended = isinstance(error, UnexpectedToken) and isinstance(error.token, Token) and error.token.type == "$END"
    place: int | None = error.pos_in_stream
    at = len(text) if ended or place is None else place
    allowed: set[str] = set()
    if isinstance(error, UnexpectedCharacters):
        allowed = set(error.allowed or ())
    elif isinstance(error, UnexpectedToken):
        allowed = set(error.accepts or error.expected)
    said = " or ".join(word for name, word in WORDS.items() if name in allowed) or "a condition such as site=lyon"
    rest = text[at : at + SHOWN_CHARS].rstrip()
    got = repr(rest) if rest else "the end"
    return BadRequest("query-invalid", f"query: expected {said} at character {at + 1}, got {got}", position=at + 1)
