"""``python -m lightning_serl``."""

from lightning_serl.cli import entry

if __name__ == "__main__":
    entry()
