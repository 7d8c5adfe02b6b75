"""Writes the files of the run folder and the lines on the terminal."""

from lightning_serl.callbacks.run_folder.comparison_record import ComparisonRecord
from lightning_serl.callbacks.run_folder.ledger import Ledger
from lightning_serl.callbacks.run_folder.profile import RoundProfile
from lightning_serl.callbacks.run_folder.report_page import ReportPage
from lightning_serl.callbacks.run_folder.summary import Summary
from lightning_serl.callbacks.run_folder.terminal import Phases, RoundProgress

__all__ = ["ComparisonRecord", "Ledger", "Phases", "ReportPage", "RoundProfile", "RoundProgress", "Summary"]
