"""Which frozen copies a run makes."""

import pytest

from lightning_serl.policy.frozen_copies import needed_copies


@pytest.mark.parametrize(
    ("asked", "moved", "kl", "base_is_reference", "expected"),
    [
        ((), (), False, False, []),
        ((), (), True, False, ["reference"]),
        ((), (), True, True, []),  # the disabled adapter serves
        (("reference",), (), False, True, []),
        ((), ("reference",), True, True, ["reference"]),  # until a callback moves the reference policy
        (("teacher", "certainty"), (), True, False, ["reference", "teacher"]),
        (("teacher",), (), True, True, ["teacher"]),
        ((), ("teacher",), False, False, ["teacher"]),
    ],
)
def test_needed_copies(asked, moved, kl, base_is_reference, expected):
    assert needed_copies(frozenset(asked), set(moved), kl, base_is_reference) == expected
