// -- elements, numbers and figures; texts of a model enter the page by textContent alone --------------------------------

function el(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (key === "class") node.className = value;
    else if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else node.setAttribute(key, value === true ? "" : value);
  }
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    node.append(child.nodeType ? child : document.createTextNode(String(child)));
  }
  return node;
}

function svg(name, attributes = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  for (const child of children.flat(Infinity)) if (child) node.append(child);
  return node;
}

// Control characters have no glyph: they are shown by the symbols that Unicode has for them.
function visible(text) {
  return String(text).replace(/[\u0000-\u0008\u000b-\u001f\u007f]/g, (c) =>
    c === "\u007f" ? "\u2421" : String.fromCharCode(0x2400 + c.charCodeAt(0)));
}

const colour = (index) => `var(--c${index % 8})`;
const isNumber = (value) => typeof value === "number" && Number.isFinite(value);
const count = (value) => isNumber(value) ? value.toLocaleString("en-US") : "–";
const percent = (value, digits = 1) => isNumber(value) ? `${(100 * value).toFixed(digits)} %` : "–";
const points = (value) => `${Math.abs(value) < 5e-4 ? "±" : value > 0 ? "+" : "−"}${Math.abs(100 * value).toFixed(1)} points`;

function plain(value) {
  if (!isNumber(value)) return "–";
  const size = Math.abs(value);
  if (size === 0) return "0";
  if (size >= 1e6 || size < 1e-3) return value.toExponential(1).replace("e-", "e−").replace("e+", "e");
  if (size >= 1000) return Math.round(value).toLocaleString("en-US");
  return String(Number(value.toPrecision(3)));
}

function duration(seconds) {
  if (!isNumber(seconds)) return "–";
  if (seconds < 60) return `${seconds < 10 ? seconds.toFixed(1) : Math.round(seconds)} s`;
  const minutes = Math.round(seconds / 60);
  if (minutes < 60) return `${minutes} min`;
  if (minutes < 48 * 60) return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
  return `${Math.floor(minutes / 1440)} d ${Math.round((minutes % 1440) / 60)} h`;
}

// Round numbers that cover a range, at most `most` of them apart.
function ticks(low, high, most = 5) {
  const span = high - low || Math.abs(high) || 1;
  const raw = span / most;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((s) => s * power).find((s) => s >= raw * 0.999);
  const out = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) out.push(i * step);
  out.step = step;
  return out;
}

// A number on an axis, with as many digits as tell it from its neighbours.
function tickText(value, step, largest) {
  if (Math.abs(value) < step * 1e-6) return "0";
  const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9) + (/^2\.?5/.test(String(step.toPrecision(2)).replace(/^0\.0*/, "")) ? 1 : 0));
  if (digits > 4 && Math.abs(largest) < 0.01) return value.toExponential(1).replace("e-", "e−");
  if (Math.abs(value) >= 1000) return plain(value);
  return Number(value.toFixed(Math.min(9, digits))).toString();
}

function empty(text) { return el("div", { class: "empty" }, text); }

// A card with a title, a sentence and a figure. A figure is a function of (host, width) that fills its host.
function figure(title, note, draw, legend = []) {
  const host = el("div", { class: "chart" });
  const card = el("div", { class: "card figure" }, el("h3", {}, title), note && el("p", { class: "note" }, note), host);
  if (legend.length) {
    card.append(el("div", { class: "legend" }, legend.map((one) => {
      const mark = el("i", { class: one.box ? "box" : "" });
      mark.style.background = one.color;
      if (one.opacity) mark.style.opacity = one.opacity;
      return el("span", {}, mark, one.name);
    })));
  }
  redrawn(host, draw);
  return card;
}

// Draws when the host is in the page, and again when its width changes.
function redrawn(host, draw) {
  let width = 0;
  const again = () => {
    const now = Math.floor(host.clientWidth);
    if (now && now !== width) {
      width = now;
      host.replaceChildren();
      draw(host, width);
    }
  };
  new ResizeObserver(again).observe(host);
  requestAnimationFrame(again);
}

