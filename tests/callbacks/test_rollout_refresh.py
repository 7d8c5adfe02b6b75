"""What an engine took in, against what it was sent."""

import pytest

from lightning_serl.engines.proofs import check_receipt
from lightning_serl.engines import Receipt
from lightning_serl.errors import PushMismatch

SENT = Receipt(3, frozenset({"a", "b"}), 8)


def test_an_equal_receipt_passes():
    check_receipt(Receipt(3, frozenset({"b", "a"}), 8), SENT)


@pytest.mark.parametrize(
    ("arrived", "said"),
    [
        (Receipt(2, SENT.names, 8), "version 2 after a push of version 3"),
        (Receipt(3, frozenset({"a"}), 8), "1 tensors where 2 were sent (first that differs: b)"),
        (Receipt(3, SENT.names | {"c"}, 8), "differs: c"),
        (Receipt(3, SENT.names, 6), "6 bytes where 8"),
    ],
)
def test_what_differs_is_named(arrived, said):
    with pytest.raises(PushMismatch) as caught:
        check_receipt(arrived, SENT)
    assert said in str(caught.value)
