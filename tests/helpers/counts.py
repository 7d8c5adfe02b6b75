"""What the tests count, and how the counts of several test processes come together."""

from collections import Counter

#: Cases of malformed input that went as they should, by entry point and family.
MALFORMED: Counter[tuple[str, str]] = Counter()
#: Tests that read the recorded data: ``selected`` and ``deselected``.
GOLDEN: Counter[str] = Counter()


def send():
    """The counts as plain values, for the process that prints them."""
    return {"malformed": [[*key, n] for key, n in MALFORMED.items()], "golden": dict(GOLDEN)}


def receive(sent):
    """Take over the counts of another test process."""
    MALFORMED.update({(entry, family): n for entry, family, n in sent["malformed"]})
    if not GOLDEN:  # every process collects all tests
        GOLDEN.update(sent["golden"])