// Curves with bands. Options: series [{name, curve: {x, y, lo, hi}, color, dash, dots}], format, low, high (ends of the
// axis at least), shade [low, high] (a healthy range), marks [x] (warnings), xName, log (x in powers of two), height.
function lines(options) {
  return (host, width) => {
    const series = options.series.filter((s) => s.curve && s.curve.x.length);
    const format = options.format || plain;
    const height = options.height || 210;
    const all = (name) => series.flatMap((s) => s.curve[name] || []).filter(isNumber);
    const ys = [...all("y"), ...all("lo"), ...all("hi")];
    if (options.low !== undefined) ys.push(options.low);
    if (options.high !== undefined) ys.push(options.high);
    for (const end of options.shade || []) if (isNumber(end) && options.showShade !== false) ys.push(end);
    let low = Math.min(...ys), high = Math.max(...ys);
    if (low === high) { low -= Math.abs(low) * 0.1 || 0.1; high += Math.abs(high) * 0.1 || 0.1; }
    const yTicks = ticks(low, high, height < 150 ? 3 : 4);
    const step = yTicks.step;
    if (low < yTicks[0] - step * 1e-6) yTicks.unshift(yTicks[0] - step);
    if (high > yTicks[yTicks.length - 1] + step * 1e-6) yTicks.push(yTicks[yTicks.length - 1] + step);
    low = Math.min(low, yTicks[0]); high = Math.max(high, yTicks[yTicks.length - 1]);
    const labels = yTicks.map((t) => options.format ? format(t) : tickText(t, step, high));
    const left = 12 + 6.6 * Math.max(...labels.map((t) => t.length)), right = 10, top = 8, bottom = 34;
    const xs = all("x");
    const scale = options.log ? (v) => Math.log2(v) : (v) => v;
    let x0 = scale(Math.min(...xs)), x1 = scale(Math.max(...xs));
    if (x0 === x1) { x0 -= 0.5; x1 += 0.5; }
    const px = (v) => left + ((scale(v) - x0) / (x1 - x0)) * (width - left - right);
    const py = (v) => top + ((high - v) / (high - low)) * (height - top - bottom);
    const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": options.label || "" });
    if (options.shade) {
      const [a, b] = options.shade;
      const upper = py(isNumber(b) ? Math.min(b, high) : high), lower = py(isNumber(a) ? Math.max(a, low) : low);
      const area = svg("rect", { x: left, y: upper, width: width - left - right, height: Math.max(0, lower - upper) });
      area.style.fill = "var(--good)"; area.style.opacity = "0.09";
      root.append(area);
    }
    yTicks.forEach((t, i) => {
      root.append(svg("line", { class: "gridline", x1: left, x2: width - right, y1: py(t), y2: py(t) }));
      const text = svg("text", { x: left - 7, y: py(t) + 4, "text-anchor": "end" });
      text.textContent = labels[i];
      root.append(text);
    });
    const wanted = Math.max(2, Math.floor((width - left) / 62));
    const xTicks = options.log ? [...new Set(xs)].sort((a, b) => a - b) : ticks(x0, x1, wanted).filter((t) => options.whole === false || Number.isInteger(t));
    for (const t of xTicks) {
      const text = svg("text", { x: px(t), y: height - bottom + 16, "text-anchor": "middle" });
      text.textContent = plain(t);
      root.append(text);
    }
    if (options.xName) {
      const text = svg("text", { x: width - right, y: height - 3, "text-anchor": "end" });
      text.textContent = options.xName;
      root.append(text);
    }
    root.append(svg("line", { class: "axis", x1: left, x2: width - right, y1: height - bottom, y2: height - bottom }));
    for (const x of options.marks || []) {
      const mark = svg("line", { x1: px(x), x2: px(x), y1: top, y2: height - bottom, "stroke-width": 1.5 });
      mark.style.stroke = "var(--bad)";
      root.append(mark);
    }
    for (const s of series) root.append(...curveOf(s, px, py));
    host.append(root);
    hover(host, root, series, { px, py, left, right, top, bottom, width, height, format, xName: options.xName || "" });
  };
}

