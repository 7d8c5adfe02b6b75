"""Draws ``curves.png`` from ``metrics.jsonl``."""

from __future__ import annotations

import json
from pathlib import Path

from lightning_serl.checkpoints.atomic_write import write_whole

_PANELS = (
    ("accuracy on held-out problems", lambda k: k.startswith("val/") and k.endswith(("/pass@1", "/mean@k", "/maj@k"))),
    (
        "agreement and answers",
        lambda k: k in ("serl/vote/agreement_mean", "serl/vote/no_answer_frac", "serl/filter/yield"),
    ),
    ("KL to the starting policy", lambda k: k == "kl"),
    ("length of answers, tokens", lambda k: k == "completions/mean_length"),
)


def draw_curves(metrics: Path, target: Path) -> None:
    """Draw the metrics of a run over its optimizer steps; panels without data are left out.

    Args:
        metrics: The file ``metrics.jsonl``; if it does not exist, nothing is drawn.
        target: The PNG file to write.
    """
    if not metrics.exists():
        return
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines() if line]
    series = []
    for title, wanted in _PANELS:
        keys = sorted({k for row in rows for k in row if wanted(k)})
        curves = {k: [(r["step"], r[k]) for r in rows if r.get(k) is not None] for k in keys}
        if any(curves.values()):
            series.append((title, curves))
    if not series:
        return
    figure, axes = pyplot.subplots(len(series), 1, figsize=(7, 2.4 * len(series)), sharex=True, squeeze=False)
    for axis, (title, curves) in zip(axes[:, 0], series, strict=True):
        for key, points in curves.items():
            axis.plot(
                *zip(*points, strict=True),
                marker="o",
                markersize=3,
                label=key.removeprefix("val/").removeprefix("serl/"),
            )
        axis.set_title(title, fontsize=10, loc="left")
        axis.legend(fontsize=7, frameon=False)
        axis.grid(alpha=0.3)
    axes[-1, 0].set_xlabel("optimizer step")
    figure.tight_layout()
    # without date and version in the file, equal runs write equal files
    write_whole(target, lambda file: figure.savefig(file, format="png", dpi=110, metadata={"Software": None}))
    pyplot.close(figure)
