"""The grammar of device queries, for lark (LALR: time and memory grow with the text, however it nests).

The lexer knows where it stands: a word is a value after a sign, so that `site=or` and a tag called `not` stay what
they were before the language had these words.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

_FREE: Final = r"(?!\s*[=!<>])(?!\s+in\s*\()(?!\s+not\s+in\s*\()"  # no sign follows: the word is no name
_END: Final = r"(?![A-Za-z0-9._\/-])"
GRAMMAR: Final = rf"""
start: either
either: both (_OR both)*
both: _one ((_AND | _COMMA) _one)*
_one: negation | _OPEN either _CLOSE | everything | flag | condition | among | not_among
negation: _NOT _one
everything: ALL
flag: STATE
condition: NAME SIGN value
among: NAME _IN _OPEN value (_COMMA value)* _CLOSE
not_among: NAME _NOT_IN _OPEN value (_COMMA value)* _CLOSE
value: VALUE | QUOTED
_OR.3: /or(?=[\s(]|$)/
_AND.3: /and(?=[\s(]|$)/
_NOT.3: /not(?=[\s(]){_FREE}/
_IN.3: /in(?=\s*\()/
_NOT_IN.3: /not\s+in(?=\s*\()/
ALL.3: /all{_END}{_FREE}/
STATE.2: /(?:online|offline|updating|differs){_END}{_FREE}/
NAME: /[A-Za-z0-9][A-Za-z0-9._\/-]*/
SIGN: /!=|<=|>=|=|<|>/
QUOTED.2: /"[^"]*"/
VALUE: /(?:[^=!\s,()]|\([^=!\s,()]*\))+/
_OPEN: "("
_CLOSE: ")"
_COMMA: ","
%ignore /\s+/
"""
# What a person is told that would have been understood.
WORDS: Final[Mapping[str, str]] = {
    "ALL": "`all`",
    "NAME": "a condition such as site=lyon, profile!=jetson* or last_seen > 2h",
    "SIGN": "a sign (= != < <= > >=) or `in (...)`",
    "VALUE": "a value",
    "_AND": "`and`",
    "_OR": "`or`",
    "_COMMA": "a comma",
    "_OPEN": "`(`",
    "_CLOSE": "`)`",
    "$END": "the end",
}
