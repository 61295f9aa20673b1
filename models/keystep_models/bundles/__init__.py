"""Bundles: one folder with all that guiding by one expert's key steps needs."""
