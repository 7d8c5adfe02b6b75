"""``report.html`` at the end of a run, and the transcripts that it shows."""

import json

import pytest
from helpers.training import rows, selfplay, trainer_for

from lightning_serl import tiny
from lightning_serl.callbacks import ReportPage, RolloutHooks
from lightning_serl.callbacks.run_folder import report_page, transcripts
from lightning_serl.callbacks.run_folder.transcripts import sample_rows
from lightning_serl.types import Completion, Group, Instruction, Link, Round, Verdict


class Interrupt(RolloutHooks):
    """Ctrl-C in the second round."""

    def on_round_end(self, trainer, pl_module, played):
        if played.number == 1:
            raise KeyboardInterrupt


class InterruptWriting(RolloutHooks):
    """Ctrl-C before there is anything to show."""

    def on_rollout_start(self, trainer, pl_module, engine):
        raise KeyboardInterrupt


def run_of(page):
    data = page.read_text(encoding="utf-8").split('id="data">')[1].split("</script>")[0]
    return json.loads(data)["runs"][0]


def test_a_run_that_is_interrupted_leaves_a_report_with_its_transcripts(tmp_path, monkeypatch):
    module, data = selfplay()
    with pytest.raises(SystemExit):
        trainer_for(tmp_path, [ReportPage(), Interrupt()]).fit(module, data)
    run = run_of(tmp_path / "report.html")
    assert run["state"] == "interrupted"
    samples = rows(tmp_path, "samples")
    voted = [row for row in rows(tmp_path, "ledger") if row["event"] == "voted"]
    assert [row["uid"] for row in samples if row["round"] == 0] == [row["uid"] for row in voted if row["round"] == 0]
    first = samples[0]["responses"]
    assert len(first) == 4
    assert all(r["text"] is not None and sum(r["pieces"]) == len(r["text"]) for r in first)
    assert all(len(r["pieces"]) == len(r["logprobs"]) <= r["tokens"] for r in first)
    assert len(samples[0]["exemplars"]) == 4
    # a fault in the report must cost nothing but the report
    (tmp_path / "report.html").unlink()
    monkeypatch.setattr(report_page, "write_report", lambda *_: 1 / 0)
    module, data = selfplay(rounds_per_epoch=1)
    with pytest.warns(UserWarning, match=r"was not written \(division by zero\); make it with: lightning-serl report"):
        trainer_for(tmp_path / "second", [ReportPage()]).fit(module, data)
    assert len(rows(tmp_path / "second", "samples")) >= 1


def test_a_run_that_is_interrupted_before_its_first_round_has_no_report(tmp_path, recwarn):
    module, data = selfplay(rounds_per_epoch=1)
    with pytest.raises(SystemExit):
        trainer_for(tmp_path, [ReportPage(), InterruptWriting()]).fit(module, data)
    assert not (tmp_path / "report.html").exists()
    assert not [warning for warning in recwarn if "report" in str(warning.message)]


def group(texts, answers, classes, **facts):
    problem = Instruction("Why?", facts.pop("uid", "a"), **facts)
    return Group(problem, (), [Completion((), text) for text in texts], list(answers), list(classes))


def played(*groups):
    pairs = [(one, Verdict([0.0] * len(one), "x")) for one in groups]
    return Round(2, samples=pairs[:1], answered=pairs)


def test_texts_fill_the_room_of_a_round_with_different_answers_first(monkeypatch):
    monkeypatch.setattr(transcripts, "ROUND_CHARACTERS", 40)
    monkeypatch.setattr(transcripts, "TEXT_CHARACTERS", 12)
    one = group(["a" * 10, "b" * 10, "c" * 10], ["1", "2", "2"], [0, 1, 1])
    other = group(["d" * 20, "e" * 2, "\ud800"], [None, "3", "3"], [-1, 0, 0], uid="b", link=Link("view", "a", 1))
    first, second = sample_rows(played(one, other), None)
    # b has the most common answer, a another one; then c would be over the room
    assert [r["text"] for r in first["responses"]] == ["a" * 10, "b" * 10, None]
    assert [r["text"] for r in second["responses"]] == ["d" * 12, "ee", "\ud800"]
    assert second["responses"][0]["left_out"] == 8
    assert [r["answer"] for r in first["responses"]] == ["1", "2", "2"]
    assert second["parent"] == {"uid": "a", "relation": "view", "response": 1}


def test_pieces_of_tokens_add_up_to_the_text():
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny.path("base"), local_files_only=True)
    for text in (" 3 + 4 = 7. So \\boxed{7}.", "7", ""):
        ids = (*tokenizer.encode(text), tokenizer.eos_token_id)
        completion = Completion(ids, text, tuple(-0.1 * n for n in range(len(ids))))
        one = Group(Instruction("Why?", "a"), (), [completion], ["7"], [0])
        (response,) = sample_rows(played(one), tokenizer)[0]["responses"]
        assert sum(response["pieces"]) == len(text)
        assert response["logprobs"] == [round(-0.1 * n, 2) for n in range(len(ids) - 1)]
    unlike = Completion(ids, "another text", (-0.5,) * len(ids))
    assert "pieces" not in sample_rows(played(Group(one.instruction, (), [unlike])), tokenizer)[0]["responses"][0]
