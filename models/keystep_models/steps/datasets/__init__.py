"""Published data sets' files, and simulated sessions' labels, as feature folders."""
