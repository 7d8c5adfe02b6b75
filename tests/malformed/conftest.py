"""A time limit for every case."""

import pytest
from malformed_kit import time_limit


@pytest.fixture(autouse=True)
def _time_limit():
    with time_limit():
        yield
