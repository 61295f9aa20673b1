"""The table of the faults, and servers for the tests; the chain itself is in harness/."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from fault_processes import Server
from fault_table import TABLE, Rows, faults_of_the_suite


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-table", action="store_true", help="write docs/reliability.md's table")


@pytest.fixture(scope="session")
def reliability(request: pytest.FixtureRequest) -> Iterator[Rows]:
    rows = Rows()
    yield rows
    for name, row in rows.rows.items():
        print("|", name, "|", " | ".join(row), "|")  # noqa: T201
    if request.config.getoption("--write-table", default=False):
        missing = set(faults_of_the_suite()) - rows.rows.keys()
        assert not missing, f"the table is not written: no row for {sorted(missing)}"
        rows.write(TABLE, faults_of_the_suite())


@pytest.fixture
async def make_server(tmp_path: Path) -> AsyncIterator[Any]:
    """Start a server of a test's own; it ends with the test."""
    async with AsyncExitStack() as stack:

        async def make(*options: str, folder: Path = tmp_path) -> Server:
            server = Server(folder, *options)
            stack.push_async_callback(server.close)
            return server

        yield make
