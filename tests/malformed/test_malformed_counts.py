"""How many cases there are, by entry point and family."""

from collections import Counter

from malformed import test_malformed_checkpoints as checkpoints
from malformed import test_malformed_files as broken_files
from malformed import test_malformed_inputs as inputs
from malformed import test_malformed_outputs as outputs
from malformed import test_malformed_parts as parts


def cases():
    """(entry point, family) of every case that is listed in a table."""
    yield from ((case.entry, case.family) for case in inputs.CASES)
    yield from (("checkpoints", family) for family, *_ in checkpoints.DAMAGED)
    yield from (("evaluation sets", family) for family, *_ in broken_files.SETS)
    yield from (("recordings", family) for family, *_ in broken_files.RECORDINGS)
    yield from (("ledgers", family) for family, *_ in broken_files.LEDGERS)
    yield from (("model directories", family) for family, *_ in broken_files.MODELS)
    yield from (("model outputs: problems", family) for family, *_ in outputs.LISTS)
    for name in outputs.GRADERS:
        yield from ((f"model outputs: answers ({name})", family) for family, *_ in outputs.ANSWERS)
    yield from ((entry, family) for entry, family, *_ in (*parts.REFUSED, *parts.BROKEN))


def test_there_are_many():
    found = Counter(cases())
    assert found.total() >= 600
    assert len({entry for entry, _ in found}) >= 12
    assert len({family for _, family in found}) >= 30
