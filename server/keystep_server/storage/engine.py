"""Opening the database: SQLite's settings, and bringing the tables up to date."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, NoSuchModuleError

from keystep_capture.errors import ConfigError, DataError

MIGRATIONS = Path(__file__).parent.parent / "migrations"
WRITES = "keystep_writes"  # execution option of connections that will write
_BUSY_TIMEOUT_MS = 10_000


def open_engine(url: str) -> Engine:
    """Connect to the database at an SQLAlchemy URL and run the migrations it lacks.

    Raises:
        ConfigError: The driver of the URL is not installed.
        DataError: The database cannot be opened, or was made by a newer Keystep.
    """
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite" and parsed.database not in (None, "", ":memory:"):
        Path(str(parsed.database)).parent.mkdir(parents=True, exist_ok=True)
    try:
        engine = create_engine(parsed, json_serializer=strict_json)
    except (NoSuchModuleError, ModuleNotFoundError) as error:
        raise ConfigError(f"database_url needs a driver that is not installed: {error}") from None
    if engine.dialect.name == "sqlite":
        _tune_sqlite(engine)
    try:
        _upgrade(engine)
    except (DBAPIError, CommandError) as error:
        engine.dispose()
        shown = parsed.render_as_string(hide_password=True)
        raise DataError(f"the database {shown} cannot be opened: {error}") from error
    return engine


def strict_json(value: Any) -> str:
    """JSON that any reader takes: no NaN or infinity.

    Raises:
        ValueError: A number is not finite.
        TypeError: A value has no JSON form.
    """
    return json.dumps(value, allow_nan=False)


def json_object(value: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The mapping as it will read back, so that what is published equals what is stored.

    Raises:
        DataError: It has no JSON form.
    """
    try:
        plain: dict[str, Any] = json.loads(strict_json(dict(value)))
    except (TypeError, ValueError) as error:
        raise DataError(f"{name} has no JSON form: {error}") from None
    return plain


def _tune_sqlite(engine: Engine) -> None:
    """Set WAL, foreign keys and patience; let writers take the lock when they begin.

    A transaction that reads first and writes later would fail at once, whatever the timeout, if
    another wrote in between; BEGIN IMMEDIATE waits its turn instead.
    """

    def on_connect(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # the driver's own BEGINs off: `on_begin` does it
        for pragma in (
            f"busy_timeout = {_BUSY_TIMEOUT_MS}",
            "journal_mode = WAL",
            "synchronous = FULL",  # committed means on disk, also when the power goes
            "foreign_keys = ON",
            "secure_delete = ON",  # what was deleted is overwritten
        ):
            connection.execute(f"PRAGMA {pragma}")

    def on_begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get(WRITES, False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    event.listen(engine, "connect", on_connect)
    event.listen(engine, "begin", on_begin)


def _upgrade(engine: Engine) -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    with engine.connect().execution_options(**{WRITES: True}) as connection, connection.begin():
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
