"""The export at the end of a fit, and its model card."""

from types import SimpleNamespace

from helpers.training import selfplay, trainer_for
from huggingface_hub import ModelCard, ModelCardData

from lightning_serl.callbacks import Export
from lightning_serl.callbacks.export import model_card


def test_export_elsewhere(tmp_path):
    module, data = selfplay(reward=None)
    trainer_for(tmp_path, [Export("weights/final")]).fit(module, data)
    exported = tmp_path / "weights" / "final"
    assert (exported / "model.safetensors").exists()
    assert not (tmp_path / "export").exists()
    card = (exported / "README.md").read_text()
    tags = ["serl", "self-play", "reinforcement-learning", "lightning-serl"]
    expected = ModelCardData(
        license="apache-2.0", library_name="transformers", pipeline_tag="text-generation", tags=tags
    )
    assert ModelCard(card).data.to_dict() == expected.to_dict()
    for row in ("| base | tiny:base |", "| algorithm | grpo (KL weight", "| reward | labels where a seed has one"):
        assert row in card


def test_the_card_of_foreign_parts_leaves_out_what_they_do_not_say():
    policy = SimpleNamespace(has_adapter=False, quantized=False)
    trainer = SimpleNamespace(
        lightning_module=SimpleNamespace(policy=policy),
        datamodule=None,
        callbacks=[],
        optimizers=[],
        global_step=4,
        precision="32-true",
    )
    rows = [line for line in model_card(trainer, "full").splitlines() if line.startswith("| ")]
    assert rows[:3] == ["| | |", "| optimizer steps | 4 |", "| precision | 32-true |"]
    assert [row.split(" | ")[0] for row in rows[3:]] == ["| versions"]
