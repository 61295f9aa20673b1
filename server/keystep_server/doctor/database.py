"""Whether the server's database can be read, is whole, and is of a version that this Keystep knows.

It is opened to read only: nothing is made, repaired or brought up to date.
"""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from pathlib import Path

from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy.engine import make_url

from keystep_capture.findings import Finding, Level
from keystep_server.storage.engine import MIGRATIONS

CHECK_S = 5.0
"""How long a large database is looked at; a doctor has other patients."""
_STEPS_A_LOOK = 10_000  # of SQLite's machine, between two looks at the clock
_RESTORE = "stop the server and restore the database from a backup, or choose another --data-dir"


def check_database(url: str, *, check_s: float = CHECK_S) -> list[Finding]:
    """Look at the database of an SQLAlchemy URL; of SQLite's only, others have their own tools.

    Args:
        url: The settings' `resolved_database_url`.
        check_s: Seconds that the look at its pages may take.
    """
    parsed = make_url(url)
    shown = parsed.render_as_string(hide_password=True)
    if parsed.get_backend_name() != "sqlite" or parsed.database in (None, "", ":memory:"):
        return [_finding("ok", f"{shown} is not looked at: no file of SQLite")]
    path = Path(str(parsed.database)).absolute()
    try:
        if not path.exists():
            return [_finding("ok", f"{path} is not there yet: made on first use")]
        # Without a log of writes nobody has it open; SQLite would leave one beside it.
        mode = "mode=ro" if path.with_name(f"{path.name}-wal").exists() else "immutable=1"
        with closing(sqlite3.connect(f"{path.as_uri()}?{mode}", uri=True, timeout=2.0)) as file:
            return [_look(path, file, check_s)]
    except (sqlite3.Error, OSError) as error:
        return [_finding("problem", f"{path} cannot be read: {error}", _RESTORE)]


def _look(path: Path, file: sqlite3.Connection, check_s: float) -> Finding:
    if not file.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone():
        return _finding("ok", f"{path} is empty: its tables are made on first use")
    if trouble := _wrong_version(file):
        return _finding("problem", f"{path} {trouble[0]}", trouble[1])
    deadline_s = time.monotonic() + check_s
    file.set_progress_handler(lambda: time.monotonic() > deadline_s, _STEPS_A_LOOK)
    try:
        found = [str(row[0]) for row in file.execute("PRAGMA quick_check(3)")]
    except sqlite3.OperationalError as error:
        if time.monotonic() <= deadline_s:
            raise
        remedy = f"to look at all of it: sqlite3 {path} 'PRAGMA quick_check'"
        return _finding("warning", f"{path} was not looked at in {check_s:g} s: {error}", remedy)
    if found != ["ok"]:
        return _finding("problem", f"{path} is damaged: {'; '.join(found)[:300]}", _RESTORE)
    return _finding("ok", f"{path} is whole")


def _wrong_version(file: sqlite3.Connection) -> tuple[str, str] | None:
    """What is wrong with its version and what to do, if anything is."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    name = "SELECT name FROM sqlite_master WHERE name = 'alembic_version'"
    if file.execute(name).fetchone() is None:
        return "is no database of Keystep", "choose another --data-dir or database_url"
    found = {row[0] for row in file.execute("SELECT version_num FROM alembic_version")}
    if not found or not found <= known:
        said = ", ".join(sorted(map(str, found))) or "none"
        return (
            f"is of a version that this Keystep does not know ({said})",
            "install the Keystep that made it, or a newer one",
        )
    return None


def _finding(level: Level, detail: str, remedy: str = "") -> Finding:
    return Finding(area="disk", name="database", level=level, detail=detail, remedy=remedy)
