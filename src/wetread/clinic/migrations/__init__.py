"""Alembic migrations of the clinic's database; `Store` runs them when it opens."""
