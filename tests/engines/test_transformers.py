"""The live policy as a rollout engine: against ``generate``, its own log-probs, and exact probabilities."""

import math
import random
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from helpers.small_models import small_model, small_policy, tiny_tokenizer, with_lora

from lightning_serl.distributed.seeding import uniforms
from lightning_serl.engines import Receipt, Request, Sampling, TransformersEngine, WeightUpdate
from lightning_serl.engines.drafts import Drafts
from lightning_serl.engines.token_choice import choose_tokens
from lightning_serl.errors import EngineFailure
from lightning_serl.policy import Policy
from lightning_serl.policy.loading import load_policy
from lightning_serl.policy.packing_check import unpackable
from lightning_serl.policy.vocabulary import TextDecoder
from lightning_serl.tiny.language import held_out, solve_prompt

GREEDY = Sampling(max_tokens=40, temperature=0.0)


@pytest.fixture(scope="module")
def policy():
    return load_policy("tiny:base")


@pytest.fixture(scope="module")
def prompts(policy):
    return [tuple(policy.tokenizer.encode(solve_prompt(q))) for q in held_out(16)]


def run(policy, requests, who="policy", max_rows=256):
    engine = TransformersEngine(max_rows)
    engine.start(policy)
    with policy.gathered():
        out = dict(engine.generate(requests, who))
    assert sorted(out) == list(range(len(requests)))
    return [out[i] for i in range(len(requests))]


def wrote(completions):
    """All but the log-probs, which other neighbours in the batch move by rounding."""
    return [(c.token_ids, c.text, c.finished) for c in completions]


def generated(model, prompt, length, ends):
    """What ``generate`` writes for one prompt alone, up to and with the end token."""
    ids = torch.tensor([prompt])
    with torch.no_grad():
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=length,
            do_sample=False,
            eos_token_id=list(ends),
            pad_token_id=0,
            use_cache=True,
        )
    return out[0, len(prompt) :].tolist()


# --- against generate ------------------------------------------------------------------------------------------------


def test_greedy_equals_generate(policy, prompts):
    out = run(policy, [Request(p, (0,), GREEDY) for p in prompts])
    with policy.gathered():
        expected = [generated(policy.model, p, 40, policy.end_ids) for p in prompts]
    assert [list(c.token_ids) for (c,) in out] == expected
    assert len({len(p) for p in prompts}) > 3
    for (completion,), ids in zip(out, expected, strict=True):
        assert completion.finished is (ids[-1] == 0)
        assert completion.text == policy.tokenizer.decode(ids, skip_special_tokens=True)
        assert completion.version == policy.version


@pytest.mark.parametrize(
    "name", ["llama_untied", "qwen2", "gpt2", "opt", "mistral_window", "gemma2_window", "qwen3_next", "falcon_h1"]
)
def test_greedy_equals_generate_for_other_architectures(name):
    # windows of 6 tokens, prompts longer and shorter than that, and rows that end early
    policy = small_policy(name)
    generator = random.Random(3)
    prompts = [tuple(generator.randrange(1, 400) for _ in range(length)) for length in (3, 17, 9, 17, 5, 12)]
    with policy.gathered():
        free = [generated(policy.model, p, 14, [0]) for p in prompts]
        # tokens that the model does write become end tokens, so that rows leave the batch one after another
        ends = sorted({free[0][3], free[1][5], free[2][1]})
        policy.model.generation_config.eos_token_id = ends
        expected = [generated(policy.model, p, 14, [0, *ends]) for p in prompts]
    assert len({len(ids) for ids in expected}) > 1
    out = run(policy, [Request(p, (0, 1), Sampling(max_tokens=14, temperature=0.0)) for p in prompts])
    for pair, ids in zip(out, expected, strict=True):
        assert [list(c.token_ids) for c in pair] == [ids, ids]
        assert all(c.finished is (ids[-1] in {0, *ends}) for c in pair)


@pytest.mark.parametrize("name", ["mistral_window", "gemma2_window"])
def test_the_window_matters_here(name):
    wide, narrow = small_policy(name), small_policy(name)
    wide.model.config.sliding_window = 100
    wide.model = type(wide.model)(wide.model.config).eval()
    wide.model.load_state_dict(narrow.model.state_dict())
    with narrow.gathered(), wide.gathered():
        rows = [(list(range(40, 60)), 1)]
        assert not torch.allclose(narrow.stats(rows)[0].logp[8:], wide.stats(rows)[0].logp[8:])


