"""Takes secrets out of what leaves this device: by the names of values, and by the form of what is one anywhere. Pure.

A net below the rule that secrets are not logged, not a reason to log them. Used by `lines` and `bundle`.
"""

from __future__ import annotations

import re
from typing import Any

HIDDEN = "[removed]"
_NAMES = (
    r"(?:pass(?:word|wd|phrase)?|secret|token|api[_-]?key|access[_-]?key|private[_-]?key|credentials?|authorization)"
)
_NAME = re.compile(rf"(?i)(?:^|[._-]){_NAMES}$|^{_NAMES}")
_FORMS = (
    re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL),
    re.compile(r"(?<=://)[^/\s:@]{1,200}:[^/\s@]{1,400}(?=@)"),
    re.compile(r"(?i)(?<=\bbearer )[A-Za-z0-9._~+/=-]{8,}"),
    re.compile(r"\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]+"),
    re.compile(r"\bAKIA[0-9A-Z]{16}\b"),
)
_SAID = re.compile(
    rf"(?i)(\b[\w.-]{{0,40}}{_NAMES}[\"']?\s*[=:]\s*)(\"[^\"]{{1,400}}\"|'[^']{{1,400}}'|[^\s,;\"']{{3,400}})"
)


def redacted(text: str) -> str:
    """The text with what looks like a secret replaced."""
    for form in _FORMS:
        text = form.sub(HIDDEN, text)
    return _SAID.sub(rf"\g<1>{HIDDEN}", text)


def without_secrets(value: Any) -> Any:  # noqa: ANN401 - whatever JSON holds
    """The value, with texts redacted, and everything that is named like a secret replaced unless it is empty."""
    if isinstance(value, dict):
        return {name: _hidden(str(name), inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_secrets(inner) for inner in value]
    return redacted(value) if isinstance(value, str) else value


def _hidden(name: str, inner: object) -> object:
    kept = isinstance(inner, (bool, dict, list, tuple)) or inner is None or inner == ""
    return without_secrets(inner) if kept or not _NAME.search(name) else HIDDEN
