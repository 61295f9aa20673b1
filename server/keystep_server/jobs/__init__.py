"""Extraction jobs: a queue of subprocesses beside the live sessions."""