@pytest.mark.parametrize("penalty", [2.0, -1.5])
def test_the_presence_penalty_counts_what_the_completion_holds(policy, prompts, penalty):
    sampling = Sampling(max_tokens=25, temperature=0.0, presence_penalty=penalty)
    out = run(policy, [Request(p, (0,), sampling) for p in prompts[:6]])
    changed = 0
    for prompt, (completion,) in zip(prompts, out, strict=False):
        ids: list[int] = []
        while len(ids) < 25 and 0 not in ids:
            with policy.gathered():
                logits = policy.model(torch.tensor([[*prompt, *ids]])).logits[0, -1]
            logits[sorted(set(ids))] -= penalty  # once for a token, however often it came, and not for the prompt's
            ids.append(int(logits.argmax()))
            if ids[-1] in policy.end_ids:
                break
        assert list(completion.token_ids) == ids
        changed += ids != generated(policy.model, prompt, 25, policy.end_ids)
    assert changed


# --- log-probs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_reported_log_probs_are_the_policys_own(policy, prompts, temperature):
    same = Policy(policy.model, policy.tokenizer, temperature=temperature)
    requests = [Request(p, tuple(range(9 * i, 9 * i + 4)), Sampling(40, temperature)) for i, p in enumerate(prompts)]
    out = run(same, requests, max_rows=30)
    rows = [(p + c.token_ids, len(p)) for p, cs in zip(prompts, out, strict=True) for c in cs]
    with same.gathered():
        own = same.stats(rows)
    for stats, completion in zip(own, (c for cs in out for c in cs), strict=True):
        assert len(completion.logprobs) == len(completion.token_ids)
        assert completion.logprobs == pytest.approx(stats.logp.tolist(), abs=1e-5)


def test_score_gives_every_token_after_the_first(policy, prompts):
    engine = TransformersEngine()
    engine.start(policy)
    with policy.gathered():
        scores = engine.score([prompts[0], prompts[1][:1]])
        logits = policy.model(torch.tensor([prompts[0]])).logits[0, :-1].log_softmax(-1)
    assert [len(s) for s in scores] == [len(prompts[0]) - 1, 0]
    torch.testing.assert_close(scores[0], logits.gather(-1, torch.tensor(prompts[0][1:])[:, None])[:, 0])


def test_a_prompt_that_texts_share_goes_through_the_model_once(policy, prompts):
    packed = Policy(policy.model, policy.tokenizer)
    engine, tokens = TransformersEngine(), []
    engine.start(packed)
    rows = [([*prompts[0], 5, k], len(prompts[0])) for k in range(7, 12)]
    with packed.gathered():
        assert unpackable(packed) is None
        handle = packed.model.get_input_embeddings().register_forward_hook(
            lambda module, given, out: tokens.append(given[0].numel())
        )
        try:
            parts = engine.score_from(rows)
        finally:
            handle.remove()
        whole = engine.score([ids for ids, _ in rows])
    assert sum(tokens) == len(prompts[0]) + len(rows)  # and the last token of a row predicts nothing
    for part, row in zip(parts, whole, strict=True):
        torch.testing.assert_close(part, row[len(prompts[0]) - 1 :], atol=1e-4, rtol=0)


# --- a completion depends on its own seed ----------------------------------------------------------------------------


def test_neighbours_order_and_batch_size_do_not_matter(policy, prompts):
    sampling = Sampling(max_tokens=30)
    requests = [Request(p, tuple(range(100 * i, 100 * i + 5)), sampling) for i, p in enumerate(prompts[:7])]
    expected = [[c.token_ids for c in cs] for cs in run(policy, requests)]
    assert len({ids for one in expected for ids in one}) > 12
    for max_rows in (1, 3, 7, 256):
        assert [[c.token_ids for c in cs] for cs in run(policy, requests, max_rows=max_rows)] == expected
    assert [[c.token_ids for c in run(policy, [r])[0]] for r in requests] == expected
    order = [4, 2, 6, 0, 5, 1, 3]
    shuffled = run(policy, [requests[i] for i in order])
    assert [[c.token_ids for c in cs] for cs in shuffled] == [expected[i] for i in order]
    for request, ids in zip(requests[:2], expected, strict=False):
        alone = [run(policy, [Request(request.prompt_ids, (s,), sampling)])[0][0] for s in request.seeds]
        assert [c.token_ids for c in alone] == ids
    # the same seed for two prompts, one prompt asked for twice, one seed twice
    twice = run(policy, [Request(prompts[0], (0, 0, 1), sampling), Request(prompts[0], (1,), sampling)])
    assert [c.token_ids for c in twice[0]] == [expected[0][0], expected[0][0], expected[0][1]]
    assert twice[1][0].token_ids == expected[0][1]


