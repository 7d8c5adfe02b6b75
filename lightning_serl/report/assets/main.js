// -- the page ------------------------------------------------------------------------------------------------------------

const data = JSON.parse(document.getElementById("data").textContent);
const app = document.getElementById("app");
const LINKS = {
  headline: "Result", learning: "Learning", options: "Options", problems: "Problems", lengths: "Lengths", health: "Health",
  sampler: "Sampler", time: "Time", transcripts: "Transcripts",
};

function head(title, chips, text, tabs) {
  return el("header", { class: "top" }, el("div", { class: "wrap" }, el("div", { class: "titlerow" }, el("h1", {}, visible(title)), chips),
    text && el("p", { class: "lede" }, text), tabs));
}

function runView(run) {
  const bad = Object.entries(run.unreadable).map(([file, n]) => `${count(n)} lines of ${file} could not be read`);
  const parts = [headline(run), learning(run), problems(run), lengths(run), health(run), sampler(run), time(run), transcripts(run)];
  if (bad.length) parts.unshift(el("div", { class: "warning" }, `${bad.join("; ")}; the page shows the rest.`));
  return [[el("span", { class: `chip ${stateKind(run.state)}` }, run.state), run.control && el("span", { class: "chip" }, "control")], lede(run), parts];
}

function show(run) {
  const several = data.runs.length > 1;
  const tabs = several ? el("div", { class: "tabs" }, el("button", { class: run ? "" : "on", onclick: () => go("") }, "Comparison"),
    data.runs.map((r, i) => el("button", { class: r === run ? "on" : "", onclick: () => go(String(i)) }, labelOf(r, data.runs)))) : null;
  const [chips, text, parts] = run ? runView(run)
    : [[], `${data.runs.length} runs with the same figures beside each other. The button of a run opens its own report.`, comparison(data.runs, (r) => go(String(data.runs.indexOf(r))))];
  const sections = parts.filter(Boolean);
  const bar = el("nav", { class: "bar" }, el("div", { class: "wrap" }, sections.filter((s) => LINKS[s.id]).map((s) =>
    el("a", { href: `#${s.id}`, onclick: (event) => { event.preventDefault(); s.scrollIntoView({ behavior: "smooth" }); } }, LINKS[s.id]))));
  const title = run ? run.name : "Comparison";
  app.replaceChildren(head(title, chips, text, tabs), bar, el("main", { class: "wrap" }, sections),
    el("footer", {}, el("div", { class: "wrap" }, `Made ${data.made} by lightning-serl report from the files of ${run ? visible(run.folder) : `${data.runs.length} run folders`}. The same command brings it up to date while a run goes on.`)));
}

function go(place) {
  show(place === "" ? null : data.runs[Number(place)]);
  window.scrollTo(0, 0);
}

show(data.runs.length > 1 ? null : data.runs[0]);
