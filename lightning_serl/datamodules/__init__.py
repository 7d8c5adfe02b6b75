"""Datamodules: the stream of self-played rounds, evaluation sets and predictions."""

from lightning_serl.datamodules.evaluation import EvaluationOptions
from lightning_serl.datamodules.round import RoundOptions
from lightning_serl.datamodules.self_play import SelfPlayDataModule

__all__ = ["EvaluationOptions", "RoundOptions", "SelfPlayDataModule"]
