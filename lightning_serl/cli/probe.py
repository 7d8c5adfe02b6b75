"""``lightning-serl probe``: whether a fit has something to learn from, measured without labels before it begins."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from lightning_serl.cli.lightning_cli import SelfPlayCLI
from lightning_serl.cli.plan import PlanCLI
from lightning_serl.cli.plan_report import report_values
from lightning_serl.cli.probe_advice import changes, verdict
from lightning_serl.cli.probe_figures import Figures, Setting, figures_of, values_of
from lightning_serl.cli.probe_options import help_text, split_probe_options
from lightning_serl.cli.probe_report import report_lines
from lightning_serl.cli.run_folder import CommandState
from lightning_serl.datamodules import checks
from lightning_serl.datamodules.probing import ProbeDataModule, ProbeStream, TokenBound, check_bound
from lightning_serl.errors import InputError


class ProbeCLI(SelfPlayCLI):
    """Takes a command line of ``fit`` with ``--probe.*`` options, answers problems, and prints what they say."""

    datamodule_kind = ProbeDataModule

    def __init__(self, args: Sequence[str], state: CommandState) -> None:
        self.asked, self.fit_options = split_probe_options(args[1:])
        with tempfile.TemporaryDirectory(prefix="probe-") as self.folder:
            super().__init__(["fit", *self.fit_options], state)

    def settle_run_folder(self, options: Namespace) -> None:
        """A probe leaves no run: what callbacks write goes to a folder that is removed."""
        self.state.command = "probe"
        trainer = options.trainer
        trainer.default_root_dir, trainer.logger, trainer.fast_dev_run = self.folder, False, False
        trainer.limit_predict_batches = None
        options.ckpt_path, options.data.predict_to = None, None

    def run(self, subcommand: str) -> None:
        """Answer the problems and print the report; after Ctrl-C, that of what there is."""
        trainer, data = self.trainer, self.datamodule
        checks.check_fit(trainer, self.model, data)
        if not data.engine.samples_policy:
            raise InputError("a probe needs a model to answer, and data.engine replays recordings; use another engine")
        samples = data.round_options.samples_per_prompt
        check_bound(self.asked.tokens, samples, data.sampling.longest, data.brings)
        stream = data.begin_probe(self.asked.tokens, self.asked.swept)
        trainer.callbacks.append(TokenBound(data, self.asked.tokens))
        rank_zero_info(f"probe: at most {self.asked.tokens:,} tokens are written (--probe.tokens); nothing is trained")
        whole = False
        try:
            trainer.predict(self.model, data, return_predictions=False)
            whole = True
        finally:
            if trainer.is_global_zero and stream.probed is not None:
                self._report(stream, whole)

    def _report(self, stream: ProbeStream, whole: bool) -> None:
        """Print the report and write its figures."""
        assert stream.probed is not None
        stream.probed.tokens = self.datamodule.engine.tokens_written
        figures = figures_of(stream.probed, self._setting())
        if not figures.judged.problems:
            print("probe: stopped before a problem was answered")
            return
        said, found = verdict(figures), changes(figures)
        cost = self._cost(figures) if whole else "not computed, because the probe was stopped"
        for line in report_lines(figures, said.sentence, found, cost):
            print(line)
        values = values_of(figures) | {
            "complete": whole,
            "outlook": said.outlook,
            "verdict": said.sentence,
            "changes": found,
            "cost": cost if isinstance(cost, dict) else None,
        }
        self.asked.file.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        print(f"written: {self.asked.file}")

    def _setting(self) -> Setting:
        data = self.datamodule
        size, sampling = data.round_options, data.writing.sampling
        seeds = data.mix_ratio if data.brings else 1.0
        return Setting(
            size.prompts_per_round,
            size.max_attempts,
            seeds,
            data.solve.answer_format,
            sampling.longest,
            sampling.temperature,
        )

    def _cost(self, figures: Figures) -> dict[str, Any] | str:
        """Tokens, seconds and memory of the whole run by ``lightning-serl plan``, or why it has no plan."""
        probed, answers = figures.probed, figures.judged
        given = {"answer_tokens": max(1.0, answers.mean_tokens), "kept": max(0.01, figures.yields.kept)}
        if figures.yields.accepted:
            given["accepted"] = figures.yields.accepted
        if probed.calls and probed.texts:
            given["problem_tokens"] = max(1.0, probed.texts / probed.calls / self.datamodule.writing.prompts_per_call)
        options = [f"--plan.{name}={value}" for name, value in given.items()]
        try:
            plan = _Foreseen(["plan", *self.fit_options, *options], CommandState())
        except InputError as error:
            return f"no plan ({error})"
        values = report_values(plan.report)
        tokens = sum(n for name, n in values["tokens"].items() if name in ("writing", "answering", "probing"))
        return {
            "device": values["device"]["name"],
            "rounds": values["rounds"],
            "round_tokens": tokens,
            "run_tokens": tokens * values["rounds"] if values["rounds"] else None,
            "round_seconds": values["round_seconds"],
            "run_seconds": values["run_seconds"],
            "memory": values["memory"]["peak"],
            "fits": values["fits"],
        }


class _Foreseen(PlanCLI):
    """A plan that is kept rather than printed."""

    def run(self, subcommand: str) -> None:
        """Make the plan."""
        self.report = self.make_plan()


def show_help() -> None:
    """Print the options of the command."""
    print(help_text())