def test_ambient_random_numbers_are_neither_read_nor_moved(policy, prompts):
    request = [Request(prompts[0], (1, 2), Sampling(max_tokens=20))]
    torch.manual_seed(1)
    first, state = run(policy, request), torch.get_rng_state()
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert run(policy, request) == first


# --- distributions ---------------------------------------------------------------------------------------------------

LOGITS = torch.tensor([1.0, 0.2, -0.5, 2.0, -3.0, 0.2, 1.5])


def exact(temperature, top_p, top_k):
    """The distribution by definition, over 7 tokens."""
    weights = [math.exp(float(x) / temperature) for x in LOGITS]
    kept = set(range(7))
    if top_k:
        edge = sorted(weights, reverse=True)[min(top_k, 7) - 1]
        kept = {i for i in kept if weights[i] >= edge}
    total = sum(weights[i] for i in kept)
    p = {i: weights[i] / total for i in kept}
    nucleus, mass = set(), 0.0
    for i in sorted(p, key=lambda i: (-p[i], i)):
        if mass >= top_p:
            break
        nucleus.add(i)
        mass += p[i]
    return [p[i] / mass if i in nucleus else 0.0 for i in range(7)]


@pytest.mark.parametrize(
    ("temperature", "top_p", "top_k"),
    [(1.0, 1.0, 0), (0.5, 1.0, 0), (2.0, 1.0, 0), (1.0, 0.8, 0), (1.0, 0.3, 0), (1.0, 1.0, 3), (1.0, 1.0, 4),
     (0.7, 0.9, 5), (1.0, 1.0, 100), (1.5, 1e-9, 0), (1.0, 1.0, 1)],
)  # fmt: skip
def test_tokens_follow_the_exact_distribution(temperature, top_p, top_k):
    n = 20000
    draws = torch.from_numpy(uniforms(1234, n))
    chosen, logp = choose_tokens(LOGITS.repeat(n, 1), Sampling(1, temperature, top_p, top_k), draws)
    expected = exact(temperature, top_p, top_k)
    counts = torch.bincount(chosen, minlength=7).tolist()
    assert all(count == 0 for count, p in zip(counts, expected, strict=True) if p == 0)
    live = [i for i, p in enumerate(expected) if p > 0]
    chi_square = sum((counts[i] - n * expected[i]) ** 2 / (n * expected[i]) for i in live)
    # 0.999 quantiles for 0 to 6 degrees of freedom
    assert chi_square <= [1e-9, 10.83, 13.82, 16.27, 18.47, 20.52, 22.46][len(live) - 1]
    for i in live:
        assert logp[chosen == i].tolist() == pytest.approx([math.log(expected[i])] * counts[i], abs=1e-5)


def test_the_draw_is_inverted_through_the_cumulative_sum():
    logits = torch.tensor([[0.25, 0.5, 0.25]]).log().repeat(6, 1)
    draws = torch.tensor([0.0, 0.2499, 0.2501, 0.7499, 0.7501, 1 - 1e-12], dtype=torch.float64)
    assert choose_tokens(logits, Sampling(1), draws)[0].tolist() == [0, 0, 1, 1, 2, 2]
    assert choose_tokens(logits, Sampling(1, temperature=0.0), None)[0].tolist() == [1] * 6
    # a token without probability is not drawn, not even at the ends
    walled = torch.tensor([[-torch.inf, 0.0, -torch.inf]]).repeat(2, 1)
    assert choose_tokens(walled, Sampling(1), torch.tensor([0.0, 1 - 1e-16], dtype=torch.float64))[0].tolist() == [1, 1]


