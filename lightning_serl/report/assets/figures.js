// -- the sections of one run -------------------------------------------------------------------------------------------

const NAMES = {
  "pass@1": "greedy pass@1", "mean@k": "mean@k", "maj@k": "maj@k", "pass@k": "pass@k",
  agreement: "agreement of answers", vote_accuracy: "accuracy of the vote", no_answer: "without answer",
};
const OUTCOME_NAMES = {
  trained: "trained on", kept: "kept, not trained yet", answered: "answered", waiting: "waiting", dropped: "dropped",
  rejected: "rejected",
};
const OUTCOME_COLOURS = {
  trained: "var(--c2)", kept: "var(--c5)", answered: "var(--c3)", waiting: "var(--c6)", dropped: "var(--c1)", rejected: "var(--c4)",
};
const SIGN_NAMES = {
  same_vote_share: "same votes as at the start", kl_slope: "rise of the KL", vote_entropy: "entropy of the votes",
  unanimous_share: "unanimous groups", top_answer_share: "one answer for all", no_answer_share: "without answer",
  truncated_share: "cut off", repeated_4gram_share: "repeated 4-grams", length_ratio: "length, to the start",
  entropy_ratio: "token entropy, to the start",
};
const PART_NAMES = { logprobs: "log-probs", sync: "pushing weights", starting: "starting the engine" };

const figureName = (key, k) => key.replace("@k", isNumber(k) && k ? `@${k}` : "@k");
const ends = (curve) => curve ? [0, curve.y.length - 1].map((i) => ({
  value: curve.y[i], lo: curve.lo ? curve.lo[i] : null, hi: curve.hi ? curve.hi[i] : null, step: curve.x[i],
})) : [null, null];
const between = (one) => one && isNumber(one.lo) ? `${(100 * one.lo).toFixed(1)} to ${(100 * one.hi).toFixed(1)}` : "";
const apart = (a, b) => isNumber(a.lo) && isNumber(b.lo) ? a.hi < b.lo || b.hi < a.lo : null;
const stateKind = (state) => state === "finished" ? "good" : state === "running" ? "info" : /error/.test(state) ? "bad" : "warn";

function section(id, title, about, ...content) {
  return el("section", { id }, el("h2", {}, title), about && el("p", { class: "about" }, about), content);
}

function grid(kind, ...cards) { return el("div", { class: `grid ${kind}` }, cards); }

function mainSet(run) { return run.sets.find((s) => s.labelled && s.figures["pass@1"]) || run.sets[0]; }

// One sentence on what the run did, in numbers.
function lede(run) {
  const set = mainSet(run);
  if (!set) return run.rounds ? "No problems were held out, so this page shows health, not accuracy." : "";
  const [key, what] = set.figures["pass@1"] ? ["pass@1", "Greedy pass@1"] : ["agreement", "Agreement of answers"];
  if (!set.figures[key]) return "";
  const [before, after] = ends(set.figures[key]);
  if (set.figures[key].y.length < 2) return `${what} is ${percent(after.value)} on ${count(set.n)} held-out problems (${set.name}).`;
  const clear = apart(before, after);
  const tail = clear === null ? "" : clear ? "; the 95 % intervals do not overlap" : "; the 95 % intervals overlap, so this is no clear change";
  const sort = key === "agreement" ? " Without labels this is agreement, not accuracy." : "";
  const curve = set.figures[key], best = Math.max(...curve.y);
  const since = best - Math.max(before.value, after.value) > 0.02 && best - after.value > 0.02
    ? ` Its best was ${percent(best)} at step ${curve.x[curve.y.indexOf(best)]}; it has fallen by ${(100 * (best - after.value)).toFixed(1)} points since.` : "";
  const way = after.value > before.value ? "rose" : after.value < before.value ? "fell" : "stayed";
  return `${what} on ${count(set.n)} held-out problems ${way} from ${percent(before.value)} to ${percent(after.value)} (${points(after.value - before.value)})${tail}.${since}${sort}`;
}

function stat(name, value, under, strip) {
  return el("div", { class: "card stat" }, el("div", { class: "name" }, name), el("div", { class: "value num" }, value),
    strip, under && el("div", { class: "under" }, under));
}

