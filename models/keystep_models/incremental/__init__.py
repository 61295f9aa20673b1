"""Temporal encoders that run tick by tick, with their caches in a pool of slots; no torch here."""
