"""Run the migrations on the connection that `Store` hands over."""

from alembic import context

from wetread.clinic.store import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
with context.begin_transaction():
    context.run_migrations()
