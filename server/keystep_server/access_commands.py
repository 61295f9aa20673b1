"""`keystep device` and `keystep token`: who is let in.

They work on the data directory's database; a running server notices within a second. What they need
is imported when they run: every `keystep` command loads this module.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from keystep_server.config import ServerConfig
    from keystep_server.storage import Store

device = typer.Typer(help="Keys of the wire: which headsets and followers are let in.")
token = typer.Typer(help="Tokens of REST.")

_Config = Annotated[Path | None, typer.Option(help="The server's TOML file of settings.")]
_DataDir = Annotated[Path | None, typer.Option(help="The server's data directory.")]
_Name = Annotated[str, typer.Argument(help="1 to 64 of A-Z a-z 0-9 . _ - with no dot first.")]


@device.command("add")
def device_add(
    name: _Name,
    follower: Annotated[
        bool, typer.Option("--follower", help="A program that follows sessions, not a headset.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="The file to write; NAME.key.")] = None,
    server: Annotated[
        str | None, typer.Option(help="Endpoint to put into the file, e.g. tcp://HOST:8041.")
    ] = None,
    config: _Config = None,
    data_dir: _DataDir = None,
) -> None:
    """Make a key for a headset (NAME is its device id) and write it to a file to be carried."""
    from keystep_capture.sockets import check_endpoint
    from keystep_server.credentials import add_key, check_name, server_keys

    check_name(name)
    if server is not None:
        check_endpoint(server)
    path = out or Path(f"{name}.key")
    with _store(config, data_dir) as (settings, store):
        add_key(
            store,
            name=name,
            role="follower" if follower else "device",
            server_public=server_keys(settings.data_dir, store).public,
            server=server,
            path=path,
            now=datetime.now(UTC),
        )
    typer.echo(f"Wrote {path}: carry it to the machine that dials, then remove it here.")
    typer.echo("A server on loopback that never asked for keys does so after its next start.")


@device.command("list")
def device_list(config: _Config = None, data_dir: _DataDir = None) -> None:
    """List all keys, revoked ones included."""
    with _store(config, data_dir) as (_, store):
        for key in store.credentials.access_keys():
            typer.echo(_line(key.name, key.role, key.created_at, key.revoked_at))


@device.command("revoke")
def device_revoke(name: _Name, config: _Config = None, data_dir: _DataDir = None) -> None:
    """Shut a key out, its open connections included."""
    with _store(config, data_dir) as (_, store):
        store.credentials.revoke_key(name, datetime.now(UTC))
    typer.echo(f"Revoked {name}; a running server hangs up on it within a second.")


@device.command("remove")
def device_remove(name: _Name, config: _Config = None, data_dir: _DataDir = None) -> None:
    """Forget a key; sessions of its device stay."""
    with _store(config, data_dir) as (_, store):
        store.credentials.remove_key(name)
    typer.echo(f"Removed {name}.")


@token.command("add")
def token_add(
    name: _Name,
    read_only: Annotated[bool, typer.Option("--read-only", help="For GET only.")] = False,
    config: _Config = None,
    data_dir: _DataDir = None,
) -> None:
    """Make a token and print it, this once; the database holds its hash only."""
    from keystep_server.credentials import add_token

    with _store(config, data_dir) as (_, store):
        made = add_token(store, name=name, read_only=read_only, now=datetime.now(UTC))
    typer.echo(made)


@token.command("list")
def token_list(config: _Config = None, data_dir: _DataDir = None) -> None:
    """List all tokens by name, revoked ones included."""
    with _store(config, data_dir) as (_, store):
        for found in store.credentials.rest_tokens():
            what = "read-only" if found.read_only else "read-write"
            typer.echo(_line(found.name, what, found.created_at, found.revoked_at))


@token.command("revoke")
def token_revoke(name: _Name, config: _Config = None, data_dir: _DataDir = None) -> None:
    """Shut a token out."""
    with _store(config, data_dir) as (_, store):
        store.credentials.revoke_token(name, datetime.now(UTC))
    typer.echo(f"Revoked {name}; a running server refuses it within a second.")


@contextmanager
def _store(config: Path | None, data_dir: Path | None) -> Iterator[tuple[ServerConfig, Store]]:
    from keystep_server.config import load_config
    from keystep_server.storage import Store

    settings = load_config(config, {"data_dir": data_dir})
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    store = Store.open(settings.resolved_database_url)
    try:
        yield settings, store
    finally:
        store.close()


def _line(name: str, what: str, created_at: datetime, revoked_at: datetime | None) -> str:
    revoked = f"  revoked {revoked_at:%Y-%m-%d %H:%M}Z" if revoked_at else ""
    return f"{name:<24} {what:<10} {created_at:%Y-%m-%d %H:%M}Z{revoked}"