def test_first_tokens_of_a_model_follow_its_distribution():
    policy = small_policy("llama_untied")
    (out,) = run(policy, [Request((5, 6, 7), tuple(range(4000)), Sampling(max_tokens=1))], max_rows=1500)
    with policy.gathered():
        p = policy.model(torch.tensor([[5, 6, 7]])).logits[0, -1].softmax(-1).tolist()
    counts = [0] * len(p)
    for completion in out:
        counts[completion.token_ids[0]] += 1
    # likely tokens one by one, the rest as one class
    likely = [i for i in range(len(p)) if 4000 * p[i] >= 20]
    cells = [(counts[i], 4000 * p[i]) for i in likely]
    cells.append((4000 - sum(c for c, _ in cells), 4000 - sum(e for _, e in cells)))
    freedom = len(cells) - 1
    assert freedom > 20
    chi_square = sum((c - e) ** 2 / e for c, e in cells)
    assert chi_square < freedom + 3.3 * math.sqrt(2 * freedom)


# --- ends ------------------------------------------------------------------------------------------------------------


def test_truncation_by_length(policy, prompts):
    long = run(policy, [Request(prompts[0], (3, 4), Sampling(max_tokens=40))])[0]
    for limit in (1, 2, 5):
        short = run(policy, [Request(prompts[0], (3, 4), Sampling(max_tokens=limit))])[0]
        for a, b in zip(short, long, strict=True):
            assert a.token_ids == b.token_ids[:limit]
            assert a.logprobs == pytest.approx(b.logprobs[:limit], abs=1e-6)
            assert not a.finished
            assert len(a.token_ids) == limit


def test_end_ids_of_the_generation_config(prompts):
    policy = load_policy("tiny:base")
    free = run(policy, [Request(p, (0,), GREEDY) for p in prompts[:4]])
    (dot,) = policy.tokenizer.encode(".")
    policy.model.generation_config.eos_token_id = [0, dot]
    for (before,), (after,) in zip(free, run(policy, [Request(p, (0,), GREEDY) for p in prompts[:4]]), strict=True):
        assert after.finished
        assert after.token_ids == before.token_ids[: before.token_ids.index(dot) + 1]
        assert after.text.endswith(".")  # an ordinary token that happens to end a completion is still text


@pytest.mark.parametrize(
    "stop",
    [("\\boxed{",), ("So",), ("= ",), (". So \\boxed",), ("}.", "So"), ("So", "}."), ("o \\b", "never met"), ("=",)],
)
def test_stop_strings_cut_the_text_and_end_the_completion(policy, prompts, stop):
    requests = [Request(p, (7, 8, 9), Sampling(max_tokens=40)) for p in prompts[:6]]
    free = [c for cs in run(policy, requests) for c in cs]
    stopping = [Request(r.prompt_ids, r.seeds, Sampling(40, stop=stop)) for r in requests]
    stopped = [c for cs in run(policy, stopping) for c in cs]
    decode = policy.tokenizer.decode
    met = 0
    for before, after in zip(free, stopped, strict=True):
        places = [before.text.find(s) for s in stop if s in before.text]
        if not places:
            assert wrote([after]) == wrote([before])
            continue
        met += 1
        assert after.finished
        assert after.text == before.text[: min(places)]
        # it ends with the token that completes the string, not later
        assert after.token_ids == before.token_ids[: len(after.token_ids)]
        assert any(s in decode(after.token_ids) for s in stop)
        assert not any(s in decode(after.token_ids[:-1]) for s in stop)
        assert len(after.logprobs) == len(after.token_ids)
    assert met >= 3


def test_a_stop_string_in_the_prompt_does_not_count(policy, prompts):
    # the prompt ends with "Solution:", the completion begins with " "
    (out,) = run(policy, [Request(prompts[0], (0,), Sampling(40, 0.0, stop=("Solution:", ": ", "Question")))])
    assert wrote(out) == wrote(run(policy, [Request(prompts[0], (0,), GREEDY)])[0])


def test_a_stop_string_longer_than_the_tail(policy, prompts):
    chosen = [Request(p, (0,), GREEDY) for p in prompts]
    k, (free,) = max(enumerate(run(policy, chosen)), key=lambda row: len(row[1][0].token_ids))
    assert len(free.token_ids) > 12
    stop = free.text[2:-1]
    import lightning_serl.engines.drafts as module

    tail, module._TAIL = module._TAIL, 2
    try:
        (out,) = run(policy, [Request(prompts[k], (0,), Sampling(40, 0.0, stop=(stop,)))])[0]
    finally:
        module._TAIL = tail
    assert out.text == free.text[:2]


