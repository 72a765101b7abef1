"""Calls a script's `run` as Azure ML's inference server does: with text, with parsed values, or with the request.

Which one the script wants is read off the function: @rawhttp gets the request, decorators of `inference_schema` get the
body's values by parameter name, everything else gets the body as text. Called by `script`.
Source: behaviour of azureml-inference-server-http 1.x (`/score`), as documented.
"""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs

from agent.backends import Array, BackendError
from agent.backends.azure_http import AMLRequest, wants_raw
from modules.entry import EntryError
from modules.errors import MALFORMED

_HEADERS = "request_headers"


class ScoreCall(dict[str, Array]):
    """A request for `run` as it came. It goes the way of every prediction, in the place of arrays, and carries its
    answer back.
    """

    def __init__(
        self, body: bytes, method: str = "POST", query: str = "", headers: tuple[tuple[str, str], ...] = ()
    ) -> None:
        super().__init__()
        self.body = body
        self.method = method
        self.query = query
        self.headers = headers
        self.answer: object = None


class RunCaller:
    """`run`, whatever it takes. Raises EntryError for a function that cannot be called so."""

    def __init__(self, run: Callable[..., object], path: str) -> None:
        self._run = run
        try:
            parameters = list(inspect.signature(run).parameters.values())
        except (TypeError, ValueError) as error:
            raise EntryError(f"{path}: run(): {error}") from error
        kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        if any(parameter.kind not in kinds for parameter in parameters):
            raise EntryError(f"{path}: expected run() without positional-only parameters, *args and **kwargs")
        self._wants_headers = any(parameter.name == _HEADERS for parameter in parameters)
        self._parameters = [parameter for parameter in parameters if parameter.name != _HEADERS]
        if not self._parameters:
            raise EntryError(f"{path}: expected run() with a parameter for the data, got none")
        self._raw = wants_raw(run)
        self._schema = _is_decorated(run)
        if self._raw and self._schema:
            raise EntryError(f"{path}: expected run() with @rawhttp or with a schema, got both")

    @property
    def form(self) -> str:
        """How it is called, for the report."""
        return "run(request)" if self._raw else "run(values)" if self._schema else "run()"

    def __call__(self, call: ScoreCall) -> object:
        """What the script returns. Raises BackendError("bad-input") for a body that it cannot be given."""
        arguments = self._arguments(call)
        if self._wants_headers:
            arguments[_HEADERS] = dict(call.headers)
        return self._run(**arguments)

    def _arguments(self, call: ScoreCall) -> dict[str, Any]:
        first = self._parameters[0].name
        if self._raw:
            return {first: AMLRequest(call.method, call.body, call.query, call.headers)}
        if self._schema:
            return self._values(_from_query(call.query) if call.method == "GET" else _parsed(call.body))
        if call.method == "GET":
            return {first: json.dumps(_from_query(call.query))}
        try:
            return {first: call.body.decode()}
        except UnicodeDecodeError as error:
            raise BackendError("bad-input", f"expected a body in UTF-8, got {error.reason}") from error

    def _values(self, body: object) -> dict[str, Any]:
        if not isinstance(body, dict):
            raise BackendError("bad-input", f"expected a JSON object, got {type(body).__name__}")
        missing = [p.name for p in self._parameters if p.name not in body and p.default is p.empty]
        if missing:
            got = ", ".join(map(str, body))[:200]
            raise BackendError("bad-input", f"expected {', '.join(missing)} in the JSON object, got {got or 'nothing'}")
        return {parameter.name: body.get(parameter.name, parameter.default) for parameter in self._parameters}


def _is_decorated(run: Callable[..., object]) -> bool:
    """By `inference_schema`, which the script has imported then; nobody else imports it."""
    library = sys.modules.get("inference_schema.schema_util")
    return library is not None and bool(library.is_schema_decorated(run))


def _parsed(body: bytes) -> object:
    try:
        return json.loads(body)
    except (*MALFORMED, ValueError, RecursionError) as error:
        raise BackendError("bad-input", f"expected a JSON body: {str(error)[:200]}") from error


def _from_query(query: str) -> dict[str, Any]:
    """`a=1&b=x` as {"a": 1, "b": "x"}; a name that stands several times is a list."""
    found = {name: [_value(text) for text in texts] for name, texts in parse_qs(query, keep_blank_values=True).items()}
    return {name: values[0] if len(values) == 1 else values for name, values in found.items()}


def _value(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
