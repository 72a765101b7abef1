"""Libraries that happen to be installed and that the agent has no use for. Used by `trust`.

securesystemslib, below python-tuf, imports the library of every cloud and key store that it finds: boto3 alone is 9 MiB
of the parent's memory, which never signs anything.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any, Final, cast

KEY_STORES: Final = ("boto3", "botocore", "azure", "google.cloud", "hvac", "keylet", "pkcs11")


@contextmanager
def without(names: Collection[str]) -> Iterator[None]:
    """What is imported inside finds none of these libraries, as if they were not installed.

    Those that are loaded already stay. Not for two threads at once that want other libraries.
    """
    loaded = cast("dict[str, Any]", sys.modules)
    hidden = [name for name in names if name not in loaded]
    loaded.update(dict.fromkeys(hidden))  # None: the import raises ModuleNotFoundError
    try:
        yield
    finally:
        for name in hidden:
            del loaded[name]
