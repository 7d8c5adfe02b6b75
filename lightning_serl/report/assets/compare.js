// -- several runs beside each other -------------------------------------------------------------------------------------

function sharedSet(runs) {
  for (const set of runs[0].sets) if (runs.every((r) => r.sets.some((s) => s.name === set.name))) return set.name;
  return runs.flatMap((r) => r.sets.map((s) => s.name))[0];
}

function comparison(runs, openRun) {
  const name = sharedSet(runs);
  const rows = runs.map((run, i) => ({ run, set: run.sets.find((s) => s.name === name), color: run.control ? "var(--c7)" : colour(i % 7), dash: run.control, label: labelOf(run, runs) }));
  const overlay = (title, note, curveOf, options) => {
    const series = rows.map((r) => ({ name: r.label, curve: curveOf(r), color: r.color, dash: r.dash })).filter((s) => s.curve);
    return series.length ? figure(title, note, lines({ xName: "optimizer step", label: title, series, ...options }), series.map((s) => ({ name: s.name, color: s.color }))) : null;
  };
  const acc = (key) => (r) => r.set && r.set.figures[key];
  const metric = (key) => (r) => r.run.curves[key];
  const k = (rows.find((r) => r.set) || { set: {} }).set.k;
  const cards = [
    overlay(`Greedy pass@1: ${name}`, "Bands are 95 % intervals over the problems. Controls are grey and dashed.", acc("pass@1"), share),
    overlay(`${figureName("mean@k", k)}: ${name}`, "Mean over the sampled answers.", acc("mean@k"), share),
    overlay(`${figureName("maj@k", k)}: ${name}`, "Accuracy of the majority answer.", acc("maj@k"), share),
    overlay("Agreement in the rounds", "Mean share of the answers that agree with the majority.", metric("serl/vote/agreement_mean"), share),
    overlay("Reward", "Rewards of different kinds cannot be compared in height.", metric("reward"), { low: 0 }),
    overlay("KL to the starting policy", "Nats per token.", metric("kl"), { low: 0 }),
    overlay("Entropy of the policy", "Nats per token.", metric("entropy"), { low: 0 }),
    overlay("Length of the answers", "Mean tokens.", metric("completions/mean_length"), { low: 0 }),
    overlay("Trained on", "Share of the answered groups.", metric("serl/filter/yield"), share),
    overlay("Variety of the problems", "Distinct 4-grams among the latest 200.", metric("serl/pool/unique_4grams"), share),
  ].filter(Boolean);
  const options = [...new Set(runs.flatMap((r) => r.about.map(([n]) => n)))];
  const value = (run, option) => (run.about.find(([n]) => n === option) || [])[1];
  const differing = options.filter((o) => new Set(runs.map((r) => value(r, o))).size > 1);
  return [
    section("headline", "Before and after", name ? `On ${name}. The dots with their 95 % intervals are before (grey) and after (blue).` : "No problems were held out.",
      el("div", { class: "card scroll" }, compareTable(rows, k, openRun))),
    section("learning", "Curves", null, grid("", cards)),
    differing.length ? section("options", "What differs", null, el("div", { class: "card scroll" }, el("table", {}, el("tr", {}, el("th", {}, ""), rows.map((r) => el("th", {}, r.label))),
      differing.map((o) => el("tr", {}, el("td", {}, o), rows.map((r) => el("td", { class: "quote" }, value(r.run, o) ?? "–"))))))) : null,
    section("problems", "Why problems were left out", null, el("div", { class: "card scroll" }, reasonTable(rows))),
  ];
}

// Runs of different methods go by their method, others by their folder.
function labelOf(run, runs) {
  const methods = runs.map((r) => r.method), seeds = new Set(runs.map((r) => r.seed));
  const both = runs.map((r) => `${r.method}, seed ${r.seed}`);
  if (!methods.includes("default") && new Set(methods).size > 1 && new Set(both).size === runs.length) {
    return seeds.size > 1 ? `${run.method}, seed ${run.seed}` : run.method;
  }
  return runs.filter((r) => r.name === run.name).length > 1 ? run.folder : run.name;
}

function compareTable(rows, k, openRun) {
  const keys = ["pass@1", "mean@k", "maj@k"].filter((key) => rows.some((r) => r.set && r.set.figures[key]));
  if (!keys.length && rows.some((r) => r.set && r.set.figures.agreement)) keys.push("agreement");
  return el("table", {}, el("tr", {}, el("th", {}, "run"), el("th", {}, "state"), keys.map((key) => el("th", { class: "r" }, NAMES[key] === key ? figureName(key, k) : NAMES[key])),
    el("th", { style: "min-width:150px" }, keys.length ? `${NAMES[keys[0]]}, 0 to 100 %` : ""), el("th", { class: "r" }, "trained on"), el("th", {}, "health"), el("th", { class: "r" }, "time")),
  rows.map(({ run, set, label, color }) => {
    const host = el("div");
    const main = keys.length && set && set.figures[keys[0]];
    if (main) { const [a, b] = ends(main); redrawn(host, beforeAfter(main.y.length > 1 ? a : null, b)); }
    const mark = el("i", { style: "display:inline-block;width:10px;height:10px;border-radius:3px;margin-right:8px" });
    mark.style.background = color;
    const outside = run.health.filter((s) => s.outside).length, warned = run.health.filter((s) => s.warnings.length).length;
    return el("tr", {}, el("td", { style: "min-width:130px" }, mark, el("button", { class: "link", onclick: () => openRun(run) }, label), run.control && [" ", el("span", { class: "chip" }, "control")]),
      el("td", {}, el("span", { class: `chip ${stateKind(run.state)}` }, run.state)),
      keys.map((key) => {
        const curve = set && set.figures[key];
        if (!curve) return el("td", { class: "r" }, "–");
        const [a, b] = ends(curve);
        return el("td", { class: "r" }, curve.y.length > 1 ? [`${(100 * a.value).toFixed(1)} → ${(100 * b.value).toFixed(1)} %`, el("div", { class: "note" }, points(b.value - a.value)), bestOf(curve)] : percent(b.value));
      }),
      el("td", {}, host), el("td", { class: "r" }, `${count(run.counts.trained)} of ${count(run.counts.proposed)}`),
      el("td", {}, el("span", { class: `chip ${outside ? "bad" : warned ? "warn" : "good"}` }, outside ? `${outside} outside` : warned ? "warned" : "in band")),
      el("td", { class: "r" }, duration(run.seconds || Object.values(run.times).reduce((x, y) => x + y, 0))));
  }));
}

// The best value of a run that has fallen since.
function bestOf(curve) {
  const best = Math.max(...curve.y), last = curve.y[curve.y.length - 1];
  return best - last > 0.02 ? el("div", { class: "note" }, `best ${percent(best)}, step ${curve.x[curve.y.indexOf(best)]}`) : null;
}

function reasonTable(rows) {
  const names = [...new Set(rows.flatMap((r) => r.run.reasons.map((one) => `${one.kind}: ${one.reason}`)))];
  if (!names.length) return empty("No problem was left out.");
  const of = (run, name) => run.reasons.find((one) => `${one.kind}: ${one.reason}` === name);
  const cell = (run, one) => !one ? "–" : [count(one.count), el("span", { class: "note" }, ` ${percent(one.count / run.counts.proposed, 0)}`)];
  return el("table", {}, el("tr", {}, el("th", {}, "reason"), rows.map((r) => el("th", { class: "r" }, r.label))),
    names.map((name) => el("tr", {}, el("td", {}, name), rows.map((r) => el("td", { class: "r" }, cell(r.run, of(r.run, name)))))));
}
