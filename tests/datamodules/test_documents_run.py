"""Runs on documents: the embedded policy writes problems after passages, answers with them, and learns without them."""

import json

import pytest
from helpers.command_line import cli
from helpers.training import rows, selfplay, trainer_for

from lightning_serl.callbacks import NoveltyFilter, QualityFilter
from lightning_serl.datamodules.rounds.setup import RoundOptions
from lightning_serl.datamodules.sources import DocumentQuestions, Reading, Writing
from lightning_serl.errors import InputError
from lightning_serl.prompts.passages import QuestionTemplate
from lightning_serl.tiny.language import seed_questions

ASK = QuestionTemplate(text="{passage}\n\nWrite new math questions.\n1.")


@pytest.fixture
def corpus(tmp_path):
    (tmp_path / "docs").mkdir()
    for name, part in (("a.txt", slice(0, 6)), ("b.txt", slice(6, 12))):
        (tmp_path / "docs" / name).write_text("\n\n".join(seed_questions(12)[part]))
    return tmp_path / "docs"


def test_every_problem_that_is_trained_on_has_its_passage(corpus, tmp_path):
    reading = Reading(passage_chars=100, min_share=0.5, ask=ASK)
    filters = [QualityFilter(), NoveltyFilter()]
    options = {"seeds": None, "documents": str(corpus), "reading": reading, "max_tokens": 40}
    module, data = selfplay(**options, rounds_per_epoch=2)
    module.temperature = 0.3  # the embedded policy was trained without passages before a question, and scatters
    asked: dict[str, set[bool]] = {"policy": set(), "reference": set()}  # of whom, and whether a passage was in view

    def generate(requests, who="policy", write=data.engine.generate):
        asked[who] |= {any(p.text in module.policy.tokenizer.decode(r.prompt_ids) for p in data.passages)
                       for r in requests if "1." not in module.policy.tokenizer.decode(r.prompt_ids)[-4:]}  # fmt: skip
        return write(requests, who)

    data.engine.generate = generate
    trainer_for(tmp_path / "run", filters).fit(module, data)
    # the model as training began reads, and the policy answers without the passage
    assert asked == {"policy": {False}, "reference": {True}}
    ledger = rows(tmp_path / "run", "ledger")
    passage = {row["uid"]: row["passage"] for row in ledger if row["event"] == "proposed"}
    trained = [row["uid"] for row in ledger if row["event"] == "trained"]
    assert trained
    for uid in trained:
        cited = passage[uid]
        text = (corpus / cited["file"]).read_text()[cited["start"] : cited["end"]]
        assert any((one.citation, one.text) == (cited, text) for one in data.passages)
        assert passage[uid.partition(".")[0]] == cited
    votes = {row["uid"]: row for row in ledger if row["event"] == "voted"}
    opened = [row for uid, row in votes.items() if "." not in uid]
    assert {row["label"] is not None for row in opened} == {True, False}
    for uid, row in votes.items():  # a group without a label is dropped by name, and not asked without its passage
        if "." not in uid:
            assert (f"{uid}.closed_book1" in votes) == (row["label"] is not None)
            why = [one["reason"] for one in ledger if one["uid"] == uid and one["event"] == "dropped"]
            assert row["label"] is not None or why == ["low_consensus"]
    stats = rows(tmp_path / "run")[0]
    assert 0 < stats["serl/documents/labelled_frac"] < 1
    assert stats["serl/documents/imitated"] > 0
    assert stats["serl/documents/closed_book"] == pytest.approx(stats["reward"])
    # another corpus cannot continue this run
    state = data.state_dict()
    assert json.dumps(state["source"]["known"])
    other = DocumentQuestions(data.passages[:-1], reading, Writing())
    with pytest.raises(InputError, match="not those of the checkpoint"):
        other.load_state_dict(state["source"])
    again = DocumentQuestions(data.passages, reading, Writing())
    again.load_state_dict(state["source"])
    assert again.state_dict() == state["source"]


def test_documents_are_refused_beside_sources_that_do_not_read_them(corpus):
    for source, said in (("seeds", "data.source seeds"), ("Proposer", "Proposer"), ("Paraphrase", "Paraphrase")):
        _, data = selfplay(documents=str(corpus), source=source)
        with pytest.raises(InputError, match=rf"data\.documents and .*{said}"):
            data.check_files("fit")
    _, data = selfplay(seeds=None, documents=str(corpus), source="mix:0.5")
    with pytest.raises(InputError, match="no seeds were given"):
        data.check_files("fit")
    with pytest.warns(UserWarning, match=r"data\.reward MajorityVote reads no labels"):
        selfplay(seeds=None, documents=str(corpus), reward="MajorityVote")[1].check_files("fit")
    _, data = selfplay(documents=str(corpus), round=RoundOptions(max_waves=2))
    assert data.round_options.max_waves == 2
    for options in ({"passage_chars": 10}, {"again": 1.0}, {"frame": "{problem}"}, {"min_share": 2}):
        with pytest.raises(InputError, match=r"data\.reading\."):
            Reading(**options)


def test_a_folder_without_a_passage_is_one_sentence_before_the_model(tmp_path):
    (tmp_path / "empty").mkdir()
    for folder, said in ((tmp_path / "nowhere", "does not exist"), (tmp_path / "empty", "has no passage")):
        ran = cli(
            "fit", "-c", "preset:documents", "--data.documents", folder, "--model.model_name_or_path", "tiny:base"
        )
        assert ran.status == 2
        assert said in ran.error
