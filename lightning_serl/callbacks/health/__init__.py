"""Label-free signs of trouble, and the callback that watches them."""

from __future__ import annotations

from lightning_serl.callbacks.health.monitor import Health

__all__ = ["Health"]
