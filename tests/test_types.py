"""Data types of a round: groups from recorded texts, verdicts, and micro-batches that keep their dtypes."""

import io
from dataclasses import FrozenInstanceError

import pytest
import torch

from lightning_serl.types import Group, Instruction, Link, RolloutBatch, TokenStats, Verdict


def batch(**options):
    shape = (2, 3)
    return RolloutBatch(
        torch.arange(6).view(shape),
        torch.ones(shape, dtype=torch.long),
        torch.arange(3).expand(shape),
        torch.ones(shape, dtype=torch.bool),
        torch.randn(shape, dtype=torch.float64),
        **options,
    )


def test_group_from_texts():
    group = Group.from_texts("p", ["a", "b"], label="7", finished=[True, 0], choices=("x", "y"))
    assert (group.instruction.prompt, group.instruction.label, group.instruction.role) == ("p", "7", "solve")
    assert group.instruction.meta == {"choices": ["x", "y"]}
    assert [(c.text, c.finished, c.token_ids, c.logprobs, c.version) for c in group.completions] == [
        ("a", True, (), None, -1),
        ("b", False, (), None, -1),
    ]
    assert group.prompt_ids == ()
    assert len(group) == 2
    assert group.texts == ["a", "b"]
    plain = Group.from_texts("p", [])
    assert (len(plain), plain.instruction.label, plain.instruction.meta) == (0, None, {})
    with pytest.raises(ValueError, match="1 entries for 2 texts"):
        Group.from_texts("p", ["a", "b"], finished=[True])


@pytest.mark.parametrize("parts", [1, 2, 3, 5])
def test_a_micro_batch_is_divided_into_its_rows(parts):
    whole = batch(uids=("a", "b"), kl_in_reward=1.5, num_tokens=6, num_sequences=2)
    whole.attention_mask[1, 2] = 0
    whole.mask[1, 2] = False
    made = whole.split(parts)
    assert len(made) == parts
    assert sum(one.kl_in_reward for one in made) == 1.5
    assert [uid for one in made for uid in one.uids] == ["a", "b"]
    assert {(one.num_tokens, one.num_sequences) for one in made} == {(6, 2)}
    kept = [one for one in made if one.mask.any()]
    assert len(kept) == min(parts, 2)
    for row, width in ((0, 3), (1, 2)):
        part, place = (kept[0], row) if parts == 1 else (kept[row], 0)
        assert torch.equal(part.input_ids[place, :width], whole.input_ids[row, :width])
        assert torch.equal(part.advantages[place, :width], whole.advantages[row, :width])
        assert int(part.mask[place].sum()) == width
    assert all(one.input_ids.shape[0] >= 1 for one in made)


def test_groups_share_nothing():
    one, two = Group.from_texts("p", ["a"]), Group.from_texts("p", ["a"])
    one.stats["entropy"] = []
    one.links[("x", None)] = []
    assert two.stats == two.links == {}


def test_instructions_are_frozen():
    instruction = Instruction("p", "u", link=Link("follow_up", "parent", 2))
    assert instruction.link == ("follow_up", "parent", 2)
    assert instruction.link.index == 2
    with pytest.raises(FrozenInstanceError):
        instruction.label = "leak"


@pytest.mark.parametrize(
    "scores", [[1, 0, 1], (True, False, True), torch.tensor([1, 0, 1]), torch.tensor([1.0, 0, 1]).double()]
)
def test_verdicts_hold_float32(scores):
    verdict = Verdict(scores)
    assert verdict.scores.dtype == verdict.weight.dtype == torch.float32
    assert verdict.scores.tolist() == [1, 0, 1]
    assert verdict.weight.tolist() == [1, 1, 1]
    assert Verdict(scores, weight=[0, 2, 1]).weight.tolist() == [0, 2, 1]


@pytest.mark.parametrize("weight", [[1.0], [[1.0, 1.0]], 1.0])
def test_a_weight_of_another_shape(weight):
    with pytest.raises(ValueError, match="both must be"):
        Verdict([1.0, 0.0], weight=weight)


def test_scaled_verdicts():
    verdict = Verdict([1.0, 0.0], label="7", confidence=0.5, weight=[1.0, 0.5], centred=True, info={"tie": True})
    half = verdict.scaled(0.5)
    assert half.weight.tolist() == [0.5, 0.25]
    assert (half.label, half.confidence, half.centred, half.info) == ("7", 0.5, True, {"tie": True})
    assert half.scores.tolist() == [1.0, 0.0]
    assert verdict.weight.tolist() == [1.0, 0.5]
    assert verdict.scaled(0).weight.tolist() == [0, 0]


def test_batches_move_without_rounding():
    one = batch(old_logp=torch.randn(2, 3), num_tokens=9, num_sequences=4, uids=["a", "b"])
    moved = one.to("meta")
    assert moved is not one
    for name in ("input_ids", "attention_mask", "position_ids", "mask", "advantages", "old_logp"):
        assert getattr(moved, name).device.type == "meta"
        assert getattr(moved, name).dtype == getattr(one, name).dtype
        assert getattr(one, name).device.type == "cpu"
    assert moved.ref_logp is moved.sampler_logp is None
    assert (moved.num_tokens, moved.num_sequences, moved.uids, len(moved)) == (9, 4, ("a", "b"), 2)
    assert one.to("cpu", non_blocking=True).advantages.equal(one.advantages)


def test_lightning_leaves_the_batch_alone_under_bf16_true():
    from lightning.pytorch.plugins import HalfPrecision

    one = batch(old_logp=torch.randn(2, 3))
    same = HalfPrecision("bf16-true").convert_input(one)
    assert same.advantages.dtype == torch.float64
    assert same.old_logp.dtype == torch.float32


def test_batches_survive_a_checkpoint():
    one = batch(ref_logp=torch.randn(2, 3), sampler_logp=torch.randn(2, 3), num_tokens=9, num_sequences=4, uids=("a",))
    file = io.BytesIO()
    torch.save(one.state_dict(), file)
    file.seek(0)
    again = RolloutBatch.from_state_dict(torch.load(file, weights_only=True))
    for name, value in one.state_dict().items():
        other = getattr(again, name)
        if isinstance(value, torch.Tensor):
            assert torch.equal(other, value)
            assert other.dtype == value.dtype
        else:
            assert (list(other) if name == "uids" else other) == value
    assert again.old_logp is None


def test_token_stats_default_to_log_probs_alone():
    assert TokenStats(torch.zeros(1))[1:] == (None, None)
