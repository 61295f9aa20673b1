"""Keys and tokens in the database: public halves and hashes, never a secret."""

from __future__ import annotations

from datetime import datetime
from typing import cast

from sqlalchemy import Engine, select
from sqlalchemy.orm import Session as OrmSession

from keystep_capture.errors import NotFoundError, StateError
from keystep_capture.key_files import Role
from keystep_server.storage.records import AccessKey, RestToken
from keystep_server.storage.tables import AccessKeyRow, RestTokenRow


class CredentialStore:
    """The store's part for access; blocks, and may be used from any thread."""

    def __init__(self, engine: Engine, writer: Engine) -> None:
        self._engine = engine
        self._writer = writer

    def add_key(self, key: AccessKey) -> None:
        """Store a key; in place of a revoked one of the same name, where there is one.

        Raises:
            StateError: The name has a key that is not revoked.
        """
        with OrmSession(self._writer) as orm, orm.begin():
            old = orm.get(AccessKeyRow, key.name)
            if old is not None and old.revoked_at is None:
                raise StateError(
                    f"{key.name} has a key already; revoke it first: "
                    f"keystep device revoke {key.name}"
                )
            orm.merge(
                AccessKeyRow(
                    name=key.name,
                    role=key.role,
                    public_key=key.public_key,
                    created_at=key.created_at,
                    revoked_at=None,
                )
            )

    def access_keys(self) -> list[AccessKey]:
        """All keys by name, revoked ones included."""
        with OrmSession(self._engine) as orm:
            return [
                AccessKey(
                    name=row.name,
                    role=cast("Role", row.role),
                    public_key=row.public_key,
                    created_at=row.created_at,
                    revoked_at=row.revoked_at,
                )
                for row in orm.scalars(select(AccessKeyRow).order_by(AccessKeyRow.name))
            ]

    def revoke_key(self, name: str, at: datetime) -> None:
        """Let a key in no more; one that is revoked already stays so.

        Raises:
            NotFoundError: There is none of this name.
        """
        with OrmSession(self._writer) as orm, orm.begin():
            row = _key_row(orm, name)
            row.revoked_at = row.revoked_at or at

    def remove_key(self, name: str) -> None:
        """Forget a key, which shuts it out as well; sessions of its device stay.

        Raises:
            NotFoundError: There is none of this name.
        """
        with OrmSession(self._writer) as orm, orm.begin():
            orm.delete(_key_row(orm, name))

    def add_token(self, token: RestToken) -> None:
        """Store a token; in place of a revoked one of the same name, where there is one.

        Raises:
            StateError: The name has a token that is not revoked.
        """
        with OrmSession(self._writer) as orm, orm.begin():
            old = orm.get(RestTokenRow, token.name)
            if old is not None and old.revoked_at is None:
                raise StateError(
                    f"there is a token {token.name!r} already; revoke it first: "
                    f"keystep token revoke {token.name}"
                )
            orm.merge(
                RestTokenRow(
                    name=token.name,
                    sha256=token.sha256,
                    read_only=token.read_only,
                    created_at=token.created_at,
                    revoked_at=None,
                )
            )

    def rest_tokens(self) -> list[RestToken]:
        """All tokens by name, revoked ones included."""
        with OrmSession(self._engine) as orm:
            return [
                RestToken(
                    name=row.name,
                    sha256=row.sha256,
                    read_only=row.read_only,
                    created_at=row.created_at,
                    revoked_at=row.revoked_at,
                )
                for row in orm.scalars(select(RestTokenRow).order_by(RestTokenRow.name))
            ]

    def revoke_token(self, name: str, at: datetime) -> None:
        """Let a token in no more; one that is revoked already stays so.

        Raises:
            NotFoundError: There is none of this name.
        """
        with OrmSession(self._writer) as orm, orm.begin():
            row = orm.get(RestTokenRow, name)
            if row is None:
                raise NotFoundError(f"there is no token {name!r}; `keystep token list` names them")
            row.revoked_at = row.revoked_at or at


def _key_row(orm: OrmSession, name: str) -> AccessKeyRow:
    row = orm.get(AccessKeyRow, name)
    if row is None:
        raise NotFoundError(f"there is no key of {name!r}; `keystep device list` names them")
    return row
