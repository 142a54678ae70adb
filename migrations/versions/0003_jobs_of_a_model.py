"""An index for the list of one model's jobs, newest first."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Build."""
    op.create_index(
        "ix_jobs_model_id_created_at_id", "jobs", ["model_id", sa.literal_column("created_at DESC"), "id"], unique=False
    )


def downgrade() -> None:
    """Take down."""
    op.drop_index("ix_jobs_model_id_created_at_id", table_name="jobs")
