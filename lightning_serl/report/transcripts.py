"""Chooses the problems and transcripts that fit into a page, and packs them."""

from __future__ import annotations

import base64
import gzip
import json
from dataclasses import dataclass, field
from typing import Any

from lightning_serl.report.folder import Row
from lightning_serl.report.problems import Story, shortened
from lightning_serl.report.series import number

#: Most problems in the list of a run; the latest stay.
MOST_PROBLEMS = 30_000
_PROMPT_CHARACTERS = 400
_PROBLEMS_PER_CHUNK = 4_000
# Characters of JSON in one chunk of transcripts, which the browser unpacks at once.
_CHUNK_CHARACTERS = 400_000
# Groups that are packed to find out how well the texts of a run pack.
_TRIED_GROUPS = 60
_TRIES = 6


@dataclass
class Packed:
    """The parts of a run that the page unpacks on demand.

    Attributes:
        problems: Ids of the chunks of the list of problems.
        rounds: Id of the chunk that holds the transcripts of each round.
        chunks: Packed JSON by id.
        left_out: What the page does not hold, as sentences.
        responses: Numbers of recorded responses, and of those whose texts the page holds.
    """

    problems: list[str] = field(default_factory=list)
    rounds: dict[int, str] = field(default_factory=dict)
    chunks: dict[str, str] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    responses: tuple[int, int] = (0, 0)

    @property
    def size(self) -> int:
        """Bytes of all chunks in the page."""
        return sum(map(len, self.chunks.values()))


def packed(value: Any) -> str:
    """JSON, compressed, as base64: no text of a model can end the page's script or be taken for markup."""
    data = json.dumps(value, ensure_ascii=True, separators=(",", ":"), allow_nan=False).encode("ascii")
    return base64.b64encode(gzip.compress(data, compresslevel=6, mtime=0)).decode("ascii")


def pack(story: Story, samples: list[Row], prefix: str, room: int) -> Packed:
    """Pack the problems of a run, and as many of its transcripts as fit into ``room`` bytes.

    Every round gets an equal share. Of a round with more, the later responses of all its groups lose their texts first
    (their answers, scores and lengths stay), then the last groups are left out; texts of problems are shortened.
    """
    out = Packed()
    _pack_problems(story, out, prefix)
    by_round: dict[int, list[Row]] = {}
    for row in samples:
        if isinstance(row.get("round"), int) and isinstance(row.get("responses"), list):
            by_round.setdefault(row["round"], []).append(row)
    groups = {number: [_group(row) for row in rows] for number, rows in sorted(by_round.items())}
    room -= out.size
    share = 0.95 * room / _packed_size([g for found in groups.values() for g in found]) / max(1, len(groups))
    recorded = sum(r["t"] is not None for found in groups.values() for g in found for r in g["r"])
    for _ in range(_TRIES):
        kept = {n: _within(found, int(share)) for n, found in groups.items()}
        chunks, places = _chunks(kept, prefix)
        if (size := sum(map(len, chunks.values()))) <= room:
            break
        share *= 0.9 * room / size
    else:
        kept, chunks, places = {}, {}, {}
    out.chunks |= chunks
    out.rounds = places
    shown = sum(r["t"] is not None for found in kept.values() for g in found for r in g["r"])
    out.responses = recorded, shown
    missing = sum(map(len, groups.values())) - sum(map(len, kept.values()))
    if shown < recorded:
        out.left_out.append(f"the texts of {recorded - shown:,} of {recorded:,} recorded responses (samples.jsonl)")
    if missing:
        out.left_out.append(f"{missing:,} of {sum(map(len, groups.values())):,} recorded groups (samples.jsonl)")
    return out


