"""Pushes of weights to an engine, and the proofs that they arrived."""

import copy

import lightning.pytorch as pl
import pytest
from helpers.command_line import problems, write_rows
from helpers.training import rows, selfplay, trainer_for

from lightning_serl.datamodules import RoundOptions
from lightning_serl.datamodules.streams.evaluation import EvaluationOptions
from lightning_serl.engines import Receipt, TransformersEngine
from lightning_serl.engines.weight_checks import check_receipt
from lightning_serl.errors import InputError, PushMismatch
from lightning_serl.policy import Policy

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
    """Also after a validation between two steps of a round."""
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


class Uncounted(TransformersEngine):
    """An engine with a copy of the policy that returns no receipts, and ignores the pushes numbered ``skips``."""

    def __init__(self, skips=()):
        super().__init__()
        self.held, self.pushes, self.skips = -1, 0, skips

    @property
    def version(self):
        return self.held

    def start(self, policy, ranks=None):
        twin = Policy(copy.deepcopy(policy.model), policy.tokenizer, policy.temperature).eval()
        super().start(twin.requires_grad_(False), ranks)

    def push(self, update):
        self.pushes += 1
        named = dict(update.tensors())
        if self.pushes not in self.skips:
            self.policy.causal_lm.load_state_dict(named)
        self.held = self.policy.version = update.version


def test_an_engine_that_keeps_no_count_is_held_to_its_version_and_the_probe(tmp_path):
    module, data = selfplay(steps=(1, 1), engine=Uncounted())
    trainer_for(tmp_path, enable_checkpointing=False).fit(module, data)
    assert data.engine.pushes == 3, "a canary, and the weights of two rounds"


@pytest.mark.parametrize(("skips", "said"), [((1,), "did not move"), ((2,), "off the policy's")])
def test_a_push_that_such_an_engine_only_claims_is_found_out(tmp_path, skips, said):
    module, data = selfplay(steps=(1, 1), engine=Uncounted(skips))
    with pytest.raises(PushMismatch, match=said):
        trainer_for(tmp_path, enable_checkpointing=False).fit(module, data)


class Returning(Uncounted):
    """An engine with a server that restarts, without weights, after each of the first ``times`` pushes."""

    def __init__(self, times):
        super().__init__()
        self.times = times

    def push(self, update):
        super().push(update)
        if update.version > 0 and self.times:
            self.times -= 1
            self.held = -1
        sent = dict(update.tensors())
        return Receipt(update.version, frozenset(sent), sum(t.nbytes for t in sent.values()))


def test_what_comes_back_during_a_push_is_given_the_weights_too(tmp_path):
    module, data = selfplay(steps=(1, 1), engine=Returning(1))
    trainer_for(tmp_path, enable_checkpointing=False).fit(module, data)
    assert data.engine.pushes == 4


def test_an_engine_that_never_holds_the_weights_ends_the_run(tmp_path):
    module, data = selfplay(steps=(1, 1), engine=Returning(9))
    with pytest.raises(PushMismatch, match="version -1"):
        trainer_for(tmp_path, enable_checkpointing=False).fit(module, data)


class Short(TransformersEngine):
    """An engine with a shorter context than the policy."""

    def __init__(self, context):
        super().__init__()
        self.context = context

    @property
    def context_length(self):
        return self.context


def test_prompts_that_only_the_policy_has_room_for_are_skipped_and_counted(tmp_path):
    seeds = write_rows(tmp_path / "seeds.jsonl", [*problems(6), {"problem": "Compute 1 + 1" + " + 1" * 40 + "."}])
    engine = Short(90)
    module, data = selfplay(engine=engine, seeds=str(seeds), source="seeds", round=RoundOptions(7, 4, max_attempts=1))
    trainer_for(tmp_path, enable_checkpointing=False).fit(module, data)
    events = rows(tmp_path, "ledger")
    skipped = {row["uid"] for row in events if row.get("reason") == "over_long_prompt"}
    said = {row["prompt"] for row in events if row["uid"] in skipped and "prompt" in row}
    assert len(said) == 1
    assert said.pop().startswith("Compute 1 + 1 + ")
    assert {row["uid"] for row in events if row["event"] == "voted"} - skipped
    assert len(skipped) < len({row["uid"] for row in events})
    module, data = selfplay(engine=Short(24), seeds=str(seeds), source="seeds")
    with pytest.raises(InputError, match=r"data\.max_tokens is 24 but the engine's context holds 24 tokens"):
        trainer_for(tmp_path / "other", enable_checkpointing=False).fit(module, data)
