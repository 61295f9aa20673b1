"""Ingest, sessions, inference, guidance, REST and storage."""
