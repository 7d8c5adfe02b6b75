// -- problems and transcripts ------------------------------------------------------------------------------------------

const unpacked = new Map();

// The value of one chunk: base64 of compressed JSON in a script element that the browser does not run.
function unpack(id) {
  if (!unpacked.has(id)) {
    unpacked.set(id, (async () => {
      const bytes = Uint8Array.from(atob(document.getElementById(id).textContent.trim()), (c) => c.charCodeAt(0));
      const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
      return JSON.parse(await new Response(stream).text());
    })());
  }
  return unpacked.get(id);
}

const FIELDS = ["uid", "round", "prompt", "outcome", "reason", "label", "confidence", "voted", "role", "score"];

async function problemsOf(run) {
  if (!run.problems) {
    const rows = (await Promise.all(run.transcripts.problems.map(unpack))).flat();
    run.problems = rows.map((row) => Object.fromEntries(FIELDS.map((name, i) => [name, row[i]])));
    run.byUid = new Map(run.problems.map((p) => [p.uid, p]));
    run.byText = new Map();
    for (const p of run.problems) {
      const key = textKey(p.prompt);
      if (!run.byText.has(key)) run.byText.set(key, []);
      run.byText.get(key).push(p);
    }
    for (const round of Object.keys(run.transcripts.rounds)) run.byRound = run.byRound || new Set(Object.keys(run.transcripts.rounds));
  }
  return run.problems;
}

const textKey = (text) => text.toLowerCase().split(/\s+/).join(" ").slice(0, 300);

async function groupOf(run, problem) {
  for (const round of [problem.voted, problem.round]) {
    const id = run.transcripts.rounds[String(round)];
    if (id === undefined || round === null) continue;
    const found = ((await unpack(id))[String(round)] || []).find((g) => g.uid === problem.uid);
    if (found) return found;
  }
  return null;
}

// Called from other sections: shows the problems of one reason.
function filterBy(run, kind, reason) {
  run.show({ round: "", outcome: kind, reason, words: "" });
  document.getElementById("transcripts").scrollIntoView();
}

function transcripts(run) {
  const t = run.transcripts;
  const host = el("div");
  const about = "Every problem of the run: choose a round, search, or filter by what became of it. Open one to read its answers, grouped by vote.";
  const left = t.left_out.length ? el("p", { class: "note", style: "margin-bottom:10px" }, `Left out of this page, to keep it small: ${t.left_out.join("; ")}.`) : null;
  if (!run.counts.proposed) return section("transcripts", "Transcripts", null, empty("There are no problems yet."));
  if (typeof DecompressionStream === "undefined") return section("transcripts", "Transcripts", null, empty("This browser cannot unpack the transcripts; it needs DecompressionStream (Chrome 80, Safari 16.4, Firefox 113)."));
  browser(run, host);
  return section("transcripts", "Transcripts", about, left, host);
}

function option(value, text) { return el("option", { value }, text); }

