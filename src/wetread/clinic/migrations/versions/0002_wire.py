"""The clinic's wire: what arrives by DICOM, what goes out, who may come in."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add what the wire needs to a database that may be full."""