function curveOf(s, px, py) {
  const { x, y, lo, hi } = s.curve, out = [];
  const known = x.map((_, i) => i).filter((i) => isNumber(y[i]));
  if (lo && hi) {
    const has = known.filter((i) => isNumber(lo[i]) && isNumber(hi[i]));
    if (has.length > 1) {
      const way = [...has.map((i) => `${px(x[i])},${py(hi[i])}`), ...has.reverse().map((i) => `${px(x[i])},${py(lo[i])}`)];
      const band = svg("polygon", { points: way.join(" ") });
      band.style.fill = s.color; band.style.opacity = "0.14";
      out.push(band);
      has.reverse();
    }
    if (has.length && has.length <= 14) {
      for (const i of has) {
        const bar = svg("line", { x1: px(x[i]), x2: px(x[i]), y1: py(lo[i]), y2: py(hi[i]), "stroke-width": 1.5 });
        bar.style.stroke = s.color; bar.style.opacity = "0.65";
        out.push(bar);
      }
    }
  }
  if (known.length > 1) {
    const line = svg("polyline", {
      points: known.map((i) => `${px(x[i]).toFixed(1)},${py(y[i]).toFixed(1)}`).join(" "), fill: "none",
      "stroke-width": s.thin ? 1.3 : 2, "stroke-linejoin": "round", "stroke-linecap": "round",
    });
    line.style.stroke = s.color;
    if (s.dash) line.setAttribute("stroke-dasharray", "5 4");
    if (s.faint) line.style.opacity = "0.5";
    out.push(line);
  }
  if (known.length <= 14 || s.dots) {
    for (const i of known) {
      const dot = svg("circle", { cx: px(x[i]), cy: py(y[i]), r: known.length > 40 ? 1.6 : 3 });
      dot.style.fill = s.color;
      out.push(dot);
    }
  }
  return out;
}

// The values at the point that is nearest to the pointer.
function hover(host, root, series, at) {
  const guide = svg("line", { class: "guide", y1: at.top, y2: at.height - at.bottom });
  guide.style.display = "none";
  root.append(guide);
  let tip = null;
  const leave = () => { guide.style.display = "none"; if (tip) tip.remove(); tip = null; };
  const xs = [...new Set(series.flatMap((s) => s.curve.x))].sort((a, b) => a - b);
  root.addEventListener("pointerleave", leave);
  root.addEventListener("pointermove", (event) => {
    const place = event.clientX - root.getBoundingClientRect().left;
    const x = xs.reduce((best, one) => (Math.abs(at.px(one) - place) < Math.abs(at.px(best) - place) ? one : best), xs[0]);
    guide.style.display = "";
    guide.setAttribute("x1", at.px(x)); guide.setAttribute("x2", at.px(x));
    const rows = series.map((s) => {
      const i = s.curve.x.indexOf(x);
      if (i < 0 || !isNumber(s.curve.y[i])) return null;
      const mark = el("i"); mark.style.background = s.color;
      const band = s.curve.lo && isNumber(s.curve.lo[i]) ? ` [${at.format(s.curve.lo[i])}, ${at.format(s.curve.hi[i])}]` : "";
      return el("div", {}, mark, s.name, el("span", { class: "num" }, at.format(s.curve.y[i]), band));
    });
    if (!tip) { tip = el("div", { class: "tip" }); host.append(tip); }
    tip.replaceChildren(el("b", {}, `${at.xName} ${plain(x)}`), ...rows.filter(Boolean));
    const over = Math.min(Math.max(0, at.px(x) + 12), at.width - tip.offsetWidth);
    tip.style.left = `${at.px(x) + 12 + tip.offsetWidth > at.width ? Math.max(0, at.px(x) - 12 - tip.offsetWidth) : over}px`;
    tip.style.top = `${at.top}px`;
  });
}

// Columns of stacked parts over the rounds. parts: [{name, values, color}]
function columns(parts, first, size) {
  return (host, width) => {
    const height = 220, top = 8, bottom = 34, n = first.length;
    const sums = first.map((_, i) => parts.reduce((sum, p) => sum + p.values[i], 0));
    const yTicks = ticks(0, Math.max(1, ...sums), 4), high = Math.max(...yTicks, ...sums);
    const left = 12 + 6.6 * Math.max(...yTicks.map((t) => plain(t).length)), right = 6;
    const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img" });
    const py = (v) => top + (1 - v / high) * (height - top - bottom);
    for (const t of yTicks) {
      root.append(svg("line", { class: "gridline", x1: left, x2: width - right, y1: py(t), y2: py(t) }));
      const text = svg("text", { x: left - 7, y: py(t) + 4, "text-anchor": "end" });
      text.textContent = plain(t);
      root.append(text);
    }
    const each = (width - left - right) / n, gap = each > 6 ? Math.min(4, each * 0.18) : 0;
    for (let i = 0; i < n; i++) {
      let base = 0;
      for (const part of parts) {
        if (!part.values[i]) continue;
        const rect = svg("rect", {
          x: left + i * each + gap / 2, width: Math.max(0.5, each - gap), y: py(base + part.values[i]),
          height: Math.max(0, py(base) - py(base + part.values[i])),
        });
        rect.style.fill = part.color;
        root.append(rect);
        base += part.values[i];
      }
    }
    roundTicks(root, first, left, each, width, height - bottom + 16);
    host.append(root);
    overColumns(host, root, first, size, left, each, width, (i) =>
      parts.filter((p) => p.values[i]).map((p) => [p.color, p.name, count(p.values[i])]));
  };
}

