"""Recorded rollouts: reading them, and a whole validation through the Trainer without any model."""

import json

import lightning.pytorch as pl
import pytest
from helpers.small_models import tiny_tokenizer

from lightning_serl import SelfPlayDataModule, SeRLModule
from lightning_serl.datamodules.streams.evaluation import EvaluationOptions
from lightning_serl.engines import ReplayEngine, Request, Sampling
from lightning_serl.errors import EngineFailure, InputError

SAMPLING = Sampling(max_tokens=8)


def ask(engine, prompt, n=2):
    ((index, completions),) = engine.generate([Request((), tuple(range(n)), SAMPLING, prompt)])
    assert index == 0
    return completions


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


# --- reading ---------------------------------------------------------------------------------------------------------


def test_responses_are_strings_or_objects(tmp_path):
    path = write(
        tmp_path / "r.jsonl",
        {"problem": "a", "responses": ["one", {"text": "two", "finished": False}]},
        {"problem": "b", "responses": []},
        {"problem": "a", "responses": [{"text": "three", "logprobs": [0.1]}]},
    )
    engine = ReplayEngine(path)
    engine.start(None)
    assert [(c.text, c.finished) for c in ask(engine, "a", 5)] == [("one", True), ("two", False), ("three", True)]
    assert [c.text for c in ask(engine, "a", 2)] == ["one", "two"]
    assert ask(engine, "b") == []
    assert all(c.token_ids == () and c.logprobs is None and c.version == -1 for c in ask(engine, "a"))
    assert engine.version == -1
    assert not engine.samples_policy
    with pytest.raises(EngineFailure, match="log-prob"):
        engine.score([[1, 2]])


def test_other_field_names_and_a_mapping(tmp_path):
    path = write(tmp_path / "r.jsonl", {"q": "a", "outputs": ["x"], "problem": "not this"})
    assert ask(ReplayEngine(path, "q", "outputs"), "a", 1)[0].text == "x"
    mapped = ReplayEngine({"a": ["x", {"text": "y"}]})
    assert [c.text for c in ask(mapped, "a")] == ["x", "y"]


def test_order_of_requests(tmp_path):
    engine = ReplayEngine({"a": ["1"], "b": ["2"]})
    requests = [Request((), (0,), SAMPLING, p) for p in ("b", "a", "b")]
    answered = [(i, [c.text for c in cs]) for i, cs in engine.generate(requests)]
    assert answered == [(0, ["2"]), (1, ["1"]), (2, ["2"])]


def test_separators_inside_strings_do_not_end_a_line(tmp_path):
    # written raw, as other tools do: line separator, paragraph separator, next line
    path = tmp_path / "r.jsonl"
    rows = '{"problem": "a\u2028b", "responses": ["x\u2029y\x85z"]}\r\n\n{"problem": "c", "responses": ["w"]}\n'
    path.write_bytes(rows.encode())
    engine = ReplayEngine(str(path))
    assert ask(engine, "a\u2028b", 1)[0].text == "x\u2029y\x85z"
    assert ask(engine, "c", 1)[0].text == "w"


def test_a_byte_order_mark_is_no_text(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + b'{"problem": "a", "responses": ["x"]}')
    assert ask(ReplayEngine(str(path)), "a", 1)[0].text == "x"


def test_proposals_are_rows_without_a_prompt(tmp_path):
    path = write(
        tmp_path / "r.jsonl",
        {"responses": ["p1", "p2"]},
        {"problem": "a", "responses": ["x"]},
        {"problem": None, "responses": ["p3"]},
    )
    engine = ReplayEngine(path)
    assert [c.text for c in ask(engine, "", 2)] == ["p1", "p2"]
    assert [c.text for c in ask(engine, "", 2)] == ["p3"]
    assert ask(engine, "", 2) == []
    assert [c.text for c in ask(engine, "a", 1)] == ["x"]


def test_an_unknown_prompt_is_named(tmp_path):
    with pytest.raises(EngineFailure, match="'what is this'"):
        ask(ReplayEngine({"a": ["x"]}), "what is this")


def test_a_problem_field_that_is_not_there_is_named(tmp_path):
    path = write(tmp_path / "r.jsonl", {"question": "a", "outputs": ["x"]}, {"question": "b", "outputs": ["y"]})
    with pytest.raises(
        InputError, match=r":1 has no list 'responses'; set data.engine.responses_field to the field with it"
    ):
        ReplayEngine(path)
    # without the problem a row is a proposal, so what is wrong shows when a problem is asked for
    engine = ReplayEngine(path, responses_field="outputs")
    said = r"no row with a field 'problem' \(found: question\); set data.engine.prompt_field to the"
    with pytest.raises(EngineFailure, match=said):
        ask(engine, "a")
    with pytest.raises(InputError, match=r"r.jsonl has no row with a field 'quest' \(found: question\); set"):
        ReplayEngine(path, "quest", "outputs")


