"""Key-step extraction (STEPs)."""
