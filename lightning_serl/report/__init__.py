"""The report of a run: one page that shows what its folder holds, without a network.

It reads the files of run folders alone and imports neither torch nor Lightning, so that the command answers at once.
"""

from lightning_serl.report.page import PAGE, PAGE_BYTES, write_report

__all__ = ["PAGE", "PAGE_BYTES", "write_report"]
