"""Callbacks: filters, reference sync, rollout refresh and the run folder."""

from lightning_serl.callbacks.checkpoints import Checkpoints
from lightning_serl.callbacks.collapse_guard import CollapseGuard
from lightning_serl.callbacks.defaults import default_callbacks
from lightning_serl.callbacks.export import Export
from lightning_serl.callbacks.filters.difficulty import DifficultyFilter, ZeroSpread
from lightning_serl.callbacks.filters.novelty import NoveltyFilter
from lightning_serl.callbacks.filters.quality import QualityFilter
from lightning_serl.callbacks.health import Health
from lightning_serl.callbacks.keep_best import KeepBest
from lightning_serl.callbacks.loggers.tables import TrackerTables
from lightning_serl.callbacks.memory_plan import MemoryPlan
from lightning_serl.callbacks.publishing.push_to_hub import PushToHub
from lightning_serl.callbacks.reference_sync import ReferenceSync
from lightning_serl.callbacks.rollout_hooks import GroupFilter, InstructionFilter, RolloutHooks
from lightning_serl.callbacks.rollout_refresh import RolloutRefresh
from lightning_serl.callbacks.run_folder.comparison_record import ComparisonRecord
from lightning_serl.callbacks.run_folder.ledger import Ledger
from lightning_serl.callbacks.run_folder.profile import RoundProfile
from lightning_serl.callbacks.run_folder.report_page import ReportPage
from lightning_serl.callbacks.run_folder.summary import Summary
from lightning_serl.callbacks.run_folder.terminal import Phases, RoundProgress
from lightning_serl.callbacks.stop_early import StopEarly

__all__ = [
    "Checkpoints",
    "CollapseGuard",
    "ComparisonRecord",
    "DifficultyFilter",
    "Export",
    "GroupFilter",
    "Health",
    "InstructionFilter",
    "KeepBest",
    "Ledger",
    "MemoryPlan",
    "NoveltyFilter",
    "Phases",
    "PushToHub",
    "QualityFilter",
    "ReferenceSync",
    "ReportPage",
    "RolloutHooks",
    "RolloutRefresh",
    "RoundProfile",
    "RoundProgress",
    "StopEarly",
    "Summary",
    "TrackerTables",
    "ZeroSpread",
    "default_callbacks",
]
