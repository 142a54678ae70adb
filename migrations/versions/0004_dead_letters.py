"""An index for the list of dead letters, newest first."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Build."""
    op.create_index(
        "ix_jobs_dead_letters",
        "jobs",
        ["user_id", sa.literal_column("created_at DESC"), "id"],
        unique=False,
        postgresql_where=sa.text("(error_json ->> 'code') IN ('attempts_exhausted', 'poison')"),
    )


def downgrade() -> None:
    """Take down."""
    op.drop_index("ix_jobs_dead_letters", table_name="jobs")