function changeStat(set, key) {
  const [before, after] = ends(set.figures[key]);
  const host = el("div");
  redrawn(host, beforeAfter(set.figures[key].y.length > 1 ? before : null, after));
  const name = NAMES[key] === key ? figureName(key, set.k) : NAMES[key];
  if (set.figures[key].y.length < 2) return stat(name, percent(after.value), between(after) && `95 %: ${between(after)}`, host);
  const delta = after.value - before.value;
  const good = key === "no_answer" ? delta < 0 : delta > 0;
  const kind = apart(before, after) === false || Math.abs(delta) < 5e-4 || key === "agreement" ? "" : good ? "good" : "bad";
  return stat(name, [el("span", { class: "from" }, (100 * before.value).toFixed(1), " → "), (100 * after.value).toFixed(1), el("small", {}, " %")],
    [el("span", { class: `chip ${kind}` }, points(delta)), isNumber(after.lo) && el("span", {}, isNumber(before.lo) ? `${between(before)} → ${between(after)}` : `95 %: ${between(after)}`)], host);
}

function headline(run) {
  const cards = [];
  const set = mainSet(run);
  if (set) {
    const keys = set.figures["pass@1"] ? ["pass@1", "mean@k", "maj@k", "pass@k"] : ["agreement", "no_answer"];
    for (const key of keys) if (set.figures[key]) cards.push(changeStat(set, key));
  }
  const counts = run.counts;
  if (counts.proposed) {
    cards.push(stat("problems trained on", [count(counts.trained), el("small", {}, ` of ${count(counts.proposed)}`)],
      `${count(counts.rejected)} rejected, ${count(counts.dropped)} dropped`));
  }
  const outside = run.health.filter((s) => s.outside), warned = run.health.filter((s) => s.warnings.length);
  if (run.health.length) {
    cards.push(stat("health", outside.length ? `${outside.length} of ${run.health.length}` : warned.length ? "back in band" : "in band",
      outside.length ? `outside: ${outside.map((s) => SIGN_NAMES[s.name]).join(", ")}` : `${run.health.length} signs, ${warned.length} warned`));
  }
  const total = run.seconds || Object.values(run.times).reduce((a, b) => a + b, 0);
  if (run.rounds) cards.push(stat("time", duration(total), `${count(run.rounds)} rounds, ${count(run.steps)} optimizer steps`));
  const several = run.sets.length > 1 ? el("div", { class: "card scroll", style: "margin-top:14px" }, setTable(run)) : null;
  const facts = el("div", { class: "card", style: "margin-top:14px" }, el("dl", { class: "facts" },
    run.about.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, visible(value))))));
  return section("headline", "Before and after", set && set.labelled === 0
    ? "No labels: agreement says how much the answers agree, not whether they are right."
    : "Shares of held-out problems with 95 % intervals: Wilson's for pass@1 and votes, a bootstrap over problems for means. Grey is before, blue after.",
  cards.length ? grid("cards", cards) : empty("Nothing was measured yet."), several, facts);
}

function setTable(run) {
  return el("table", {}, el("tr", {}, ["evaluation set", "problems", "greedy pass@1", "mean@k", "maj@k", "agreement"].map((t, i) => el("th", { class: i ? "r" : "" }, t))),
    run.sets.map((set) => el("tr", {}, el("td", {}, set.name), el("td", { class: "r" }, count(set.n)),
      ["pass@1", "mean@k", "maj@k", "agreement"].map((key) => {
        const [a, b] = ends(set.figures[key]);
        return el("td", { class: "r" }, !b ? "–" : set.figures[key].y.length > 1 ? `${(100 * a.value).toFixed(1)} → ${percent(b.value)}` : percent(b.value));
      }))));
}

const share = { format: (v) => `${Math.round(1000 * v) / 10} %`, low: 0, high: 1, xName: "optimizer step" };
const asSeries = (names) => names.filter(([, curve]) => curve).map(([name, curve, more], i) => ({ name, curve, color: colour(i), ...more }));
const legendOf = (series) => series.length > 1 ? series.map((s) => ({ name: s.name, color: s.color })) : [];

