"""The step from text to ids. Meaning: `modules.steps.text`.

`wordpiece` follows BERT's tokeniser: control characters are left out, Chinese characters stand alone, punctuation is
split off, and a word is cut greedily into the longest pieces known (Wu et al. 2016; Devlin et al. 2019).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from agent.backends import Array
from modules.steps import Tokenise

Tensors = dict[str, Array]
MAX_VOCABULARY_BYTES = 64 * 1024 * 1024
MAX_WORD = 100  # characters; a longer one is unknown
MAX_TEXT_BYTES = 1024 * 1024
_ASCII_PUNCTUATION = frozenset("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")
_CHINESE = (
    (0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F), (0x2B740, 0x2B81F), (0x2B820, 0x2CEAF),
    (0xF900, 0xFAFF), (0x2F800, 0x2FA1F),
)  # fmt: skip


class Tokeniser:
    """With its vocabulary in memory. Raises OSError, ValueError for one that is none."""

    def __init__(self, step: Tokenise, vocabulary: Path) -> None:
        self._step = step
        self._ids = _vocabulary(vocabulary)
        special = {name: self._id(name) for name in (step.unknown, step.pad, step.begin, step.end) if name}
        self._unknown, self._pad = special[step.unknown], special[step.pad]
        self._begin = [special[step.begin]] if step.begin else []
        self._end = [special[step.end]] if step.end else []

    def __call__(self, tensors: Tensors) -> None:
        step, texts = self._step, tensors[self._step.tensor].ravel()
        ids = np.full((len(texts), step.length), self._pad, np.int64)
        mask = np.zeros_like(ids)
        for row, text in enumerate(texts):
            found = self.ids(text)
            ids[row, : len(found)] = found
            mask[row, : len(found)] = 1
        tensors[step.to or step.tensor] = ids
        if step.mask:
            tensors[step.mask] = mask
        if step.types:
            tensors[step.types] = np.zeros_like(ids)

    def ids(self, text: bytes) -> list[int]:
        """At most `length`, with begin and end."""
        if len(text) > MAX_TEXT_BYTES:
            raise ValueError(f"tokenise: expected at most {MAX_TEXT_BYTES} bytes of text, got {len(text)}")
        room = self._step.length - len(self._begin) - len(self._end)
        found: list[int] = []
        for word in self._words(text.decode(errors="replace")):
            found += self._pieces(word)
            if len(found) >= room:
                break
        return [*self._begin, *found[:room], *self._end]

    def _words(self, text: str) -> Iterator[str]:
        if self._step.lower:
            small = unicodedata.normalize("NFD", text.lower())
            text = "".join(c for c in small if unicodedata.category(c) != "Mn")
        if self._step.method == "whitespace":
            return iter(text.split())
        return (part for word in "".join(map(_spaced, text)).split() for part in _split(word))

    def _pieces(self, word: str) -> list[int]:
        if self._step.method == "whitespace":
            return [self._ids.get(word, self._unknown)]
        if len(word) > MAX_WORD:
            return [self._unknown]
        pieces: list[int] = []
        start = 0
        while start < len(word):
            for end in range(len(word), start, -1):
                piece = self._ids.get(("##" if start else "") + word[start:end])
                if piece is not None:
                    break
            else:
                return [self._unknown]
            pieces.append(piece)
            start = end
        return pieces

    def _id(self, token: str) -> int:
        if token not in self._ids:
            raise ValueError(f"{self._step.vocabulary}: expected a line {token!r}, got none")
        return self._ids[token]


def _vocabulary(path: Path) -> dict[str, int]:
    size = path.stat().st_size
    if size > MAX_VOCABULARY_BYTES:
        raise ValueError(f"{path.name}: expected at most {MAX_VOCABULARY_BYTES} bytes of vocabulary, got {size}")
    lines = path.read_bytes().decode().split("\n")
    return {line.rstrip("\r"): number for number, line in enumerate(lines) if line}


def _spaced(character: str) -> str:
    """Control characters are left out, white space is one space, Chinese characters stand alone."""
    category = unicodedata.category(character)
    if character in "\t\n\r" or category == "Zs":
        return " "
    if category in ("Cc", "Cf") or character == "�":
        return ""
    code = ord(character)
    return f" {character} " if code > 0x2E7F and any(a <= code <= b for a, b in _CHINESE) else character


def _split(word: str) -> Iterator[str]:
    """Punctuation by itself."""
    start = 0
    for at, character in enumerate(word):
        if character in _ASCII_PUNCTUATION or unicodedata.category(character).startswith("P"):
            if start < at:
                yield word[start:at]
            yield character
            start = at + 1
    if start < len(word):
        yield word[start:]
