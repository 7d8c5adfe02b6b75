"""Label-free signs of a run's health, and the callback that warns of them."""

from __future__ import annotations

from lightning_serl.callbacks.health.monitor import Health

__all__ = ["Health"]
