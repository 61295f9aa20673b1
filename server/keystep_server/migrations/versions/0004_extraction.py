"""Extraction jobs; key steps that were extracted become revisions, which only grow in number."""

import json
from collections import defaultdict
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_FIELDS = (
    *("id", "title", "status", "start_device_time_ns", "end_device_time_ns"),
    *("exemplar_device_time_ns", "start_s", "end_s", "exemplar_s", "confidence"),
    *("exemplar_path", "exemplar_width", "exemplar_height", "provenance"),
)


def upgrade() -> None:
    """Make the tables, and revision 1 of what was extracted so far."""
    revisions = op.create_table(
        "key_step_revisions",
        sa.Column("session_id", sa.String(length=40), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("origin", sa.String(length=16), nullable=False),
        sa.Column("parent", sa.Integer(), nullable=True),
        sa.Column("job_id", sa.String(length=40), nullable=True),
        sa.Column("changes", sa.JSON(), nullable=False),
        sa.Column("provenance", sa.JSON(), nullable=False),
        sa.Column("timeline", sa.JSON(), nullable=False),
        sa.Column("key_steps", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(
            ["session_id"],
            ["sessions.id"],
            name=op.f("fk_key_step_revisions_session_id_sessions"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("session_id", "number", name=op.f("pk_key_step_revisions")),
        sa.UniqueConstraint(
            "session_id", "job_id", name=op.f("uq_key_step_revisions_session_id_job_id")
        ),
    )
    op.create_table(
        "jobs",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("session_id", sa.String(length=40), nullable=False),
        sa.Column("recordings", sa.JSON(), nullable=False),
        sa.Column("options", sa.JSON(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("progress", sa.JSON(), nullable=False),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("revision", sa.Integer(), nullable=True),
        sa.Column("notes", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(
            ["session_id"],
            ["sessions.id"],
            name=op.f("fk_jobs_session_id_sessions"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_jobs")),
    )
    op.create_index(op.f("ix_jobs_session_id_id"), "jobs", ["session_id", "id"], unique=False)
    _move(revisions)


def _move(revisions: sa.Table) -> None:
    connection = op.get_bind()
    columns: list[Any] = [
        sa.column(name) for name in ("session_id", "source", "position", *_FIELDS)
    ]
    table = sa.table("key_steps", *columns)
    query = sa.select(table).where(table.c.source == "extracted").order_by(table.c.position)
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in connection.execute(query).mappings():
        document = {name: row[name] for name in _FIELDS}
        if isinstance(document["provenance"], str):  # SQLite's column knows no JSON here
            document["provenance"] = json.loads(document["provenance"])
        found[row["session_id"]].append({"epoch": None, **document})
    for session_id, key_steps in found.items():
        connection.execute(
            revisions.insert().values(
                session_id=session_id,
                number=1,
                created_at=datetime.now(UTC),
                origin="closing",
                changes=[],
                provenance={},
                timeline=[],
                key_steps=key_steps,
            )
        )
    connection.execute(sa.delete(table).where(table.c.source == "extracted"))


def downgrade() -> None:
    """Drop the tables; extracted key steps go with them."""
    op.drop_index(op.f("ix_jobs_session_id_id"), table_name="jobs")
    op.drop_table("jobs")
    op.drop_table("key_step_revisions")
