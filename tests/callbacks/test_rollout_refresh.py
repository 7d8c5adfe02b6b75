"""What an engine took in, against what it was sent."""

import lightning.pytorch as pl
import pytest
from cli_kit import problems, write_rows
from spine_kit import selfplay, trainer_for

from lightning_serl.engines.proofs import check_receipt
from lightning_serl.datamodules.evaluation import EvaluationOptions
from lightning_serl.engines import Receipt, TransformersEngine
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


def test_the_engine_sleeps_while_the_trainer_works(tmp_path):
    """Also after a validation in the middle of a round; the weights it sleeps with are pushed before it writes."""
    told = []

    class Sleeper(TransformersEngine):
        def sleep(self):
            told.append("sleep")

        def wake(self):
            told.append("wake")

        def generate(self, requests, who="policy"):
            told.append("write")
            return super().generate(requests, who)

    class Steps(pl.Callback):
        def on_before_backward(self, trainer, pl_module, loss):
            told.append("train")

    sets = EvaluationOptions(sets={"some": str(write_rows(tmp_path / "some.jsonl", problems(3)))}, samples=0)
    module, data = selfplay(steps=(1, 2), engine=Sleeper(), evaluation=sets)
    trainer = trainer_for(tmp_path, [Steps()], val_check_interval=1, enable_checkpointing=False)
    trainer.fit(module, data)
    assert told.count("train") == 4
    awake = True
    for word in told:
        awake = {"sleep": False, "wake": True}.get(word, awake)
        assert word not in ("write", "train") or awake is (word == "write"), told
    # a validation between two steps of one round
    between = told[told.index("train") : len(told) - told[::-1].index("train")]
    assert "write" in between