def _packed_size(groups: list[dict[str, Any]]) -> float:
    """Bytes of packed groups for one character of their JSON, found out on some of them."""
    some = groups[:: max(1, len(groups) // _TRIED_GROUPS)]
    return max(0.05, len(packed(some)) / sum(map(_characters, some))) if some else 1.0


def _pack_problems(story: Story, out: Packed, prefix: str) -> None:
    problems = list(story.problems.values())
    if len(problems) > MOST_PROBLEMS:
        out.left_out.append(f"the first {len(problems) - MOST_PROBLEMS:,} of {len(problems):,} problems (ledger.jsonl)")
        problems = problems[-MOST_PROBLEMS:]
    short = sum(len(p.prompt or "") > _PROMPT_CHARACTERS for p in problems)
    if short:
        out.left_out.append(f"in the list, the ends of {short:,} problems with over {_PROMPT_CHARACTERS} characters")
    for start in range(0, len(problems), _PROBLEMS_PER_CHUNK):
        rows = [
            [
                p.uid, p.round, shortened(p.prompt or "", _PROMPT_CHARACTERS), p.outcome, p.reason,
                None if p.label is None else shortened(p.label, 200), number(p.confidence), p.voted, p.role,
                number(p.mean_score),
            ]
            for p in problems[start : start + _PROBLEMS_PER_CHUNK]
        ]  # fmt: skip
        name = f"{prefix}p{len(out.problems)}"
        out.problems.append(name)
        out.chunks[name] = packed(rows)


def _chunks(groups: dict[int, list[dict[str, Any]]], prefix: str) -> tuple[dict[str, str], dict[int, str]]:
    """Packed transcripts of neighbouring rounds, and the chunk of each round."""
    chunks: dict[str, str] = {}
    places: dict[int, str] = {}
    waiting: dict[int, list[dict[str, Any]]] = {}
    size = 0
    for number_, found in groups.items():
        waiting[number_] = found
        size += sum(_characters(group) for group in found)
        if size >= _CHUNK_CHARACTERS:
            _close(waiting, chunks, places, prefix)
            waiting, size = {}, 0
    if waiting:
        _close(waiting, chunks, places, prefix)
    return chunks, places


def _close(
    waiting: dict[int, list[dict[str, Any]]], chunks: dict[str, str], places: dict[int, str], prefix: str
) -> None:
    name = f"{prefix}t{len(chunks)}"
    chunks[name] = packed({str(n): groups for n, groups in waiting.items()})
    places |= dict.fromkeys(waiting, name)


def _characters(group: dict[str, Any]) -> int:
    """About the characters of a group's JSON."""
    texts = sum(len(r["t"] or "") + 40 + 8 * len(r.get("lp", ())) for r in group["r"])
    about = sum(len(text) for text in group.get("exemplars", ())) + len(group["prompt"] or "")
    return int(texts + about + 120 + sum(len(str(v)) for v in group.get("meta", {}).values()))


def _within(groups: list[dict[str, Any]], room: int) -> list[dict[str, Any]]:
    """The groups of a round with at most ``room`` characters: later texts of each group go first, then groups."""
    if sum(map(_characters, groups)) <= room:
        return groups
    shown: list[set[int]] = [set() for _ in groups]
    left = room - sum(_characters(_without_texts(g, set())) for g in groups)
    while left < 0 and len(groups) > 1:
        left += _characters(_without_texts(groups[-1], set()))
        groups, shown = groups[:-1], shown[:-1]
    for turn in range(max(len(g["r"]) for g in groups)):
        for place, group in enumerate(groups):
            one = group["r"][turn] if turn < len(group["r"]) else None
            if one is not None and one["t"] is not None and len(one["t"]) <= left:
                left -= len(one["t"])
                shown[place].add(turn)
    return [_without_texts(g, kept) for g, kept in zip(groups, shown, strict=True)]


def _without_texts(group: dict[str, Any], kept: set[int]) -> dict[str, Any]:
    """A group with the texts and log-probs of some responses alone."""
    bare = ("t", "pc", "lp")
    responses = [
        r if index in kept or r["t"] is None else {**{k: v for k, v in r.items() if k not in bare}, "t": None}
        for index, r in enumerate(group["r"])
    ]
    return {**group, "r": responses}


def _group(row: Row) -> dict[str, Any]:
    """A row of ``samples.jsonl`` with short names, and nothing in it that the page's JSON cannot hold."""
    out: dict[str, Any] = {"uid": str(row.get("uid", "")), "prompt": str(row.get("prompt", ""))}
    for name in ("role", "label"):
        if isinstance(row.get(name), str):
            out[name] = row[name]
    for name in ("choices", "exemplars"):
        if isinstance(row.get(name), list):
            out[name] = [str(one) for one in row[name]]
    if isinstance(row.get("parent"), dict):
        out["parent"] = {k: v for k, v in row["parent"].items() if isinstance(v, (str, int))}
    if isinstance(row.get("meta"), dict):
        out["meta"] = {str(k): v if isinstance(v, str) else number(v) for k, v in row["meta"].items()}
    out["confidence"] = number(row.get("confidence"))
    out["r"] = [_response(one) for one in row["responses"] if isinstance(one, dict)]
    return out


def _response(one: Row) -> dict[str, Any]:
    out: dict[str, Any] = {"t": one["text"] if isinstance(one.get("text"), str) else None}
    if isinstance(one.get("answer"), str):
        out["a"] = one["answer"]
    out["s"] = number(one.get("score"))
    for short, name in (("n", "tokens"), ("c", "class"), ("more", "left_out")):
        if isinstance(one.get(name), int):
            out[short] = one[name]
    if one.get("finished") is False:
        out["cut"] = 1
    pieces, logprobs = one.get("pieces"), one.get("logprobs")
    if isinstance(pieces, list) and isinstance(logprobs, list) and len(pieces) == len(logprobs):
        out["pc"] = [p for p in pieces if isinstance(p, int)]
        out["lp"] = [number(value) for value in logprobs]
    return out
