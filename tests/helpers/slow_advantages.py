"""Every algorithm a second time: the advantages of tokens in Python floats and loops, and what the names mean."""

import math
import statistics

_SHARED = {"aggregation": "token", "kl_aggregation": "token", "eps": 1e-4, "clamp": None}
_PUBLISHED = {"aggregation": "token", "kl_aggregation": "sequence", "eps": 1e-9, "clamp": 10.0}


def _rule(shared, baseline, scale, kl, kl_in, **more):
    return shared | {"baseline": baseline, "scale": scale, "kl": kl, "kl_in": kl_in} | more


RULES = {
    ("default", "grpo"): _rule(_SHARED, "group", "group", "k3", "loss"),
    ("default", "dr_grpo"): _rule(
        _SHARED, "group", "none", "k3", "loss", aggregation="constant", kl_aggregation="constant"
    ),
    ("default", "rloo"): _rule(_SHARED, "loo", "none", "k1", "reward"),
    ("default", "reinforce++"): _rule(_SHARED, "batch", "token", "k1", "return"),
    ("default", "reinforce++_baseline"): _rule(_SHARED, "group", "token", "k2", "loss"),
    ("serl", "grpo"): _rule(_PUBLISHED, "group", "group", "k3", "loss"),
    ("serl", "dr_grpo"): _rule(_PUBLISHED, "group", "none", "k1", "return"),
    ("serl", "rloo"): _rule(_PUBLISHED, "loo", "token", "k1", "return"),
    ("serl", "reinforce++"): _rule(_PUBLISHED, "none", "token", "k1", "return"),
    ("serl", "reinforce++_baseline"): _rule(_PUBLISHED, "group", "token", "k1", "return"),
}


def rules(style="default", name="grpo", **given):
    """What applies under these options of ``Objective``."""
    found = RULES[style, name] | given
    if style == "default":
        found["kl_aggregation"] = found["aggregation"]
    return found


def slow_kl(kind, logp, ref):
    """One token."""
    x = logp - ref
    return {"k1": x, "k2": x * x / 2, "k3": math.exp(-x) - 1 + x}[kind]


def slow_shape(scores, groups, baseline, scale, weights, eps):
    """The definition of an advantage, response by response; what ``token`` adds belongs to tokens."""
    rows = [i for i, w in enumerate(weights) if w > 0]
    members = {g: [i for i in rows if groups[i] == g] for g in groups}

    def flat(indices):
        return len(indices) < 2 or len({scores[i] for i in indices}) == 1

    def centred(i):
        mates = members[groups[i]]
        if baseline == "none":
            return scores[i]
        if baseline == "batch":
            return 0.0 if len({scores[j] for j in rows}) == 1 else scores[i] - statistics.fmean(scores[j] for j in rows)
        if flat(mates):
            return 0.0
        if baseline == "group":
            return scores[i] - statistics.fmean(scores[j] for j in mates)
        return scores[i] - statistics.fmean(scores[j] for j in mates if j != i)

    differences = {i: centred(i) for i in rows}
    out = [0.0] * len(scores)
    for i in rows:
        value = differences[i]
        if scale == "group":
            mates = members[groups[i]]
            value = 0.0 if flat(mates) else value / (statistics.stdev(scores[j] for j in mates) + eps)
        elif scale == "batch":
            spread = len(rows) > 1 and len(set(differences.values())) > 1
            value = value / (statistics.stdev(differences.values()) + eps) if spread else 0.0
        out[i] = value
    return out


def slow_whiten(rows):
    """Lists of token advantages, whitened over all of them."""
    tokens = [a for row in rows for a in row]
    if not tokens:
        return rows
    mean = math.fsum(tokens) / len(tokens)
    variance = math.fsum((a - mean) ** 2 for a in tokens) / len(tokens)
    return [[(a - mean) / math.sqrt(max(variance, 1e-8)) for a in row] for row in rows]


def slow_advantages(rows, beta, rule):
    """Token advantages of every row, in the order of the rows.

    Args:
        rows: Dicts with ``score``, ``weight``, ``group``, ``attempt``, ``centred``, ``tokens``, and ``logp`` and
            ``ref`` (lists, or None where nobody knows them).
        beta: Weight of the divergence.
        rule: What :func:`rules` gives.
    """
    out = [None] * len(rows)
    for attempt in {row["attempt"] for row in rows}:
        here = [i for i, row in enumerate(rows) if row["attempt"] == attempt]
        divergence = {}
        for i in here:
            known = rows[i]["logp"] is not None and rule["kl_in"] != "loss"
            pairs = zip(rows[i]["logp"], rows[i]["ref"], strict=True) if known else ((0.0, 0.0),) * rows[i]["tokens"]
            divergence[i] = [slow_kl(rule["kl"], a, b) for a, b in pairs]
        scores = {i: rows[i]["score"] for i in here}
        if rule["kl_in"] == "reward":
            scores = {i: scores[i] - beta * sum(divergence[i]) for i in here}
        plain = [i for i in here if not rows[i]["centred"]]
        shaped = slow_shape(
            [scores[i] for i in plain], [rows[i]["group"] for i in plain], rule["baseline"], rule["scale"],
            [rows[i]["weight"] for i in plain], rule["eps"],
        )  # fmt: skip
        for i, value in zip(plain, shaped, strict=True):
            scores[i] = value if rule["clamp"] is None else max(-rule["clamp"], min(rule["clamp"], value))
        for i in here:
            count, later = rows[i]["tokens"], divergence[i] if rule["kl_in"] == "return" else [0.0]
            out[i] = [scores[i] - beta * sum(later[t:]) for t in range(count)]
        if rule["scale"] == "token":
            for i, row in zip(plain, slow_whiten([out[i] for i in plain]), strict=True):
                out[i] = row
        for i in here:
            out[i] = [a * rows[i]["weight"] for a in out[i]]
    return out
