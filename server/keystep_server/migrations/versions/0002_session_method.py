"""How a session recognises its steps; when, by what and why an event was retracted."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns; sessions that were guided before ran B3."""
    op.add_column("sessions", sa.Column("method", sa.String(length=64), nullable=True))
    op.execute("UPDATE sessions SET method = 'b3' WHERE procedure IS NOT NULL")
    op.add_column(
        "step_events", sa.Column("retracted_at", sa.DateTime(timezone=True), nullable=True)
    )
    op.add_column("step_events", sa.Column("retracted_by", sa.String(length=64), nullable=True))
    op.add_column("step_events", sa.Column("retraction_evidence", sa.JSON(), nullable=True))


def downgrade() -> None:
    """Drop the columns."""
    op.drop_column("step_events", "retraction_evidence")
    op.drop_column("step_events", "retracted_by")
    op.drop_column("step_events", "retracted_at")
    op.drop_column("sessions", "method")
