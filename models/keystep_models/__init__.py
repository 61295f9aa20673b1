"""The science: cues, key steps, procedure step recognition."""