def test_with_a_tokenizer_recordings_have_ids():
    tokenizer = tiny_tokenizer()

    class Policy:
        pass

    Policy.tokenizer = tokenizer
    engine = ReplayEngine({"a": [" 3 + 4 = 7.", {"text": " So", "finished": False}]})
    engine.start(Policy)
    whole, cut = ask(engine, "a")
    assert whole.token_ids == (*tokenizer.encode(" 3 + 4 = 7."), tokenizer.eos_token_id)
    assert cut.token_ids == tuple(tokenizer.encode(" So"))
    engine.start(None)
    assert ask(engine, "a")[0].token_ids == ()


def test_poll_stops_it():
    engine = ReplayEngine({"a": ["x"]})

    def stop():
        raise KeyboardInterrupt

    engine.poll = stop
    with pytest.raises(KeyboardInterrupt):
        ask(engine, "a")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "holds no recorded responses"),
        (b"\n \n", "holds no recorded responses"),
        (b'{"problem": "a", "responses": ["x"]}\n{nope\n', "r.jsonl:2 is not JSON"),
        (b'\n\n{"problem": "a", "responses": ["x"', "r.jsonl:3 is not JSON"),
        (b'["x"]\n', "r.jsonl:1 has no list 'responses'"),
        (b'{"problem": "a", "responses": "x"}', "r.jsonl:1 has no list 'responses'"),
        (b'{"problem": "a", "answers": ["x"]}', "r.jsonl:1 has no list 'responses'"),
        (b'{"problem": "a", "responses": ["x", 3]}', "r.jsonl:1: a response must be a string"),
        (b'{"problem": "a", "responses": [{"txt": "x"}]}', "r.jsonl:1: a response must be a string"),
        (b'{"problem": 7, "responses": ["x"]}', "r.jsonl:1: the prompt must be a string, got int"),
        (b'{"problem": "a", "responses": ["\\ud800"]}', "r.jsonl:1: a response holds half of a surrogate"),
        (b'{"problem": "a", "responses": ["x"]}\n{"problem": "\xe9"}', "r.jsonl:2 is not UTF-8"),
        (b'{"problem": "a", "responses": [' + b"1" * 5000 + b"]}", "r.jsonl:1 is not JSON that can be read"),
        (b"[" * 200000, "r.jsonl:1 is not JSON"),
    ],
)
def test_malformed_recordings(tmp_path, content, said):
    path = tmp_path / "r.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        ReplayEngine(str(path))
    message = str(caught.value)
    assert said in message
    assert "\n" not in message
    assert len(message.replace(str(tmp_path), "")) < 200


@pytest.mark.parametrize("name", ["missing.jsonl", "", "a\0b"])
def test_recordings_that_cannot_be_opened(tmp_path, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="cannot be read"):
        ReplayEngine(name)


def test_a_mapping_with_one_string_in_place_of_a_list():
    with pytest.raises(InputError, match="must be a list"):
        ReplayEngine({"a": "hello"})


# --- a whole validation ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sets", [1, 2])
def test_validation_without_a_model(tmp_path, sets):
    right, wrong = "so \\boxed{4}", "so \\boxed{5}"
    recordings = {
        "2 + 2?": [right, right, wrong, "none"],
        "1 + 3?": [wrong, wrong, right, wrong],
        "5 - 1?": [{"text": "\\boxed{4", "finished": False}, "no", "no", "no"],
        "no label": [right, right, right, right],
    }
    rows = [{"problem": p, "answer": "4"} if p != "no label" else {"problem": p} for p in recordings]
    paths = {"one": write(tmp_path / "one.jsonl", *rows)}
    if sets == 2:
        paths["two"] = write(tmp_path / "two.jsonl", rows[0])
    data = SelfPlayDataModule(
        engine=ReplayEngine(recordings),
        grader="math",
        evaluation=EvaluationOptions(sets=paths, samples=4, batch_size=3),
    )
    module = SeRLModule(model_name_or_path=None)
    assert not module.has_policy
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(accelerator="cpu", default_root_dir=tmp_path, **quiet)
    trainer.validate(module, data, verbose=False)
    assert sorted(module.last_results) == sorted(paths)
    result = module.last_results["one"]
    assert (result["n"], result["labelled"], result["k"]) == (4, 3, 4)
    # nobody is greedy here: pass@1 is the mean over the samples
    assert result["correct"] == 3
    assert result["pass@1"] == result["mean@k"] == pytest.approx((2 / 4 + 1 / 4 + 0) / 3)
    assert result["maj@k"] == pytest.approx(1 / 3)
    assert result["pass@k"] == pytest.approx(2 / 3)
    assert result["vote_accuracy"] == pytest.approx(1 / 2)
    assert result["no_answer"] == pytest.approx(5 / 16)
    assert result["agreement"] == pytest.approx((2 / 4 + 3 / 4 + 0 + 1) / 4)
    if sets == 2:
        assert module.last_results["two"]["mean@k"] == 0.5
    assert trainer.callback_metrics["val/one/maj@k"].item() == pytest.approx(1 / 3)
