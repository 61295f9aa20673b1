"""Importers of what needs nothing but this package: video files and folders of data sets."""
