"""What every engine must do, by real parts: the same tests for each of them."""

import random

import numpy as np
import pytest
import torch
from helpers.engines import LIVE, disturb, refresh

from lightning_serl.engines import Request, Sampling, TransformersEngine
from lightning_serl.errors import EngineFailure
from lightning_serl.policy.loading import load_policy
from lightning_serl.tiny.language import held_out, solve_prompt

COPIES = [pytest.param(kind, marks=pytest.mark.vllm) for kind in ("vllm", "server")]
GREEDY = Sampling(max_tokens=40, temperature=0.0)


@pytest.fixture(params=[*LIVE, *COPIES])
def started(request, engine_of):
    """An engine and its policy, up to date, and without an idea of its own when to stop."""
    engine, policy = engine_of(request.param)
    engine.poll = lambda: None
    refresh(policy, engine)
    return engine, policy


@pytest.fixture
def engine(started):
    return started[0]


@pytest.fixture
def policy(started):
    return started[1]


@pytest.fixture
def prompts(policy):
    return [tuple(policy.tokenizer.encode(solve_prompt(q))) for q in held_out(64)]


def run(policy, engine, requests, who="policy"):
    with policy.gathered():
        out = list(engine.generate(requests, who))
    assert sorted(i for i, _ in out) == list(range(len(requests)))
    return [completions for _, completions in sorted(out, key=lambda one: one[0])]


def wrote(completions):
    return [(c.token_ids, c.text, c.finished) for c in completions]


def test_shapes(policy, prompts, engine):
    sizes = (2, 0, 1, 5)
    out = run(policy, engine, [Request(p, tuple(range(n)), Sampling(12)) for p, n in zip(prompts, sizes, strict=False)])
    assert [len(cs) for cs in out] == list(sizes)
    for completion in (c for cs in out for c in cs):
        assert 1 <= len(completion.token_ids) == len(completion.logprobs) <= 12
        assert all(isinstance(i, int) for i in completion.token_ids)
        assert completion.version == policy.version == engine.version
        assert completion.finished is (completion.token_ids[-1] in policy.end_ids)
        decoded = policy.tokenizer.decode(completion.token_ids, skip_special_tokens=True)
        assert completion.text == decoded
    assert len({c.token_ids for c in out[3]}) > 1


def test_a_completion_depends_on_its_seed_and_not_on_its_neighbours(policy, prompts, engine):
    requests = [Request(p, tuple(range(9 * i, 9 * i + 4)), Sampling(30)) for i, p in enumerate(prompts[:12])]
    together = [wrote(cs) for cs in run(policy, engine, requests)]
    assert [wrote(run(policy, engine, [r])[0]) for r in requests[:4]] == together[:4]
    order = list(range(12))
    random.Random(1).shuffle(order)
    assert [wrote(cs) for cs in run(policy, engine, [requests[i] for i in order])] == [together[i] for i in order]
    twice = run(policy, engine, [Request(prompts[0], (0, 0, 1), Sampling(30)), Request(prompts[0], (1,), Sampling(30))])
    assert wrote(twice[0]) == [together[0][0], together[0][0], together[0][1]]
    assert wrote(twice[1]) == [together[0][1]]


def test_greedy_is_the_policys_own(policy, prompts, engine):
    live = TransformersEngine()
    live.start(policy)
    requests = [Request(p, (0,), GREEDY) for p in prompts[:24]]
    assert [wrote(cs) for cs in run(policy, engine, requests)] == [wrote(cs) for cs in run(policy, live, requests)]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probs_are_the_policys_own(policy, prompts, engine, temperature):
    requests = [Request(p, tuple(range(4)), Sampling(40, temperature)) for p in prompts[:16]]
    out = run(policy, engine, requests)
    with policy.gathered(), policy.at_temperature(temperature):
        own = policy.stats([(p + c.token_ids, len(p)) for p, cs in zip(prompts, out, strict=False) for c in cs])
    for stats, completion in zip(own, (c for cs in out for c in cs), strict=True):
        assert completion.logprobs == pytest.approx(stats.logp.tolist(), abs=1e-4)


