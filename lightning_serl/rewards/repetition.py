"""How much the problems of one prompt repeat each other (R-Zero)."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_serl.pool.similarity import TextIndex
from lightning_serl.pool.words import tokenise


def repetition_shares(proposals: Sequence[Sequence[str]], distance: float = 0.5) -> list[float]:
    r"""The share of each proposal's cluster among all n proposals, :math:`|C| / n`; 0 for one without a problem.

    R-Zero (arXiv 2508.05004, eq. 4): agglomerative clustering with average linkage joins the two nearest clusters until
    all are ``distance`` apart or more. The paper's distance is 1 less BLEU; here it is 1 less the F of ROUGE-L, with
    which this package also judges novelty. A proposal alone in its cluster has the share 1 / n, as in the paper.

    Args:
        proposals: The problems of each of n proposals; those of one proposal are compared as one text.
        distance: In [0, 1].
    """
    clusters = [[place] for place, problems in enumerate(proposals) if problems]
    index = TextIndex()
    for problems in proposals:
        index.add(tokenise("\n".join(problems)))
    queries = [index.query(tokenise("\n".join(problems))) for problems in proposals]
    apart = [[1.0 - index.score(query, other) for other in range(len(proposals))] for query in queries]

    def between(a: list[int], b: list[int]) -> float:
        return sum((apart[i][j] + apart[j][i]) / 2 for i in a for j in b) / (len(a) * len(b))

    while len(clusters) > 1:
        pairs = [(between(a, b), i, j) for i, a in enumerate(clusters) for j, b in enumerate(clusters) if i < j]
        nearest, i, j = min(pairs)
        if nearest >= distance:
            break
        clusters[i] += clusters.pop(j)
    shares = [0.0] * len(proposals)
    for cluster in clusters:
        for place in cluster:
            shares[place] = len(cluster) / len(proposals)
    return shares