function browser(run, host) {
  const rounds = run.by_round.size === 1 ? run.by_round.first : null;
  const round = el("select", { "aria-label": "round" }), outcome = el("select", { "aria-label": "outcome" }), reason = el("select", { "aria-label": "reason" });
  const search = el("input", { type: "search", placeholder: "Search problems, labels, uids", "aria-label": "search" });
  const list = el("div", { class: "card list" }), detail = el("div", { class: "detail" });
  const earlier = el("button", { "aria-label": "earlier round", onclick: () => step(-1) }, "‹");
  const later = el("button", { "aria-label": "later round", onclick: () => step(1) }, "›");
  host.append(el("div", { class: "controls" }, el("span", { class: "group" }, earlier, round, later), outcome, reason, search),
    el("div", { class: "browser" }, list, detail));
  outcome.append(option("", "all outcomes"), ...Object.keys(OUTCOME_NAMES).filter((o) => run.counts[o]).map((o) => option(o, OUTCOME_NAMES[o])));
  reason.append(option("", "all reasons"), ...[...new Set(run.reasons.map((r) => r.reason))].map((r) => option(r, r)));
  let most = 60, chosen = null, ready = false;

  function step(by) {
    const all = [...round.options].map((o) => o.value);
    const next = Math.min(all.length - 1, Math.max(1, all.indexOf(round.value) + by));
    round.value = all[next];
    refresh();
  }

  function refresh() { most = 60; paint(true); }

  function matches() {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    return run.problems.filter((p) => (round.value === "" || String(p.round) === round.value || String(p.voted) === round.value)
      && (!outcome.value || p.outcome === outcome.value) && (!reason.value || p.reason === reason.value)
      && words.every((w) => p.prompt.toLowerCase().includes(w) || p.uid.includes(w) || (p.label || "").toLowerCase().includes(w)));
  }

  function paint(openFirst) {
    if (!ready) return;
    const found = matches();
    const where = round.value === "" ? "all rounds" : `round ${Number(round.value) + 1}`;
    list.replaceChildren(el("div", { class: "head" }, `${count(found.length)} problems, ${where}`));
    for (const p of found.slice(0, most)) list.append(item(p));
    if (found.length > most) {
      list.append(el("button", { class: "item", onclick: () => { most += 200; paint(false); } }, `Show more (${count(found.length - most)} left)`));
    }
    if (!found.length) list.append(el("p", { class: "note", style: "padding:14px" }, "No problem matches."));
    if (openFirst) {
      list.scrollTop = 0;
      const first = found.find((p) => p.voted !== null && p.outcome !== "rejected") || found[0];
      first ? open(first, false) : detail.replaceChildren();
    }
  }

  function item(p) {
    const meter = el("span", { class: "meter" }, el("i"));
    if (isNumber(p.confidence)) meter.firstChild.style.width = `${100 * p.confidence}%`;
    const node = el("button", { class: `item${chosen && chosen.uid === p.uid ? " on" : ""}`, onclick: () => open(p, true) },
      el("span", { class: "p model-text" }, visible(p.prompt) || "(empty)"),
      el("span", { class: "m" }, el("span", { class: `chip ${{ trained: "good", rejected: "bad", dropped: "warn" }[p.outcome] || ""}` }, p.reason || OUTCOME_NAMES[p.outcome]),
        isNumber(p.confidence) && meter, isNumber(p.confidence) && percent(p.confidence, 0), round.value === "" && `round ${p.round + 1}`, p.role && `role ${p.role}`));
    node.dataset.uid = p.uid;
    return node;
  }

  async function open(p, byHand) {
    chosen = p;
    for (const node of list.querySelectorAll(".item")) node.classList.toggle("on", node.dataset.uid === p.uid);
    const cards = await problemCards(run, p, (other) => open(other, true));
    if (chosen !== p) return;
    detail.replaceChildren(...cards);
    if (byHand && window.innerWidth <= 860) detail.scrollIntoView({ block: "start" });
  }

  for (const one of [round, outcome, reason]) one.addEventListener("change", refresh);
  let waiting = 0;
  search.addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(refresh, 120); });
  run.show = async (asked) => {
    await loaded;
    round.value = asked.round; outcome.value = asked.outcome; reason.value = asked.reason; search.value = asked.words;
    refresh();
  };
  const loaded = problemsOf(run).then((all) => {
    const numbers = [...new Set(rounds || all.flatMap((p) => [p.round, p.voted]).filter((n) => n !== null))].sort((a, b) => a - b);
    round.append(option("", "all rounds"), ...numbers.map((n) => option(String(n), `round ${n + 1}`)));
    round.value = numbers.length ? String(numbers[numbers.length - 1]) : "";
    ready = true;
    paint(true);
  }).catch((error) => host.replaceChildren(empty(`The transcripts of this page cannot be unpacked: ${error.message}`)));
}

async function problemCards(run, p, open) {
  const group = await groupOf(run, p);
  const facts = [`round ${p.round + 1}`, p.voted !== null && p.voted !== p.round && `answered in round ${p.voted + 1}`, p.role && `role ${p.role}`,
    isNumber(p.confidence) && `agreement ${percent(p.confidence, 0)}`, isNumber(p.score) && `mean score ${plain(p.score)}`, p.uid];
  const why = p.reason && run.reasons.find((r) => r.reason === p.reason);
  const head = el("div", { class: "card" },
    el("div", { class: "row" }, el("span", { class: `chip ${{ trained: "good", rejected: "bad", dropped: "warn" }[p.outcome] || ""}` }, OUTCOME_NAMES[p.outcome]),
      p.reason && el("span", {}, p.reason, why && why.meaning && el("span", { class: "note" }, ` – ${why.meaning}`))),
    el("p", { class: "problem model-text" }, visible(group ? group.prompt : p.prompt) || "(empty)"),
    group && group.choices && el("ol", { class: "plain", type: "A" }, group.choices.map((c) => el("li", { class: "model-text" }, visible(c)))),
    el("div", { class: "row note" }, facts.filter(Boolean).join(" · ")));
  const cards = [head];
  if (group) cards.push(answers(group));
  else cards.push(el("div", { class: "card" }, empty(p.outcome === "rejected" ? "It was rejected before it was answered." : p.voted === null ? "It was not answered yet."
    : "Its answers are not in this page. The run records texts up to a limit for each round (samples.jsonl); runs of earlier versions recorded four groups of a round.")));
  const origin = ancestry(run, p, group, open);
  if (origin) cards.push(origin);
  const again = await sameProblem(run, p, open);
  if (again) cards.push(again);
  return cards;
}

