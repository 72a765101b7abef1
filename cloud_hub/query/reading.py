"""Turns what the parser has recognised into the tree, while it parses; nothing here recurses.

What is no condition is told as a `Misread`, with the words that are at fault. Used by `parsing` only.
"""

from __future__ import annotations

import re
from typing import Final, cast

from lark import Token, Transformer, v_args

from cloud_hub.query import tree
from cloud_hub.query.facts import (
    DURATIONS,
    MODULE,
    NUMBER,
    NUMBERS,
    PATTERNS,
    RESERVED,
    STATES,
    TAG,
    VERSIONS,
    WORDS,
    version_number,
)
from cloud_hub.query.tree import Among, Compared, Node, Sign
from firmware_profiles.profile import NAME_PATTERN

MAX_NAME_CHARS: Final = 63
NAME: Final = re.compile(NAME_PATTERN)  # of groups and saved queries
MAX_VALUE_CHARS: Final = 200
_UNITS_S: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


class Misread(Exception):
    """One condition that cannot be meant: the token at fault, and what was expected in its place."""

    def __init__(self, token: Token, expected: str) -> None:
        super().__init__(expected)
        self.token = token


@v_args(inline=True)
class Reading(Transformer[Token, Node]):
    """One method for each rule of the grammar. With `only_tags` every name but id and profile is one of a tag."""

    def __init__(self, only_tags: bool = False) -> None:
        super().__init__()
        self._only_tags = only_tags

    def start(self, node: Node) -> Node:
        return node

    def either(self, *parts: Node) -> Node:
        return tree.either(list(parts))

    def both(self, *parts: Node) -> Node:
        return tree.both(list(parts))

    def negation(self, part: Node) -> Node:
        return tree.negated(part)

    def everything(self, _word: Token) -> Node:
        return tree.EVERYTHING

    def flag(self, word: Token) -> Node:
        if self._only_tags:
            raise Misread(word, "conditions on id, profile and tags only")
        return Among("state", (str(word),))

    def condition(self, name: Token, sign: Token, value: Token) -> Node:
        fact = self._fact(name)
        if sign in ("=", "!="):
            equal = _equal(fact, value)
            return equal if sign == "=" else tree.negated(equal)
        return _compared(fact, name, sign, value)

    def among(self, name: Token, *values: Token) -> Node:
        fact = self._fact(name)
        found = [_equal(fact, value) for value in values]
        if all(isinstance(one, Among) for one in found):
            return Among(fact, tuple(value for one in found for value in cast(Among, one).values))
        return tree.either(found)

    def not_among(self, name: Token, *values: Token) -> Node:
        return tree.negated(self.among(name, *values))

    def value(self, token: Token) -> Token:
        text = token[1:-1] if token.type == "QUOTED" else str(token)
        if not 0 < len(text) <= MAX_VALUE_CHARS:
            raise Misread(token, f"a value of 1 to {MAX_VALUE_CHARS} characters")
        return token.update(value=text)

    def _fact(self, name: Token) -> str:
        """The fact's own name. Raises Misread for one that is too long."""
        text = str(name)
        bare = text.removeprefix(TAG).removeprefix(MODULE)
        if not 0 < len(bare) <= MAX_NAME_CHARS:
            raise Misread(name, f"a name of 1 to {MAX_NAME_CHARS} characters")
        if text.startswith(TAG) or text in ("id", "profile"):
            return text
        if not self._only_tags and (text in RESERVED or text.startswith(MODULE)):
            return text
        return TAG + text


def _equal(fact: str, value: Token) -> Node:
    text = str(value)
    if fact in NUMBERS or fact.startswith(MODULE):
        return Compared(fact, "=", _number(value))
    if fact in DURATIONS:
        raise Misread(value, f"{fact} with < <= > or >=, as in {fact} > 2h")
    if fact in VERSIONS:
        number = version_number(text)
        return Among(fact, (text,)) if "*" in text or number is None else Compared(fact, "=", number)
    if fact in WORDS:
        return Among(fact, (_word(fact, value),))
    return Among(fact, (text,))


def _word(fact: str, value: Token) -> str:
    text = str(value)
    if fact == "state" and text not in STATES:
        raise Misread(value, f"one of the states {', '.join(STATES)}")
    if fact == "query" and NAME.fullmatch(text) is None:
        raise Misread(value, "the name of a saved query")
    if "*" in text or "," in text:
        raise Misread(value, f"the whole word for {fact}, without `*`")
    return text


def _compared(fact: str, name: Token, sign: Token, value: Token) -> Node:
    if fact in PATTERNS or fact in WORDS:
        raise Misread(name, f"something that has an order ({fact} takes = and != and `in (...)`)")
    if fact in VERSIONS:
        number = version_number(str(value))
        if number is None or "*" in value:
            raise Misread(value, "a version such as 0.2")
        return Compared(fact, cast(Sign, str(sign)), number)
    return Compared(fact, cast(Sign, str(sign)), _seconds(value) if fact in DURATIONS else _number(value))


def _number(value: Token) -> float:
    if NUMBER.fullmatch(value) is None or len(value) > 18:
        raise Misread(value, "a number")
    return float(value)


def _seconds(value: Token) -> float:
    """`90s`, `15m`, `2h`, `7d` or `4w`."""
    number, unit = value[:-1], value[-1:]
    if unit not in _UNITS_S or NUMBER.fullmatch(number) is None or len(number) > 12:
        raise Misread(value, "a time such as 90s, 15m, 2h or 7d")
    return float(number) * _UNITS_S[unit]
