"""Guidance from one expert's key steps: what the wearer does now, and what is done."""
