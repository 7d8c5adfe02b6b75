"""Datamodules: streams of self-played rounds, evaluation sets and predictions."""

from lightning_serl.datamodules.rounds.setup import RoundOptions
from lightning_serl.datamodules.self_play import SelfPlayDataModule
from lightning_serl.datamodules.sources.writing import Writing
from lightning_serl.datamodules.streams.evaluation import EvaluationOptions

__all__ = ["EvaluationOptions", "RoundOptions", "SelfPlayDataModule", "Writing"]