function curveCard(title, note, series, options = {}) {
  const found = asSeries(series);
  if (!found.length) return null;
  return figure(title, note, lines({ xName: "optimizer step", label: title, series: found, ...options }), legendOf(found));
}

function learning(run) {
  const cards = [], c = run.curves;
  for (const set of run.sets) {
    const found = ["pass@1", "mean@k", "maj@k", "pass@k"].filter((key) => set.figures[key])
      .map((key) => [NAMES[key] === key ? figureName(key, set.k) : NAMES[key], set.figures[key]]);
    cards.push(curveCard(`Accuracy: ${set.name}`, `${count(set.n)} held-out problems; bands are 95 % intervals.`, found, share));
  }
  const set = mainSet(run), f = set ? set.figures : {};
  cards.push(curveCard("Agreement beside accuracy", "When agreement rises and accuracy does not, the policy agrees on wrong answers.",
    [["agreement in the rounds", c["serl/vote/agreement_mean"]], ["agreement, held out", f.agreement],
      ["accuracy of the vote, held out", f.vote_accuracy], ["greedy pass@1, held out", f["pass@1"]]], share));
  cards.push(passAt(run));
  cards.push(curveCard("Reward", "Mean over the answers of a round, and the mean spread within a group.",
    [["reward", c.reward], ["spread in a group", c.reward_std]], { low: 0 }));
  cards.push(curveCard("KL to the starting policy", "Nats per token.", [["KL", c.kl]], { low: 0 }));
  cards.push(curveCard("Entropy of the policy", "Nats per token; near 0 the policy no longer explores.", [["entropy", c.entropy]], { low: 0 }));
  cards.push(curveCard("Norm of the gradient", "Before clipping.", [["norm", c.grad_norm]], { low: 0 }));
  const found = cards.filter(Boolean);
  return section("learning", "Learning", null, found.length ? grid("", found) : empty("No optimizer step was made yet."));
}

function passAt(run) {
  const set = run.sets.find((s) => s.pass_at.some((p) => p.x.length > 1));
  if (!set) return null;
  const both = set.pass_at.length > 1 && set.pass_at[0].step !== set.pass_at[1].step;
  const curves = both ? [["before", set.pass_at[0], { color: "var(--c7)" }], ["after", set.pass_at[1], { color: "var(--c0)" }]]
    : [["measured", set.pass_at[set.pass_at.length - 1]]];
  return curveCard("pass@k over k", `Chance that k sampled answers hold a right one (${set.name}). Where the curves meet at large k, training made right answers more frequent, not new ones.`,
    curves, { ...share, log: true, xName: "k" });
}

function problems(run) {
  const counts = run.counts, by = run.by_round, cards = [];
  if (!counts.proposed) return section("problems", "Problems", null, empty("The ledger holds no problems."));
  const parts = Object.keys(OUTCOME_NAMES).filter((name) => counts[name])
    .map((name) => ({ name: OUTCOME_NAMES[name], values: by.outcomes[name], color: OUTCOME_COLOURS[name] }));
  const legend = parts.map((p) => ({ name: p.name, color: p.color, box: true }));
  const rounds = by.size > 1 ? ` Each column adds up ${by.size} rounds.` : "";
  cards.push(figure("What became of the problems", `By the round in which they were proposed.${rounds}`, columns(parts, by.first, by.size), legend));
  const voted = by.histogram.some((column) => column.some(Boolean));
  cards.push(voted ? figure("Difficulty", `Share of the answers that agree with the majority; darker is a larger part of the round's problems. Low is hard, high is easy.${rounds}`,
    heat(by.histogram, by.first, by.size)) : el("div", { class: "card" }, el("h3", {}, "Difficulty"), empty("There was no vote yet.")));
  const c = run.curves;
  cards.push(curveCard("Accepted and trained on", "Shares of the written problems that the filters accepted, and of the answered groups that are trained on.",
    [["accepted", c["serl/filter/accepted_rate"]], ["trained on", c["serl/filter/yield"]]], share));
  cards.push(curveCard("Variety", "Distinct 4-grams among the latest 200 written problems, and the similarity (ROUGE-L) of accepted problems to the nearest in the pool.",
    [["distinct 4-grams", c["serl/pool/unique_4grams"]], ["nearest in the pool", c["serl/pool/nearest_mean"]]], share));
  cards.push(curveCard("The pool", "Problems in the pool, and those that wait for an answer.",
    [["pool", c["serl/pool/size"]], ["queue", c["serl/pool/queue"]]], { low: 0 }));
  cards.push(curveCard("Age of the exemplars", "Mean number of rounds since the kept problems that prompts show were written.",
    [["rounds", c["serl/pool/exemplar_age"]]], { low: 0 }));
  cards.push(curveCard("Words of a problem", "Mean over the latest 200 written problems.", [["words", c["serl/pool/words_mean"]]], { low: 0 }));
  const shown = cards.filter(Boolean);
  return section("problems", "Problems", `${count(counts.proposed)} problems were proposed, ${count(counts.rejected)} rejected before and ${count(counts.dropped)} dropped after they were answered; ${count(counts.trained)} were trained on.`,
    grid("", shown), run.reasons.length ? reasons(run) : null);
}