def test_stop_strings_are_sought_in_the_text_as_it_is_kept():
    tokenizer = tiny_tokenizer()
    tokenizer.clean_up_tokenization_spaces = True  # as in many published tokenizer_config.json; turns " ." into "."
    texts = TextDecoder(tokenizer, (0,))
    policy = SimpleNamespace(tokenizer=tokenizer, pad_id=0, end_ids=(0,), version=1, texts=texts)
    for text, kept in ((" 3 . So", " 3"), (" 3. So", " 3. So")):
        ids = tokenizer.encode(text)
        drafts = Drafts(policy, [0], Sampling(len(ids), temperature=0.0, stop=(" .",)))
        drafts.begin(0, 1)
        for token in ids:
            if drafts.append(torch.tensor([token]), torch.zeros(1)).all():
                break
        (completion,) = drafts.completions([0])
        assert (completion.text, completion.finished) == (kept, kept != text)


def test_a_special_token_as_stop_string(policy, prompts):
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<turn>"]})
    (number,) = tokenizer.encode("<turn>")
    model = small_model("llama_tied")
    model.resize_token_embeddings(number + 1)
    with torch.no_grad():
        model.lm_head.weight[number] = 100 * model.lm_head.weight[number].sign()
    both = Policy(model, tokenizer)
    requests = [Request((i, i + 1, i + 2), (0,), Sampling(12, 0.0)) for i in range(5, 25)]
    free = [c for (c,) in run(both, requests)]
    written = [c for c in free if number in c.token_ids]
    assert written
    stopped = run(both, [Request(r.prompt_ids, r.seeds, Sampling(12, 0.0, stop=("<turn>",))) for r in requests])
    for before, (after,) in zip(free, stopped, strict=True):
        if number in before.token_ids:
            assert after.finished
            assert after.token_ids == before.token_ids[: before.token_ids.index(number) + 1]
            assert "<turn>" not in after.text
        else:
            assert wrote([after]) == wrote([before])


# --- requests --------------------------------------------------------------------------------------------------------


def test_no_requests_and_no_completions(policy, prompts):
    assert run(policy, []) == []
    assert run(policy, [Request(prompts[0], (), GREEDY)]) == [[]]
    mixed = run(policy, [Request(prompts[0], (), GREEDY), Request(prompts[1], (0,), GREEDY)])
    assert [len(c) for c in mixed] == [0, 1]


def test_requests_larger_than_a_batch_keep_their_order(policy, prompts):
    sampling = Sampling(max_tokens=12)
    requests = [Request(prompts[i], tuple(range(n)), sampling) for i, n in enumerate((7, 1, 9, 2))]
    expected = [wrote(cs) for cs in run(policy, requests, max_rows=100)]
    assert [wrote(cs) for cs in run(policy, requests, max_rows=4)] == expected
    assert [len(cs) for cs in expected] == [7, 1, 9, 2]
    with pytest.raises(ValueError, match="max_rows"):
        TransformersEngine(0)


def test_different_sampling_in_one_call(policy, prompts):
    ways = [
        Sampling(20), Sampling(20, 0.0), Sampling(9), Sampling(20, 0.5), Sampling(20, 1.0, 0.7),
        Sampling(20, 1.0, 1.0, 2), Sampling(20, stop=("So",)), Sampling(20),
    ]  # fmt: skip
    requests = [Request(prompts[i % 3], (i, i + 50), way) for i, way in enumerate(ways)]
    together = run(policy, requests)
    assert [wrote(cs) for cs in together] == [wrote(run(policy, [r])[0]) for r in requests]
    assert len({c.token_ids for cs in together for c in cs}) > 10


def test_results_come_as_batches_finish(policy, prompts):
    engine = TransformersEngine(max_rows=2)
    engine.start(policy)
    polls = []
    engine.poll = lambda: polls.append(None)
    with policy.gathered():
        stream = engine.generate([Request(p, (0, 1), Sampling(max_tokens=5)) for p in prompts[:3]])
        index, completions = next(stream)
        assert len(completions) == 2
        early = len(polls)
        assert 1 <= early <= 5
        assert sorted([index, *(i for i, _ in stream)]) == [0, 1, 2]
    assert len(polls) > early


