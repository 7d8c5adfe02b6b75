"""How responses are dealt into optimizer steps and packed into micro-batches."""

from itertools import combinations, pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_serl.objectives.experience import minibatches, partition

LENGTHS = st.lists(st.integers(1, 60), max_size=40)
UIDS = st.lists(st.sampled_from(["a", "b", "c", "d"]), max_size=30)


def padded(lengths, packed):
    return [len(slot) * max((lengths[i] for i in slot), default=0) for slot in packed]


@given(LENGTHS, st.integers(1, 9))
def test_partition_uses_every_row_once_in_exactly_so_many_slots(lengths, slots):
    packed = partition(lengths, slots)
    assert len(packed) == slots
    assert sorted(i for slot in packed for i in slot) == list(range(len(lengths)))
    assert packed == partition(lengths, slots)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=9), st.integers(1, 4))
@settings(max_examples=150)
def test_partition_is_the_best_of_all_contiguous_cuts(lengths, slots):
    ordered = sorted(lengths, reverse=True)
    best = None
    for count in range(min(slots, len(ordered))):
        for cuts in combinations(range(1, len(ordered)), count):
            edges = [0, *cuts, len(ordered)]
            runs = [ordered[a:b] for a, b in pairwise(edges)]
            worst = max(len(run) * run[0] for run in runs)
            best = worst if best is None else min(best, worst)
    assert max(padded(lengths, partition(lengths, slots))) == best


@given(LENGTHS, st.integers(1, 9))
def test_partition_keeps_similar_lengths_together(lengths, slots):
    """No row of a later slot is longer than a row of an earlier one."""
    filled = [[lengths[i] for i in slot] for slot in partition(lengths, slots) if slot]
    for earlier, later in pairwise(filled):
        assert min(earlier) >= max(later)


def test_partition_of_nothing_is_empty_slots():
    assert partition([], 3) == [[], [], []]
    assert partition([5], 3) == [[0], [], []]


@given(UIDS, st.integers(1, 6), st.integers(0, 3))
def test_minibatches_deal_every_response_once_and_evenly(uids, parts, epoch):
    dealt = minibatches(uids, parts, epoch)
    assert len(dealt) == parts
    assert sorted(i for part in dealt for i in part) == list(range(len(uids)))
    sizes = [len(part) for part in dealt]
    assert max(sizes) - min(sizes) <= 1
    assert dealt == minibatches(list(uids), parts, epoch)


def test_one_minibatch_keeps_the_order_and_several_differ_by_epoch_and_round():
    uids = [f"r0-{i // 4}" for i in range(16)]
    assert minibatches(uids, 1, 3) == [list(range(16))]
    dealt = [minibatches(uids, 2, epoch) for epoch in range(4)]
    assert len({str(d) for d in dealt}) == 4
    assert minibatches([u.replace("r0", "r1") for u in uids], 2, 0) != dealt[0]