function reasons(run) {
  const most = Math.max(...run.reasons.map((r) => r.count));
  return el("div", { class: "card", style: "margin-top:14px" }, el("h3", {}, "Why problems were left out"), el("div", { class: "scroll" },
    el("table", {}, el("tr", {}, el("th", {}, "reason"), el("th", { class: "r" }, "problems"), el("th", {}, "examples")),
      run.reasons.map((r) => {
        const bar = el("i"); bar.style.width = `${(100 * r.count) / most}%`;
        bar.style.background = OUTCOME_COLOURS[r.kind];
        return el("tr", {},
          el("td", { style: "min-width:150px;max-width:230px" }, el("button", { class: "link", onclick: () => filterBy(run, r.kind, r.reason) }, r.reason),
            " ", el("span", { class: "note" }, r.kind), el("div", { class: "note" }, r.meaning), el("div", { class: "meter" }, bar)),
          el("td", { class: "r" }, count(r.count)),
          el("td", { style: "min-width:190px" }, r.examples.length ? r.examples.map((e) => el("div", { class: "quote model-text" }, `${visible(e.prompt)} `,
            isNumber(e.confidence) && el("span", { class: "note" }, `agreement ${percent(e.confidence, 0)}`))) : el("span", { class: "note" }, "no text")));
      }))));
}

function lengths(run) {
  const c = run.curves, cards = [];
  const mean = c["completions/mean_length"];
  cards.push(curveCard("Length of the answers", "Tokens; mean, shortest and longest answer of a round.",
    [["mean", mean], ["shortest", c["completions/min_length"], { thin: true }], ["longest", c["completions/max_length"], { thin: true }]], { low: 0 }));
  cards.push(curveCard("Cut off and unread", "Shares of the answers that reached the longest length, and of those without an answer that can be read.",
    [["cut off", c["completions/clipped_ratio"]], ["without answer", c["serl/vote/no_answer_frac"]]], { ...share, high: 0.1 }));
  cards.push(curveCard("Different answers to a problem", "Mean number of distinct answers in a group.", [["answers", c["serl/vote/unique_answers"]]], { low: 0 }));
  const found = cards.filter(Boolean);
  return found.length ? section("lengths", "Lengths and answers", null, grid("", found)) : null;
}