def test_truncated_choices(policy, prompts, engine):
    (free, two, one, nucleus) = run(
        policy,
        engine,
        [
            Request(prompts[0], tuple(range(20)), how)
            for how in (Sampling(1), Sampling(1, top_k=2), Sampling(1, top_k=1), Sampling(1, top_p=1e-6))
        ],
    )
    with policy.gathered():
        logits = policy.model(torch.tensor([prompts[0]])).logits[0, -1]
    best = logits.topk(2)
    renormalised = dict(zip(best.indices.tolist(), best.values.log_softmax(-1).tolist(), strict=True))
    for completion in two:
        assert completion.logprobs[0] == pytest.approx(renormalised[completion.token_ids[0]], abs=1e-4)
    assert {c.token_ids[0] for c in (*one, *nucleus)} == {int(logits.argmax())}
    assert all(c.logprobs[0] == pytest.approx(0.0, abs=1e-6) for c in (*one, *nucleus))
    assert len({c.token_ids for c in free}) >= len({c.token_ids for c in two})


def test_the_presence_penalty_counts_the_completion_alone(policy, prompts, engine):
    live = TransformersEngine()
    live.start(policy)
    requests = [Request(p, (0,), Sampling(25, 0.0, presence_penalty=-2.0)) for p in prompts[:16]]
    ours, theirs = run(policy, engine, requests), run(policy, live, requests)
    assert [wrote(cs) for cs in ours] == [wrote(cs) for cs in theirs]
    for (a,), (b,) in zip(ours, theirs, strict=True):
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-4)
    plain = run(policy, engine, [Request(p, (0,), Sampling(25, 0.0)) for p in prompts[:16]])
    assert [wrote(cs) for cs in ours] != [wrote(cs) for cs in plain]


@pytest.mark.parametrize("stop", [("\\boxed{",), ("o \\boxed",), ("}.", "So"), ("o \\b", "never met")])
def test_stop_strings(policy, prompts, engine, stop):
    free = [c for cs in run(policy, engine, [Request(p, (7, 8), Sampling(40)) for p in prompts[:8]]) for c in cs]
    requests = [Request(p, (7, 8), Sampling(40, stop=stop)) for p in prompts[:8]]
    met = 0
    for before, after in zip(free, (c for cs in run(policy, engine, requests) for c in cs), strict=True):
        places = [before.text.find(s) for s in stop if s in before.text]
        if not places:
            assert wrote([after]) == wrote([before])
            continue
        met += 1
        assert after.finished
        assert after.text == before.text[: min(places)]
        assert after.token_ids == before.token_ids[: len(after.token_ids)]
        assert not any(s in policy.tokenizer.decode(after.token_ids[:-1]) for s in stop)
        assert len(after.logprobs) == len(after.token_ids)
    assert met >= 3


