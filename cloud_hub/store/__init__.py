"""The hub's database: tables, engine, migrations. SQLAlchemy Core, async, SQLite or PostgreSQL."""
