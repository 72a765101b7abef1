"""What Azure ML gives a script that wants the whole request: AMLRequest, AMLResponse and @rawhttp, without Flask.

A small part of the originals' interface, written for scripts that import it by Azure's names. `offer` puts it under
those names where the real packages are not installed. Called by `script_run`.
Source: the public documentation of Azure ML's advanced entry scripts, and of its inference server.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import ModuleType
from typing import Any, TypeVar
from urllib.parse import parse_qs

_Function = TypeVar("_Function", bound=Callable[..., Any])
_MARK = "mooring_raw_http"
_NAMES = ("azureml.contrib.services", "azureml_inference_server_http.api")
_PLAIN = "text/html; charset=utf-8"
_JSON = "application/json"


class Headers(Mapping[str, str]):
    """Headers by name, in any case; those that came several times are joined by commas."""

    def __init__(self, pairs: Iterable[tuple[str, str]] = ()) -> None:
        self._values: dict[str, tuple[str, str]] = {}
        for name, value in pairs:
            self.add(name, value)

    def add(self, name: str, value: object) -> None:
        known = self._values.get(name.lower())
        text = str(value)
        self._values[name.lower()] = (name, f"{known[1]},{text}" if known else text)

    def __setitem__(self, name: str, value: object) -> None:
        self._values[name.lower()] = (name, str(value))

    def __getitem__(self, name: str) -> str:
        return self._values[name.lower()][1]

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name.lower() in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(name for name, _ in self._values.values())

    def __len__(self) -> int:
        return len(self._values)


class Arguments(dict[str, str]):
    """The query's values; the first of each name, `getlist` all."""

    def __init__(self, query: str) -> None:
        self._all = parse_qs(query, keep_blank_values=True)
        super().__init__({name: values[0] for name, values in self._all.items()})

    def getlist(self, name: str) -> list[str]:
        return list(self._all.get(name, []))


class AMLRequest:
    """One request as it came."""

    def __init__(
        self, method: str = "POST", data: bytes = b"", query: str = "", headers: Iterable[tuple[str, str]] = ()
    ) -> None:
        self.method = method
        self.path = "/score"
        self.data = data
        self.query_string = query.encode()
        self.headers = Headers(headers)
        self.args = Arguments(query)

    @property
    def content_type(self) -> str:
        return self.headers.get("Content-Type", "")

    @property
    def content_length(self) -> int:
        return len(self.data)

    @property
    def mimetype(self) -> str:
        return self.content_type.partition(";")[0].strip().lower()

    @property
    def is_json(self) -> bool:
        return self.mimetype == _JSON or self.mimetype.endswith("+json")

    @property
    def json(self) -> object:
        return self.get_json(force=True)

    def get_data(self, cache: bool = True, as_text: bool = False, parse_form_data: bool = False) -> bytes | str:
        return self.data.decode() if as_text else self.data

    def get_json(self, force: bool = False, silent: bool = False, cache: bool = True) -> object:
        if not (force or self.is_json):
            return None
        try:
            return json.loads(self.data)
        except ValueError:
            if silent:
                return None
            raise


class AMLResponse:
    """An answer with a status and headers of its own."""

    def __init__(
        self,
        message: object,
        status_code: int,
        response_headers: Mapping[str, str] | None = None,
        json_str: bool = False,
        run_function_failed: bool = False,
    ) -> None:
        self.status_code = status_code
        whole = {} if message is None else message
        encoded = json_str or message is None
        self.headers = Headers([("Content-Type", _JSON if encoded else _PLAIN)])
        if encoded:
            self.data = json.dumps(whole).encode()
        else:
            self.data = whole if isinstance(whole, bytes) else str(whole).encode()
        self.headers["x-ms-run-function-failed"] = run_function_failed
        for name, value in (response_headers or {}).items():
            self.headers[name] = value

    def get_data(self, as_text: bool = False) -> bytes | str:
        return self.data.decode() if as_text else self.data


def rawhttp(function: _Function) -> _Function:
    """Above run(): it gets the AMLRequest in place of its text."""
    setattr(function, _MARK, True)
    return function


def offer() -> None:
    """Makes the names of this file importable as Azure's, where nothing is installed under those."""
    for package in _NAMES:
        if not _is_there(f"{package}.aml_request"):
            _register(package, "aml_request", AMLRequest=AMLRequest, rawhttp=rawhttp)
            _register(package, "aml_response", AMLResponse=AMLResponse)


def wants_raw(function: Callable[..., Any]) -> bool:
    """Whether @rawhttp stands above it, ours or the installed one (which notes it in its own file)."""
    if getattr(function, _MARK, False):
        return True
    real = (sys.modules.get(f"{package}.aml_request") for package in _NAMES)
    return any(getattr(module, "_rawHttpRequested", False) for module in real)


def _is_there(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def _register(package: str, name: str, **content: object) -> None:
    """Also the packages above, as far as they are not there."""
    parts = [*package.split("."), name]
    for end in range(1, len(parts) + 1):
        full = ".".join(parts[:end])
        if full not in sys.modules and not (end < len(parts) and _is_there(full)):
            module = ModuleType(full)
            if end < len(parts):
                module.__path__ = []
            sys.modules[full] = module
            if end > 1 and (above := sys.modules.get(".".join(parts[: end - 1]))) is not None:
                setattr(above, parts[end - 1], module)
    for attribute, value in content.items():
        setattr(sys.modules[".".join(parts)], attribute, value)
