"""The tables, as SQLAlchemy sees them; migrations/ is what makes them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    DateTime,
    Dialect,
    ForeignKey,
    Index,
    MetaData,
    String,
    Text,
    TypeDecorator,
    UniqueConstraint,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class UtcDateTime(TypeDecorator[datetime]):
    """A timezone-aware time; SQLite, which knows no time zones, holds it as UTC."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Bring the time to UTC; a time without a zone is our own mistake."""
        if value is None:
            return None
        assert value.tzinfo is not None, "times are timezone-aware"
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Say that it is UTC."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Base(DeclarativeBase):
    """Base of the tables; constraints get predictable names, which migrations need."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class DeviceRow(Base):
    """A headset."""

    __tablename__ = "devices"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    first_seen_at: Mapped[datetime] = mapped_column(UtcDateTime)
    last_seen_at: Mapped[datetime] = mapped_column(UtcDateTime)
    client: Mapped[str | None] = mapped_column(String(200))


class AccessKeyRow(Base):
    """The public key of a device (id of a `DeviceRow`, once it was seen) or follower."""

    __tablename__ = "access_keys"
    __table_args__ = (UniqueConstraint("public_key"),)

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    role: Mapped[str] = mapped_column(String(16))
    public_key: Mapped[str] = mapped_column(String(40))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    revoked_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class RestTokenRow(Base):
    """A REST token: its hash only."""

    __tablename__ = "rest_tokens"
    __table_args__ = (UniqueConstraint("sha256"),)

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    sha256: Mapped[str] = mapped_column(String(64))
    read_only: Mapped[bool]
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    revoked_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class SessionRow(Base):
    """A session; a device has at most one that is not closed."""

    __tablename__ = "sessions"
    __table_args__ = (
        Index(
            "uq_sessions_device_id_open",
            "device_id",
            unique=True,
            sqlite_where=text("state != 'closed'"),
            postgresql_where=text("state != 'closed'"),
        ),
        Index(None, "device_id", "id"),
    )

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    device_id: Mapped[str] = mapped_column(ForeignKey("devices.id"))
    kind: Mapped[str] = mapped_column(String(16))
    state: Mapped[str] = mapped_column(String(16))
    task: Mapped[str | None] = mapped_column(String(200))
    procedure: Mapped[str | None] = mapped_column(String(200))
    method: Mapped[str | None] = mapped_column(String(64))
    replay: Mapped[bool]
    time_scale: Mapped[float]
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    closed_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    epoch: Mapped[int]
    close_reason: Mapped[str | None] = mapped_column(String(200))
    error: Mapped[str | None] = mapped_column(Text)


class StepEventRow(Base):
    """A step event."""

    __tablename__ = "step_events"
    __table_args__ = (UniqueConstraint("session_id", "ordinal"),)

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    session_id: Mapped[str] = mapped_column(ForeignKey("sessions.id", ondelete="CASCADE"))
    ordinal: Mapped[int] = mapped_column(BigInteger)
    step_id: Mapped[int]
    title: Mapped[str] = mapped_column(Text)
    kind: Mapped[str] = mapped_column(String(16))
    frame_idx: Mapped[int | None] = mapped_column(BigInteger)
    device_time_ns: Mapped[int] = mapped_column(BigInteger)
    epoch: Mapped[int]
    detected_at: Mapped[datetime] = mapped_column(UtcDateTime)
    confidence: Mapped[float]
    branch: Mapped[str] = mapped_column(String(32))
    evidence: Mapped[dict[str, Any]] = mapped_column(JSON)
    occurrence: Mapped[int]
    retracted: Mapped[bool]
    retracted_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    retracted_by: Mapped[str | None] = mapped_column(String(64))
    retraction_evidence: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))


class KeyStepRow(Base):
    """A key step of a guided session's progress; extracted ones are in revisions."""

    __tablename__ = "key_steps"
    __table_args__ = (UniqueConstraint("session_id", "source", "position"),)

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    session_id: Mapped[str] = mapped_column(ForeignKey("sessions.id", ondelete="CASCADE"))
    position: Mapped[int]
    title: Mapped[str] = mapped_column(Text)
    status: Mapped[str] = mapped_column(String(16))
    source: Mapped[str] = mapped_column(String(16))
    step_id: Mapped[int | None]
    start_device_time_ns: Mapped[int | None] = mapped_column(BigInteger)
    end_device_time_ns: Mapped[int | None] = mapped_column(BigInteger)
    exemplar_device_time_ns: Mapped[int | None] = mapped_column(BigInteger)
    start_s: Mapped[float | None]
    end_s: Mapped[float | None]
    exemplar_s: Mapped[float | None]
    confidence: Mapped[float | None]
    exemplar_path: Mapped[str | None] = mapped_column(Text)
    exemplar_width: Mapped[int | None]
    exemplar_height: Mapped[int | None]
    provenance: Mapped[dict[str, Any]] = mapped_column(JSON)


class KeyStepRevisionRow(Base):
    """All extracted key steps of a session as they were after one change; never written again."""

    __tablename__ = "key_step_revisions"
    __table_args__ = (UniqueConstraint("session_id", "job_id"),)

    session_id: Mapped[str] = mapped_column(
        ForeignKey("sessions.id", ondelete="CASCADE"), primary_key=True
    )
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    origin: Mapped[str] = mapped_column(String(16))
    parent: Mapped[int | None]
    job_id: Mapped[str | None] = mapped_column(String(40))
    changes: Mapped[list[Any]] = mapped_column(JSON)
    provenance: Mapped[dict[str, Any]] = mapped_column(JSON)
    timeline: Mapped[list[Any]] = mapped_column(JSON)
    key_steps: Mapped[list[Any]] = mapped_column(JSON)


class JobRow(Base):
    """An extraction job."""

    __tablename__ = "jobs"
    __table_args__ = (Index(None, "session_id", "id"),)

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    session_id: Mapped[str] = mapped_column(ForeignKey("sessions.id", ondelete="CASCADE"))
    recordings: Mapped[list[Any]] = mapped_column(JSON)
    options: Mapped[dict[str, Any]] = mapped_column(JSON)
    state: Mapped[str] = mapped_column(String(16))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    started_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    finished_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    attempts: Mapped[int]
    progress: Mapped[dict[str, Any]] = mapped_column(JSON)
    error: Mapped[str | None] = mapped_column(Text)
    revision: Mapped[int | None]
    notes: Mapped[list[Any]] = mapped_column(JSON)
