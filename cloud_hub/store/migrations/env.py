"""What Alembic runs to migrate, on the connection that `store.engine` (or `scripts/new-migration`) gave."""

from alembic import context

from cloud_hub.store.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,  # SQLite alters a table by copying it
    transactional_ddl=True,  # of SQLite too, as `store.engine` begins its transactions
)
with context.begin_transaction():
    context.run_migrations()
