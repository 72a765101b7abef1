"""Where the hub's database is: the file in its folder, or the PostgreSQL that `database` names.

A password stands in a file of its own (or where libpq looks for one: PGPASSWORD, PGPASSFILE), never in `hub.toml`.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from cloud_hub.config import HubConfig, HubPaths
from cloud_hub.errors import BadRequest

PASSWORD_VARIABLE: Final = "MOORING_HUB_DATABASE_PASSWORD"  # noqa: S105 - the name of it
DRIVER: Final = "postgresql+psycopg"
MAX_PASSWORD_BYTES: Final = 4096


def database_url(config: HubConfig, paths: HubPaths, environment: Mapping[str, str] = os.environ) -> URL:
    """As SQLAlchemy has it; printed, it shows no password.

    Raises BadRequest `config-invalid`, or `postgres-missing` without the library.
    """
    if not config.uses_postgres:
        return make_url(paths.database_url)
    if importlib.util.find_spec("psycopg") is None:
        raise BadRequest("postgres-missing", "no library for PostgreSQL: pip install 'mooring[postgres]'")
    try:
        url = make_url(config.database).set(drivername=DRIVER)
    except (ArgumentError, ValueError) as error:
        raise BadRequest("config-invalid", f"database: {error}; nothing was started") from error
    return url.set(password=_password(config, environment) or None)


def _password(config: HubConfig, environment: Mapping[str, str]) -> str:
    if not config.database_password_file:
        return environment.get(PASSWORD_VARIABLE, "")
    path = Path(config.database_password_file)
    try:
        with path.open("rb") as file:
            return file.read(MAX_PASSWORD_BYTES).decode().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise BadRequest("config-invalid", f"database_password_file {path}: {error}; nothing was started") from error
