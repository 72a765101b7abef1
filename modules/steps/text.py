"""The step from text to token ids, by a vocabulary file of the module. Pure values and checks."""

from __future__ import annotations

from typing import Literal

import msgspec

from modules.bundle import check_path
from modules.steps.specs import Specs, made, read, require
from modules.tensors import TensorSpec

MAX_LENGTH = 65_536


class Tokenise(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag="tokenise"):
    """Text (UTF-8, one per element of BYTES) to INT64 [n, length]. `vocabulary` is a file of the module with one token
    per line: the line's number, from 0, is its id.

    `whitespace` looks words up as they stand; `wordpiece` splits off punctuation, then takes the longest piece that is
    known, later pieces with ## before, as BERT does. `lower` puts into small letters and takes accents off first.
    `begin` and `end` are put around, longer texts are cut, shorter ones filled up with `pad`. `mask` names a tensor
    with 1 for tokens and 0 for what was filled up, `types` one of zeros.
    """

    tensor: str
    vocabulary: str
    length: int
    to: str = ""
    method: Literal["whitespace", "wordpiece"] = "whitespace"
    lower: bool = False
    unknown: str = "[UNK]"
    pad: str = "[PAD]"
    begin: str = ""
    end: str = ""
    mask: str = ""
    types: str = ""

    def __post_init__(self) -> None:
        check_path(self.vocabulary)

    def gives(self, have: Specs) -> tuple[TensorSpec, ...]:
        spec = read("tokenise", have, self.tensor, ("BYTES",), 1)
        least = 1 + bool(self.begin) + bool(self.end)
        fits = least <= self.length <= MAX_LENGTH
        require("tokenise", fits, f"expected a length of {least} to {MAX_LENGTH}, got {self.length}")
        shape = (spec.shape[0], self.length)
        names = (self.to or self.tensor, self.mask, self.types)
        return tuple(made(name, "INT64", shape) for name in names if name)