// Answers by class of equal answers, the largest class first. Old recordings have no classes: equal texts are one.
function byVote(group) {
  const classes = new Map();
  for (const r of group.r) {
    const none = r.a === undefined || r.c === -1;
    const key = none ? "none" : r.c !== undefined ? `c${r.c}` : `a${r.a}`;
    if (!classes.has(key)) classes.set(key, { answer: none ? null : r.a, responses: [] });
    classes.get(key).responses.push(r);
  }
  return [...classes.values()].sort((a, b) => (a.answer === null) - (b.answer === null) || b.responses.length - a.responses.length);
}

function answers(group) {
  const votes = byVote(group), n = group.r.length;
  const labelled = (v) => v.answer !== null && (v.responses.some((r) => r.a === group.label) || v.answer === group.label);
  const stack = el("div", { class: "stack" }, votes.map((v, i) => {
    const bar = el("i", { title: `${visible(v.answer ?? "no answer")}: ${v.responses.length}` });
    bar.style.width = `${(100 * v.responses.length) / n}%`;
    bar.style.background = v.answer === null ? "var(--faint)" : labelled(v) ? "var(--c0)" : `var(--c${[1, 3, 5, 6, 4, 7, 2][i % 7]})`;
    return bar;
  }));
  const card = el("div", { class: "card" }, el("h3", {}, `${n} answers, ${votes.filter((v) => v.answer !== null).length} different`),
    el("p", { class: "note" }, group.label === undefined ? "There is no label." : ["Label: ", el("b", { class: "model-text" }, visible(group.label))]), stack);
  const shaded = group.r.some((r) => r.lp);
  const body = el("div");
  let shade = false;
  const toggle = el("button", { onclick: () => { shade = !shade; toggle.classList.toggle("on", shade); paint(); } }, "log-probs");
  card.append(el("div", { class: "row" }, toggle, el("span", { class: "note" }, shaded
    ? "shades each token by the log-prob the sampler gave it, for the answers that have them" : "not recorded for this problem: the first groups of each round have them, where the engine reports them")), body);
  toggle.disabled = !shaded;
  const paint = () => body.replaceChildren(...votes.map((v) => vote(v, n, labelled(v), shade)));
  paint();
  return card;
}

function vote(v, n, isLabel, shade) {
  const scores = [...new Set(v.responses.map((r) => r.s))];
  const head = el("div", { class: "head" }, el("span", { class: "answer model-text" }, v.answer === null ? "no answer that can be read" : visible(v.answer)),
    el("span", { class: "note" }, `${v.responses.length} of ${n}`), isLabel && el("span", { class: "chip info" }, "label"),
    el("span", { class: "note" }, scores.length === 1 ? `score ${plain(scores[0])}` : `scores ${plain(Math.min(...scores))} to ${plain(Math.max(...scores))}`));
  const same = new Map();
  for (const r of v.responses) {
    const key = r.t === null ? "\u0000none" : r.lp && shade ? `${r.t}\u0000${r.lp.join()}` : r.t;
    if (!same.has(key)) same.set(key, []);
    same.get(key).push(r);
  }
  const rows = [...same.values()].map((alike) => {
    const r = alike.find((one) => one.lp) || alike[0];
    const tokens = alike.map((one) => one.n).filter(isNumber);
    const facts = [alike.length > 1 && `× ${alike.length}`, tokens.length && (Math.min(...tokens) === Math.max(...tokens) ? `${tokens[0]} tokens` : `${Math.min(...tokens)}–${Math.max(...tokens)} tokens`),
      scores.length > 1 && `score ${plain(r.s)}`, r.cut && "cut off by length", shade && r.lp && `sum ${plain(r.lp.reduce((a, b) => a + b, 0))} nats`].filter(Boolean);
    const text = r.t === null ? el("div", { class: "note" }, "text not in this page") : shade && r.lp ? shadedText(r) : el("div", { class: "model-text" }, visible(r.t.trim()) || "(empty)");
    return el("div", { class: "response" }, facts.length ? el("div", { class: "m" }, facts.map((f) => el("span", {}, f))) : null, text,
      r.more && el("div", { class: "note" }, `${count(r.more)} further characters were not recorded`));
  });
  const first = rows.slice(0, 4), rest = rows.slice(4);
  return el("div", { class: `vote${isLabel ? " label" : ""}` }, head, first,
    rest.length ? el("details", { class: "response" }, el("summary", {}, `${rest.length} more texts`), rest) : null);
}

