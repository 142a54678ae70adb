"""An index in the order in which due steps are claimed."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Build."""
    op.create_index(
        "ix_jobs_claim_order",
        "jobs",
        [sa.text("(CASE priority WHEN 'high' THEN 0 WHEN 'normal' THEN 1 ELSE 2 END)"), "created_at", "id"],
        unique=False,
        postgresql_where=sa.text("status IN ('queued', 'running')"),
    )


def downgrade() -> None:
    """Take down."""
    op.drop_index("ix_jobs_claim_order", table_name="jobs")
