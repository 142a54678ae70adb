"""The number of a step's last write, by which a repeated one is known; GPUs among those who give signs of life."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_KIND = "ck_heartbeats_kind"


def upgrade() -> None:
    """Build."""
    op.add_column("steps", sa.Column("last_write", sa.BigInteger(), server_default=sa.text("0"), nullable=False))
    op.drop_constraint(op.f(_KIND), "heartbeats", type_="check")
    op.create_check_constraint(op.f(_KIND), "heartbeats", "kind IN ('api', 'dispatcher', 'gpu', 'node')")


def downgrade() -> None:
    """Take down."""
    op.execute("DELETE FROM heartbeats WHERE kind = 'gpu'")
    op.drop_constraint(op.f(_KIND), "heartbeats", type_="check")
    op.create_check_constraint(op.f(_KIND), "heartbeats", "kind IN ('api', 'dispatcher', 'node')")
    op.drop_column("steps", "last_write")
