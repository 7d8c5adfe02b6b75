"""Checkpoint files: writing, checking, reading and resuming."""
