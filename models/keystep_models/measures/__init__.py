"""Measures that say how good results are; numpy and plain Python only."""
