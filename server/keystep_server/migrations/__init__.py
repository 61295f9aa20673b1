"""Alembic's migrations of the server's tables; run when the store is opened."""
