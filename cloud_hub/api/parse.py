"""Bytes and text of a request become frozen values, or an error that says which field, what was expected and what came.

Pure. Called by `app` for each request.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from cloud_hub.errors import BadRequest
from modules.errors import MALFORMED, ModuleError

_AT = re.compile(r" - at `\$?\.?(.*)`$")


def parse_body(raw: bytes, kind: type) -> object:
    """The JSON text as a `kind`; no body at all is an empty object.

    Raises BadRequest `body-invalid`, also for fields that `kind` does not have.
    """
    raw = raw or b"{}"
    try:
        names = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
        _refuse_unknown("body", names, kind)
        return msgspec.json.decode(raw, type=kind)
    except (*MALFORMED, ValueError) as error:
        raise _invalid("body", error) from error


def parse_query(values: Mapping[str, Sequence[str]], kind: type) -> object:
    """The query string as a `kind`, text turned into numbers and truth values. Raises BadRequest `query-invalid`."""
    _refuse_unknown("query", values, kind)
    fields = {field.encode_name: field.type for field in msgspec.structs.fields(kind)}
    plain: dict[str, Any] = {}  # still text, of any shape that msgspec converts
    for name, texts in values.items():
        if _is_many(fields[name]):
            plain[name] = list(texts)
        elif len(texts) == 1:
            plain[name] = texts[0]
        else:
            raise BadRequest("query-invalid", f"query: {name}: expected once, got {len(texts)} times", field=name)
    try:
        return msgspec.convert(plain, kind, strict=False)
    except (msgspec.ValidationError, ModuleError, ValueError) as error:
        raise _invalid("query", error) from error


def _is_many(kind: object) -> bool:
    return isinstance(msgspec.inspect.type_info(kind), msgspec.inspect.ListType | msgspec.inspect.VarTupleType)


def _refuse_unknown(place: str, names: Mapping[str, object], kind: type) -> None:
    known = [field.encode_name for field in msgspec.structs.fields(kind)]
    for name in names:
        if name not in known:
            expected = ", ".join(known) or "nothing"
            raise BadRequest(
                f"{place}-invalid", f"{place}: expected {expected}; got the unknown {name[:80]!r}", field=name[:80]
            )


def _invalid(place: str, error: Exception) -> BadRequest:
    text = str(error)
    at = _AT.search(text)
    field = at[1] if at else ""
    what = _AT.sub("", text)
    what = what[:1].lower() + what[1:]
    return BadRequest(f"{place}-invalid", f"{place}: {field + ': ' if field else ''}{what}", field=field)
