"""Rendered sessions with exact truth: a task, people who do it, and a headset that looks on.

Everything here is **simulated**. A seed decides all of it, bit for bit on one machine and one set
of library versions. What it is fitted to, and where it is easier than reality: docs/simulation.md.
"""
