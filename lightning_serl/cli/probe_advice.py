"""What ``lightning-serl probe`` concludes: one verdict, and what to change, each change with an option to type."""

from __future__ import annotations

from math import ceil
from typing import Literal, NamedTuple

from lightning_serl.cli.probe_figures import AtTemperature, Figures
from lightning_serl.evaluation.reading_report import unread_form

Outlook = Literal["likely", "uncertain", "unlikely"]

#: Trainability below which an improvement is unlikely, and from which on it is likely.
UNLIKELY, LIKELY = 0.05, 0.1
# Share of answers that are cut off or cannot be read from which on something should be changed, and from which on votes
# mean nothing.
_OFTEN, _MOSTLY = 0.1, 0.6
# Agreement from which on little is left, and stability of votes below which there is no majority to learn.
_AGREED, _SCATTERED = 0.85, 0.3
# Share of a temperature's gain in trainability that is worth a change, if it is twice its standard error.
_GAIN = 0.03
# Share of accepted problems below which the source should be changed.
_ACCEPTED = 0.3
# A sentence that asks for short answers.
_SHORT = "Answer with the number or word alone."


class Verdict(NamedTuple):
    """The outlook of a run, and the sentence that says it."""

    outlook: Outlook
    sentence: str


def verdict(figures: Figures) -> Verdict:
    """Whether training is likely to raise accuracy, by the yield of a round first, then by trainability."""
    answers, yields = figures.judged, figures.yields
    one = answers.trainability
    shown = f"trainability {one.figure:.2f} ± {one.error:.2f}"
    if not answers.problems:
        return Verdict("uncertain", "nothing was measured: no problem was answered")
    if yields.kept == 0:
        most = max(yields.reasons, key=lambda r: yields.reasons[r], default="none")
        return Verdict("unlikely", f"rounds would be empty: no group would be trained on (mostly {most}; {shown})")
    if one.figure < UNLIKELY:
        return Verdict("unlikely", f"a vote has little to raise here: {_why_low(figures)} ({shown})")
    trained = f"a round would train on {yields.trained:.0f} of {figures.setting.prompts} groups"
    moved = (
        f"half of a problem's answers show its majority in {_percent(one.half_vote)} of the cases, and "
        f"{_percent(one.headroom)} of the answers are not in it yet"
    )
    if one.figure < LIKELY:
        return Verdict("uncertain", f"a small improvement is possible: {moved} ({shown}); {trained}")
    return Verdict("likely", f"an improvement is likely: {moved} ({shown}); {trained}")


def _why_low(figures: Figures) -> str:
    """The reason of a low figure."""
    answers = figures.judged
    if answers.readable < 1 - _MOSTLY:
        return f"{_percent(1 - answers.readable)} of the answers cannot be read"
    if answers.agreement >= _AGREED:
        return f"the answers agree already ({_percent(answers.agreement)})"
    if answers.trainability.by_chance >= 0.5 * max(0.1, answers.trainability.half_vote):
        return f"different problems get the same answers ({_percent(answers.top_answer)} of the votes are one answer)"
    return f"the answers scatter, so that the majority is an accident ({_percent(answers.agreement)} agree)"


def changes(figures: Figures) -> list[str]:
    """What to change, the widest effect first; each names the option to type."""
    found = [_temperature(figures), _format(figures), _length(figures), _difficulty(figures), _attempts(figures)]
    return [said for said in (*found, *_writing(figures)) if said]


def best_temperature(figures: Figures) -> AtTemperature | None:
    """The temperature with the highest trainability, where its gain is no accident; ``None`` if it is the run's."""
    better = [w for w in figures.sweep if w.gain >= max(_GAIN, 2 * w.error)]
    return max(better, key=lambda w: w.gain, default=None)


def _temperature(figures: Figures) -> str:
    best = best_temperature(figures)
    if best is None:
        return ""
    here = next(w for w in figures.sweep if w.temperature == figures.probed.temperature)
    return (
        f"--model.temperature {best.temperature:g}: trainability {best.answers.trainability.figure:.2f} in place of "
        f"{here.answers.trainability.figure:.2f}, readable answers {_percent(best.answers.readable)} in place of "
        f"{_percent(here.answers.readable)}, on the same problems"
    )