def test_truncation(policy, prompts, engine):
    (long,) = run(policy, engine, [Request(prompts[0], (3, 4), Sampling(40))])
    (short,) = run(policy, engine, [Request(prompts[0], (3, 4), Sampling(2))])
    for a, b in zip(short, long, strict=True):
        assert a.token_ids == b.token_ids[:2]
        assert not a.finished
    too_long = prompts[0] * (512 // len(prompts[0]) + 1)
    if not isinstance(engine, TransformersEngine):  # which has no limit of its own: the stream checks before
        with pytest.raises(EngineFailure, match="do not fit into"):
            run(policy, engine, [Request(too_long, (0,), Sampling(8))])


def test_score_is_at_temperature_one(policy, prompts, engine):
    rows = [list(prompts[0]), [5], list(prompts[1]), [7, 8]]
    with policy.gathered():
        logits = policy.model(torch.tensor([rows[0]])).logits[0, :-1].log_softmax(-1)
        expected = logits.gather(-1, torch.tensor(rows[0][1:])[:, None])[:, 0]
        with policy.at_temperature(0.5):
            scores = engine.score(rows)
    assert [len(s) for s in scores] == [len(r) - 1 for r in rows]
    assert all(s.dtype == torch.float32 for s in scores)
    torch.testing.assert_close(scores[0], expected, atol=1e-4, rtol=0)


def test_texts_after_one_prompt_score_as_whole_rows_do(policy, prompts, engine):
    prompt = list(prompts[0])
    rows = [([*prompt, 7, 8, 9], len(prompt)), ([7, 8], 1), ([*prompt, 9], len(prompt)), (prompt, len(prompt))]
    with policy.gathered():
        whole, parts = engine.score([ids for ids, _ in rows]), engine.score_from(rows)
    for row, part, (_, start) in zip(whole, parts, rows, strict=True):
        torch.testing.assert_close(part, row[start - 1 :], atol=1e-4, rtol=0)


def test_ambient_random_numbers_are_neither_read_nor_moved(policy, prompts, engine):
    def ambient():
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()

    torch.manual_seed(1)
    before = ambient()
    first = run(policy, engine, [Request(prompts[0], (1, 2), Sampling(20))])
    disturb(policy, 0.0)
    refresh(policy, engine)
    assert ambient() == before
    torch.manual_seed(2)
    again = run(policy, engine, [Request(prompts[0], (1, 2), Sampling(20))])
    assert [wrote(cs) for cs in again] == [wrote(cs) for cs in first]


def test_results_come_as_they_finish_and_poll_stops_it(policy, prompts, engine):
    class Stop(Exception):
        pass

    calls = []

    def poll():
        calls.append(None)
        if len(calls) == 4:
            raise Stop

    with policy.gathered():
        # one token against the longest of 64 hot completions: a single greedy one ends within a dozen tokens here
        long = Request(prompts[0], tuple(range(64)), Sampling(400, temperature=2.0))
        requests = [long, Request(prompts[1], (0,), Sampling(1))]
        stream = engine.generate(requests)
        assert next(stream)[0] == 1
        stream.close()  # a caller that leaves
        engine.poll = poll
        with pytest.raises(Stop):
            list(engine.generate([Request(p, (0,), GREEDY) for p in prompts]))
        assert len(calls) == 4
        engine.poll = lambda: None
        assert len(list(engine.generate([Request(prompts[0], (0,), GREEDY)]))) == 1


def test_new_weights(policy, prompts, engine):
    rows = [list(p) for p in prompts[:8]]
    with policy.gathered():
        before = torch.cat(engine.score(rows))
    state = {k: v.clone() for k, v in policy.state_dict().items()}
    try:
        disturb(policy, 0.5)
        refresh(policy, engine)
        with policy.gathered():
            after, true = engine.score(rows), [s.logp for s in policy.stats([(r, 1) for r in rows])]
        assert float((torch.cat(after) - before).abs().max()) > 0.1
        torch.testing.assert_close(torch.cat(after), torch.cat(true), atol=1e-4, rtol=0)
        assert run(policy, engine, [Request(prompts[0], (0,), GREEDY)])[0][0].version == policy.version
    finally:
        policy.load_state_dict(state)
        disturb(policy, 0.0)


def test_an_adapter_and_its_reference(prompts, engine, policy):
    rows = [list(p) for p in prompts[:8]]
    scored = {}
    with policy.gathered():
        for who in ("policy", "reference"):
            scored[who] = torch.cat(engine.score(rows, who))
            true = torch.cat([s.logp for s in policy.stats([(r, 1) for r in rows], who)])
            torch.testing.assert_close(scored[who], true, atol=1e-4, rtol=0)
    assert float((scored["policy"] - scored["reference"]).abs().max()) > 0.1
    requests = [Request(p, (0, 1), Sampling(16)) for p in prompts[:4]]
    base = [wrote(cs) for cs in run(policy, engine, requests, "reference")]
    assert base != [wrote(cs) for cs in run(policy, engine, requests)]


def test_a_frozen_copy_answers(policy, prompts, engine):
    twin = load_policy("tiny:base")
    disturb(twin, 0.2)
    policy.frozen["teacher"] = twin.requires_grad_(False).eval()
    try:
        (one,) = run(policy, engine, [Request(prompts[0], (0,), GREEDY)], "teacher")
        live = TransformersEngine()
        live.start(twin)
        (expected,) = run(twin, live, [Request(prompts[0], (0,), GREEDY)])
        assert wrote(one) == wrote(expected)
    finally:
        del policy.frozen["teacher"]


def test_close_and_open_again(policy, prompts, engine):
    (before,) = run(policy, engine, [Request(prompts[0], (0, 1), Sampling(20))])
    engine.close()
    engine.close()
    with pytest.raises(EngineFailure):
        list(engine.generate([Request(prompts[0], (0,), GREEDY)]))
    with pytest.raises(EngineFailure, match="ReplayEngine"):
        engine.start(None)
    engine.start(policy)
    refresh(policy, engine)
    (after,) = run(policy, engine, [Request(prompts[0], (0, 1), Sampling(20))])
    assert wrote(after) == wrote(before)
