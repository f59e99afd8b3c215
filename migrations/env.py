"""Alembic's environment: `app.migrate` hands it a connection; `alembic` on the command line opens its own."""

from alembic import context
from sqlmodel import SQLModel

from app import models  # noqa: F401  fills the metadata
from app.db import Database
from app.migrate import is_described
from app.settings import load_settings


def run(connection):
    context.configure(
        connection=connection,
        target_metadata=SQLModel.metadata,
        compare_type=True,
        include_name=is_described,
        transaction_per_migration=False,
    )
    with context.begin_transaction():
        context.run_migrations()


given = context.config.attributes.get("connection")
if given is not None:
    run(given)
else:
    database = Database(load_settings().database_url.get_secret_value())
    database.write(run)
    database.close()