def _format(figures: Figures) -> str:
    """The sentence that asks for the form of the answer."""
    answers, given = figures.judged, figures.setting.answer_format
    if answers.unread >= _OFTEN:
        groups = figures.probed.seeds.groups or figures.probed.written.groups
        said = unread_form(groups) or f"{_percent(answers.unread)} of the answers ended and cannot be read"
    elif answers.truncated >= _OFTEN and _chatters(figures):
        said = f"{_percent(answers.truncated)} of the answers go on until they are cut off, the others are short"
    else:
        return ""
    other = f"'{_SHORT}'" if given is None else "null (the default, which asks for a box)"
    return f"--data.solve.answer_format {other}, or another sentence: {said}"


def _chatters(figures: Figures) -> bool:
    """Whether most answers that end are far shorter than the limit, so that a longer one would not end the others."""
    return 0 < figures.judged.longest_ended <= 0.6 * figures.probed.longest


def _length(figures: Figures) -> str:
    answers, longest = figures.judged, figures.probed.longest
    if answers.truncated >= _OFTEN and not _chatters(figures):
        return f"--data.max_tokens {2 * longest}: {_percent(answers.truncated)} of the answers were cut off"
    if answers.truncated <= 0.01 and 0 < answers.longest_ended <= longest / 4:
        enough = max(8, 2 * answers.longest_ended)
        return (
            f"--data.max_tokens {enough}: 95 % of the answers end within {answers.longest_ended} tokens, and memory is "
            f"planned for {longest}"
        )
    return ""


def _difficulty(figures: Figures) -> str:
    answers, reasons = figures.judged, figures.yields.reasons
    easy = reasons.get("too_easy", 0.0) + reasons.get("no_spread", 0.0)
    if answers.agreement >= _AGREED and easy >= 0.5:
        return (
            f"--data.seeds with harder problems: {_percent(easy)} of these are too easy, {_percent(answers.agreement)} "
            "of their answers agree"
        )
    if answers.readable >= 1 - _MOSTLY and answers.trainability.half_vote < _SCATTERED:
        return (
            "--data.seeds with easier problems, or a stronger model: half of the answers give the same majority on "
            "only "
            f"{_percent(answers.trainability.half_vote)} of these"
        )
    return ""


def _attempts(figures: Figures) -> str:
    yields, prompts = figures.yields, figures.setting.prompts
    if not yields.kept or yields.trained >= 0.9 * prompts:
        return ""
    return (
        f"--data.round.max_attempts {ceil(1 / yields.kept)}: {_percent(yields.kept)} of the groups are kept, and "
        f"{figures.setting.attempts} attempts give {yields.trained:.0f} of {prompts}"
    )


def _writing(figures: Figures) -> list[str]:
    """About the problems that the policy writes."""
    accepted, setting, found = figures.yields.accepted, figures.setting, []
    if accepted is not None and accepted < _ACCEPTED:
        reasons = figures.probed.rejected
        most = max(reasons, key=lambda r: reasons[r])
        option = {
            "duplicate": f"--data.writing.sampling.temperature {setting.writing_temperature + 0.2:g}",
            "truncated_item": f"--data.writing.sampling.max_tokens {2 * setting.writing_tokens}",
        }.get(most, "--data.source seeds")
        found.append(f"{option}: {_percent(1 - accepted)} of the written problems are rejected, mostly as {most}")
    seeds, written = figures.seeds.trainability, figures.written.trainability
    margin = 2 * (seeds.error**2 + written.error**2) ** 0.5
    if min(seeds.problems, written.problems) >= 4 and seeds.figure - written.figure > max(_GAIN, margin):
        found.append(
            f"--data.source seeds or mix:0.5: trainability is {written.figure:.2f} on the problems it writes, "
            f"{seeds.figure:.2f} on the seeds"
        )
    return found


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
