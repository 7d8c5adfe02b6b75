"""A logger for Trackio, and what every logger of the Trainer is sent besides numbers."""

from lightning_serl.callbacks.loggers.tables import TrackerTables
from lightning_serl.callbacks.loggers.trackio import TrackioLogger

__all__ = ["TrackerTables", "TrackioLogger"]
