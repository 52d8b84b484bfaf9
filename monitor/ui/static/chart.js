/** Scores over tokens as bars that leave the threshold line: the colours of the heatmap, seen from the side. */

import { svg, el } from "./dom.js";
import { number } from "./text.js";

const WIDTH = 1000;
const HEIGHT = 100;
const COLUMNS = 1000;

/** One column is one token, or several of which the extremes are kept: no peak is lost to the width of a screen. */
function columns(probe) {
  const count = Math.min(COLUMNS, probe.scores.length);
  const found = Array.from({ length: count }, () => ({
    high: NaN,
    low: NaN,
    faintHigh: NaN,
    faintLow: NaN,
    bare: false,
  }));
  probe.scores.forEach((score, i) => {
    const column = found[Math.floor((i * count) / probe.scores.length)];
    if (Number.isNaN(score)) column.bare = true;
    else if (probe.masked[i]) {
      column.faintHigh = larger(column.faintHigh, score);
      column.faintLow = -larger(-column.faintLow, -score);
    } else {
      column.high = larger(column.high, score);
      column.low = -larger(-column.low, -score);
    }
  });
  return found;
}

function larger(a, b) {
  return Number.isNaN(a) || b > a ? b : a;
}

function heightOf(probe) {
  const pad = (probe.highest - probe.lowest) * 0.08 || 1;
  const top = probe.highest + pad;
  const bottom = probe.lowest - pad;
  return (score) => Math.max(0, Math.min(HEIGHT, (HEIGHT * (top - score)) / (top - bottom)));
}

function bars(found, probe, pick) {
  const y = heightOf(probe);
  const zero = y(probe.centre).toFixed(2);
  const wide = WIDTH / found.length;
  const bar = (wide > 2.5 ? wide * 0.8 : wide).toFixed(2);
  return found
    .map((column, i) => [i, pick(column)])
    .filter(([, score]) => !Number.isNaN(score))
    .map(([i, score]) => `M${(i * wide).toFixed(2)} ${zero}h${bar}V${y(score).toFixed(2)}h-${bar}z`)
    .join("");
}

/** Columns without any score, over the whole height. */
function strips(found) {
  const wide = (WIDTH / found.length).toFixed(2);
  return found
    .map((column, i) => (column.bare && Number.isNaN(column.high) && Number.isNaN(column.faintHigh) ? i : -1))
    .filter((i) => i >= 0)
    .map((i) => `M${((i * WIDTH) / found.length).toFixed(2)} 0h${wide}V${HEIGHT}h-${wide}z`)
    .join("");
}

/** The drawing alone. */
export function drawing(probe) {
  const found = columns(probe);
  const above = (name) => (column) => (column[name] > probe.centre ? column[name] : NaN);
  const below = (name) => (column) => (column[name] <= probe.centre ? column[name] : NaN);
  const path = (kind, pick) => svg("path", { class: kind, d: bars(found, probe, pick) });
  const line = heightOf(probe)(probe.centre);
  return svg(
    "svg",
    { class: "bars", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true" },
    svg("path", { class: "bar-bare", d: strips(found) }),
    path("bar-under faint", below("faintLow")),
    path("bar-over faint", above("faintHigh")),
    path("bar-under", below("low")),
    path("bar-over", above("high")),
    svg("line", { class: "threshold", x1: 0, x2: WIDTH, y1: line, y2: line }),
  );
}

/** The large chart. `hovered`, `picked`: told the token under the pointer. */
export function makeChart({ hovered, picked }) {
  const cursor = el("div", { class: "chart-cursor", hidden: true });
  const plot = el("div", { class: "plot" });
  const element = el("figure", { class: "chart" }, plot);
  let length = 0;
  const tokenAt = (event) => {
    const box = plot.getBoundingClientRect();
    return Math.max(0, Math.min(length - 1, Math.floor(((event.clientX - box.left) / box.width) * length)));
  };
  plot.addEventListener("pointermove", (event) => length && hovered(tokenAt(event)));
  plot.addEventListener("pointerleave", () => hovered(null));
  plot.addEventListener("click", (event) => length && picked(tokenAt(event)));
  return {
    element,
    draw(sequence, probe) {
      length = probe.scores.length;
      element.setAttribute("role", "img");
      element.setAttribute("aria-label", summary(sequence, probe));
      plot.replaceChildren(drawing(probe), ...labels(sequence, probe), cursor);
    },
    point(i) {
      cursor.hidden = i === null || !length;
      if (i !== null && length) cursor.style.left = `${((i + 0.5) / length) * 100}%`;
    },
  };
}

function summary(sequence, probe) {
  return (
    `Scores of ${probe.name} over ${probe.scores.length} tokens, ${sequence.prompt} of them in the prompt; ` +
    `threshold ${number(probe.threshold)}, peak at token ${probe.peak ?? "none"}`
  );
}

/** Whether the bars at the right end, where the name of the line stands, go up. */
function endsAbove(probe) {
  const end = probe.scores
    .slice(-Math.ceil(probe.scores.length * 0.12))
    .filter((score) => !Number.isNaN(score));
  return end.filter((score) => score > probe.centre).length > end.length / 2;
}

function labels(sequence, probe) {
  const length = probe.scores.length;
  const y = heightOf(probe);
  const at = (kind, text, left, top) => {
    const label = el("span", { class: `mark ${kind}` }, text);
    if (left !== null) label.style.left = `${left}%`;
    if (top !== null) label.style.top = `${top}%`;
    return label;
  };
  const line = `${probe.threshold === null ? "median" : "threshold"} ${number(probe.centre)}`;
  const side = endsAbove(probe) ? "mark-threshold under-line" : "mark-threshold";
  const found = [at(side, line, null, y(probe.centre))];
  if (probe.highest > probe.centre)
    found.push(at("mark-high", number(probe.highest), null, y(probe.highest)));
  if (probe.lowest < probe.centre) found.push(at("mark-low", number(probe.lowest), null, y(probe.lowest)));
  if (sequence.prompt > 0 && sequence.prompt < length) {
    found.push(at("mark-border", "answer", (100 * sequence.prompt) / length, null));
  }
  if (probe.peak !== null && length)
    found.push(at("mark-peak", "", (100 * (probe.peak + 0.5)) / length, null));
  return found;
}
