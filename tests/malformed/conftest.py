"""A time limit for every case, and a table of the cases at the end."""

import pytest
from malformed_kit import COUNTS, time_limit


@pytest.fixture(autouse=True)
def _time_limit():
    with time_limit():
        yield


def pytest_terminal_summary(terminalreporter):
    if not COUNTS:
        return
    terminalreporter.section("malformed inputs, by entry point and family")
    for entry in sorted({entry for entry, _ in COUNTS}):
        families = {family: count for (at, family), count in COUNTS.items() if at == entry}
        terminalreporter.write_line(f"{sum(families.values()):>5}  {entry}")
        for family, count in sorted(families.items()):
            terminalreporter.write_line(f"      {count:>5}  {family}")
    entries, families = {e for e, _ in COUNTS}, {f for _, f in COUNTS}
    terminalreporter.write_line(
        f"{COUNTS.total():>5}  in all: {len(families)} families over {len(entries)} entry points"
    )