function roundTicks(root, first, left, each, width, y) {
  const apart = Math.max(1, Math.ceil(46 / each));
  for (let i = 0; i < first.length; i += apart) {
    const text = svg("text", { x: left + (i + 0.5) * each, y, "text-anchor": "middle" });
    text.textContent = first[i] + 1;
    root.append(text);
  }
  const name = svg("text", { x: width - 6, y: y + 15, "text-anchor": "end" });
  name.textContent = "round";
  root.append(name);
}

function overColumns(host, root, first, size, left, each, width, rowsOf) {
  let tip = null;
  root.addEventListener("pointerleave", () => { if (tip) tip.remove(); tip = null; });
  root.addEventListener("pointermove", (event) => {
    const i = Math.floor((event.clientX - root.getBoundingClientRect().left - left) / each);
    if (i < 0 || i >= first.length) return;
    if (!tip) { tip = el("div", { class: "tip" }); host.append(tip); }
    const name = size > 1 ? `rounds ${first[i] + 1}–${first[i] + size}` : `round ${first[i] + 1}`;
    tip.replaceChildren(el("b", {}, name), ...rowsOf(i).map(([color, part, value]) => {
      const mark = el("i"); mark.style.background = color;
      return el("div", {}, color && mark, part, el("span", { class: "num" }, value));
    }));
    const x = left + i * each;
    tip.style.left = `${Math.max(0, x + 14 + tip.offsetWidth > width ? x - 8 - tip.offsetWidth : x + 14)}px`;
    tip.style.top = "8px";
  });
}

// How many problems of each round fell into each class of agreement, as shades.
function heat(histogram, first, size) {
  return (host, width) => {
    const bins = 10, cell = 17, top = 6, bottom = 34, height = top + bins * cell + bottom, left = 46, right = 6;
    const each = (width - left - right) / first.length;
    const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img" });
    histogram.forEach((column, i) => {
      const all = column.reduce((a, b) => a + b, 0) || 1;
      column.forEach((value, bin) => {
        const rect = svg("rect", {
          x: left + i * each, width: Math.max(0.5, each - (each > 5 ? 1 : 0)), y: top + (bins - 1 - bin) * cell, height: cell - 1,
        });
        rect.style.fill = value ? `rgba(var(--heat), ${(0.1 + 0.9 * Math.sqrt(value / all)).toFixed(3)})` : "var(--quiet)";
        root.append(rect);
      });
    });
    for (const share of [0, 0.2, 0.4, 0.6, 0.8, 1]) {
      const text = svg("text", { x: left - 7, y: top + (1 - share) * bins * cell + 4, "text-anchor": "end" });
      text.textContent = `${Math.round(100 * share)} %`;
      root.append(text);
    }
    roundTicks(root, first, left, each, width, height - bottom + 16);
    host.append(root);
    overColumns(host, root, first, size, left, each, width, (i) =>
      histogram[i].map((value, bin) => ["", `${10 * bin}–${10 * bin + 10} %`, count(value)]).filter((r) => r[2] !== "0").reverse());
  };
}

// Before and after on one scale from 0 to 100 %, with their intervals.
function beforeAfter(before, after) {
  return (host, width) => {
    const height = 30, px = (v) => 5 + v * (width - 10);
    const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, height, class: "strip" });
    root.append(svg("line", { class: "axis", x1: 5, x2: width - 5, y1: 15, y2: 15, "stroke-width": 1 }));
    for (const [one, color, y] of [[before, "var(--faint)", 10], [after, "var(--c0)", 20]]) {
      if (!one || !isNumber(one.value)) continue;
      if (isNumber(one.lo)) {
        const bar = svg("line", { x1: px(one.lo), x2: px(one.hi), y1: y, y2: y, "stroke-width": 3, "stroke-linecap": "round" });
        bar.style.stroke = color; bar.style.opacity = "0.5";
        root.append(bar);
      }
      const dot = svg("circle", { cx: px(one.value), cy: y, r: 4.2 });
      dot.style.fill = color;
      root.append(dot);
    }
    host.append(root);
  };
}
