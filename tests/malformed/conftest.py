"""A time limit for every case."""

import pytest
from helpers.malformed import time_limit


@pytest.fixture(autouse=True)
def _time_limit():
    with time_limit():
        yield