function health(run) {
  if (!run.health.length) return null;
  const back = run.rolled_back.map((r) => el("div", { class: "warning" }, el("b", {}, `Step ${r.step}: the run went back to the weights of step ${r.to_step}. `),
    isNumber(r.change) && `The answers to the health probe had fallen by ${plain(-r.change)} below their best.`));
  const warned = run.health.flatMap((s) => s.warnings.map((w) => ({ ...w, sign: s }))).sort((a, b) => a.step - b.step);
  const list = warned.length ? warned.map((w) => el("div", { class: "warning" }, el("b", {}, `Step ${w.step}: ${w.text}. `),
    w.sign.advice.charAt(0).toUpperCase() + w.sign.advice.slice(1), ".")) : el("p", { class: "note" }, "No sign left its band.");
  const cards = run.health.map((s) => {
    const range = isNumber(s.low) && isNumber(s.high) ? `${plain(s.low)} to ${plain(s.high)}` : isNumber(s.low) ? `at least ${plain(s.low)}` : `at most ${plain(s.high)}`;
    const card = figure(SIGN_NAMES[s.name] || s.name, null, lines({
      series: [{ name: s.name, curve: s.curve, color: s.warnings.length ? "var(--bad)" : "var(--c0)", thin: true }],
      shade: [s.low, s.high], marks: s.warnings.map((w) => w.step), height: 140, xName: "optimizer step", label: s.name,
    }));
    card.insertBefore(el("div", { class: "row note" }, el("span", { class: `chip ${s.outside ? "bad" : s.warnings.length ? "warn" : "good"}` },
      s.outside ? "outside" : s.warnings.length ? "was outside" : "inside"), `now ${plain(s.last)}; band: ${range}`), card.children[1]);
    return card;
  });
  return section("health", "Health without labels", "Signs that need no labels, each with its band (green) and the steps at which the run warned (red). A sign is judged by its mean over the latest values, so single points may lie outside.",
    el("div", { style: "margin-bottom:14px" }, list, back), grid("tight", cards));
}

function sampler(run) {
  const c = run.curves, gap = "sampling/sampling_logp_difference", ratio = "sampling/importance_sampling_ratio";
  const cards = [
    curveCard("Gap between engine and trainer", "Absolute difference of their log-probs, nats per token. Up to 5e−4 is usual in float32, up to 0.05 in bfloat16.",
      [["mean", c[`${gap}/mean`]], ["largest", c[`${gap}/max`]]], { low: 0 }),
    curveCard("Importance weights", "Ratios that correct the gap; 1 is no correction.",
      [["mean", c[`${ratio}/mean`]], ["least", c[`${ratio}/min`], { thin: true }], ["largest", c[`${ratio}/max`], { thin: true }]]),
    curveCard("Effective sample size", "As a share; 1 if all weights are equal.", [["share", c["serl/sampling/effective_sample_size"]]], { ...share, low: 0.9 }),
  ].filter(Boolean);
  return cards.length ? section("sampler", "Sampler and trainer", null, grid("", cards)) : null;
}

function time(run) {
  const parts = Object.entries(run.times).filter(([, s]) => s > 0).sort((a, b) => b[1] - a[1]);
  const whole = parts.reduce((sum, [, s]) => sum + s, 0);
  if (!whole && !run.memory) return null;
  const name = (part) => PART_NAMES[part] || part;
  const cards = [];
  if (whole) {
    const stack = el("div", { class: "stack" }, parts.map(([part, s], i) => {
      const bar = el("i", { title: `${name(part)}: ${percent(s / whole, 0)}` });
      bar.style.background = i < 7 ? colour(i) : "var(--c7)"; bar.style.width = `${(100 * s) / whole}%`;
      return bar;
    }));
    cards.push(el("div", { class: "card" }, el("h3", {}, "Where the time went"), el("p", { class: "note" }, `${duration(whole)} in all, by the clock of the first process.`), stack,
      el("table", {}, parts.map(([part, s], i) => {
        const mark = el("i", { style: "display:inline-block;width:10px;height:10px;border-radius:3px;margin-right:8px" });
        mark.style.background = i < 7 ? colour(i) : "var(--c7)";
        return el("tr", {}, el("td", {}, mark, name(part)), el("td", { class: "r" }, duration(s)), el("td", { class: "r" }, percent(s / whole, 0)));
      }))));
    const over = parts.slice(0, 6).map(([part]) => [name(part), run.curves[`time/${part}`], { thin: true }]);
    cards.push(curveCard("Seconds of a step", "The largest parts, step by step.", over, { low: 0 }));
  }
  if (run.memory) {
    cards.push(el("div", { class: "card" }, el("h3", {}, "Memory"), el("p", { class: "note" }, "Largest use, GiB."), el("table", {},
      Object.entries(run.memory).map(([part, gib]) => el("tr", {}, el("td", {}, part.replaceAll("_", " ")), el("td", { class: "r" }, plain(gib)))))));
  }
  return section("time", "Time and memory", null, grid("", cards.filter(Boolean)));
}
