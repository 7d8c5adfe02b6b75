"""Checkpoint files: how they are written, checked, read and resumed from."""
