"""Reads problems: local files, hub data sets and earlier runs."""