def test_poll_stops_promptly(policy, prompts):
    class Stop(Exception):
        pass

    calls = []

    def poll():
        calls.append(None)
        if len(calls) == 4:
            raise Stop

    engine = TransformersEngine()
    engine.start(policy)
    engine.poll = poll
    with pytest.raises(Stop), policy.gathered():
        list(engine.generate([Request(p, (0,), GREEDY) for p in prompts]))
    assert len(calls) == 4
    engine.poll = lambda: None
    with policy.gathered():
        assert len(list(engine.generate([Request(prompts[0], (0,), GREEDY)]))) == 1


# --- other selves and the life of an engine --------------------------------------------------------------------------


def test_a_lora_policy_and_its_reference(prompts):
    base = load_policy("tiny:base")
    adapted = Policy(with_lora(load_policy("tiny:base").model), base.tokenizer)
    requests = [Request(p, (0, 1), Sampling(max_tokens=16)) for p in prompts[:5]]
    expected, own = run(base, requests), run(adapted, requests)
    reference = run(adapted, requests, who="reference")
    assert [[c.token_ids for c in cs] for cs in reference] == [[c.token_ids for c in cs] for cs in expected]
    assert [[c.token_ids for c in cs] for cs in own] != [[c.token_ids for c in cs] for cs in expected]
    assert run(adapted, requests) == own
    # the reference answers only while it samples: between two results the policy is itself
    engine = TransformersEngine(max_rows=2)
    engine.start(adapted)
    with adapted.gathered():
        before = adapted.stats([(prompts[0], 1)])[0].logp
        for _ in engine.generate(requests, "reference"):
            assert torch.equal(adapted.stats([(prompts[0], 1)])[0].logp, before)
    # the adapter merged is what the adapter samples
    merged = Policy(with_lora(load_policy("tiny:base").model).merge_and_unload(), base.tokenizer)
    greedy = [Request(p, (0,), GREEDY) for p in prompts[:5]]
    texts = [[c.text for (c,) in run(p, greedy)] for p in (adapted, merged)]
    assert texts[0] == texts[1]


def test_a_low_base_samples_without_autocast_what_it_samples_under_it(prompts, monkeypatch):
    base = load_policy("tiny:base")
    policy = Policy(with_lora(base.model.to(torch.bfloat16)), base.tokenizer)
    requests = [Request(p, (0, 1), Sampling(max_tokens=16)) for p in prompts[:5]]
    used, head = [], policy.head
    monkeypatch.setattr(policy, "head", lambda hidden: used.append(torch.is_autocast_enabled("cpu")) or head(hidden))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = run(policy, requests)
        assert used
        assert not any(used)
        monkeypatch.setattr(Policy, "without_autocast", lambda self: nullcontext())
        assert run(policy, requests) == ours
        assert used[-1]


def test_a_frozen_reference(prompts):
    policy = load_policy("tiny:base")
    requests = [Request(prompts[0], (0, 1), Sampling(max_tokens=16))]
    before = run(policy, requests)
    policy.freeze_copy("reference")
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    assert run(policy, requests, "reference") == before
    assert run(policy, requests) != before


def test_it_is_never_stale_and_leaves_the_policy_as_it_was(prompts):
    policy = load_policy("tiny:base")
    engine = TransformersEngine()
    with pytest.raises(EngineFailure, match="before it was started"):
        engine.version  # noqa: B018
    with pytest.raises(EngineFailure, match="ReplayEngine"):
        engine.start(None)
    engine.start(policy)
    policy.version = 7
    assert engine.version == 7
    assert engine.push(WeightUpdate("full", lambda: iter(()), 8)) == Receipt(7)
    with policy.gathered():
        ((_, (completion,)),) = engine.generate([Request(prompts[0], (0,), GREEDY)])
    assert completion.version == 7
    assert policy.training
    assert policy.model.config.use_cache is False
    engine.close()
    engine.close()
    with pytest.raises(EngineFailure):
        engine.policy  # noqa: B018
    engine.start(policy)
    assert engine.policy is policy


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_p": math.nan}, "top_p"),
        ({"presence_penalty": 2.5}, "presence_penalty"),
        ({"presence_penalty": math.nan}, "presence_penalty"),
        ({"top_k": -1}, "top_k"),
    ],
)
def test_sampling_refuses(options, name):
    with pytest.raises(ValueError, match=name):
        Sampling(**options)


def test_stops_are_joined_in_order():
    assert Sampling(stop=("a",)).with_stop(["b", "a"]).stop == ("a", "b")