function shadedText(r) {
  const node = el("div", { class: "model-text lp" });
  let place = 0;
  r.pc.forEach((length, i) => {
    const piece = el("span", { title: `${r.lp[i]} nats, probability ${percent(Math.exp(Math.min(0, r.lp[i])))}` }, visible(r.t.slice(place, place + length)));
    const doubt = Math.min(1, Math.max(0, -r.lp[i]) / 4);
    if (doubt > 0.01) piece.style.background = `color-mix(in srgb, var(--c1) ${Math.round(70 * doubt)}%, transparent)`;
    node.append(piece);
    place += length;
  });
  return node;
}

function reference(run, text, open) {
  const other = (run.byText.get(textKey(text)) || [])[0];
  return other ? el("button", { class: "link model-text", onclick: () => open(other) }, visible(text)) : el("span", { class: "model-text" }, visible(text));
}

function ancestry(run, p, group, open) {
  const parts = [];
  const parent = group && group.parent;
  if (parent) {
    const known = run.byUid.get(parent.uid);
    parts.push(el("p", {}, `${parent.relation || "derived"} of `, known ? reference(run, known.prompt, open) : parent.uid,
      isNumber(parent.response) ? `, from its response ${parent.response + 1}` : ""));
  }
  const children = run.problems.filter((c) => c.uid.startsWith(`${p.uid}.`)).slice(0, 20);
  if (children.length) parts.push(el("h3", { style: "margin-top:8px" }, "Follow-ups"), el("ol", { class: "plain" }, children.map((c) => el("li", {}, el("span", { class: "note" }, c.uid.slice(p.uid.length + 1), " "), reference(run, c.prompt, open)))));
  if (group && group.exemplars) parts.push(el("h3", { style: "margin-top:8px" }, "Written after these problems"), el("ol", { class: "plain" }, group.exemplars.map((t) => el("li", {}, reference(run, t, open)))));
  for (const [name, value] of Object.entries((group && group.meta) || {})) {
    parts.push(el("p", { style: "margin-top:6px" }, el("span", { class: "note" }, `${name}: `), el("span", { class: "model-text" }, visible(value))));
  }
  return parts.length ? el("div", { class: "card" }, el("h3", {}, "Where it comes from"), parts) : null;
}

// The same text in other rounds, side by side: what the policy answers as it learns.
async function sameProblem(run, p, open) {
  const all = (run.byText.get(textKey(p.prompt)) || []).filter((o) => o.voted !== null && p.prompt).sort((a, b) => a.voted - b.voted);
  if (all.length < 2) return null;
  const shown = all.length > 12 ? [...all.slice(0, 6), ...all.slice(-6)] : all;
  const columns = await Promise.all(shown.map(async (o) => {
    const group = await groupOf(run, o);
    const votes = group ? byVote(group) : [];
    return el("div", { class: "vote", style: "margin-top:0" }, el("div", { class: "head" }, o === p ? el("b", {}, `round ${o.voted + 1}`) : el("button", { class: "link", onclick: () => open(o) }, `round ${o.voted + 1}`),
      el("span", { class: "note" }, `agreement ${percent(o.confidence, 0)}`)), group ? votes.slice(0, 4).map((v) => el("div", { class: "response" },
      el("b", { class: "model-text" }, v.answer === null ? "no answer" : visible(v.answer)), ` × ${v.responses.length}`,
      el("div", { class: "note model-text" }, visible((v.responses.find((r) => r.t !== null) || { t: "" }).t.trim().slice(0, 220))))) : el("div", { class: "response" }, `label ${visible(o.label ?? "none")}`));
  }));
  return el("div", { class: "card" }, el("h3", {}, `The same problem in ${all.length} rounds`), shown.length < all.length && el("p", { class: "note" }, "The first six and the last six are shown."), el("div", { class: "side" }, columns));
}
