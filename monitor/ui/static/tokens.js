/** The generation as text, each token in the colour of its score. Prompt and answer apart.
 *
 * Chunks that are out of sight cost no layout (`content-visibility`); they end at a line break where there is one, so
 * that nothing shows of them. */

import { el } from "./dom.js";
import { heat } from "./case.js";
import { count, visible } from "./text.js";

const CHUNK = 300;
const LONGEST_CHUNK = 1500;
const PAGE = 50;

/** `hovered(i or null)` and `picked(i)` are told of the pointer and the keyboard. */
export function makeTokens(sequence, { hovered, picked }) {
  const spans = sequence.tokens.map(makeSpan);
  const element = el("div", {
    class: "tokens",
    tabindex: "0",
    role: "group",
    "aria-label": "Tokens; arrow keys move",
  });
  element.append(...section("Prompt", spans, 0, sequence.prompt, sequence.tokens));
  element.append(...section("Answer", spans, sequence.prompt, spans.length, sequence.tokens));
  const indexOf = (event) => {
    const i = event.target.dataset?.i;
    return i === undefined ? null : Number(i);
  };
  let cursor = null;
  const view = {
    element,
    /** Colours of one probe. */
    paint(probe) {
      spans.forEach((span, i) => (span.className = look(probe, i)));
      if (cursor !== null) spans[cursor].classList.add("cursor");
    },
    /** Puts the cursor on a token and brings it into sight. */
    select(i, scroll = true) {
      if (cursor !== null) spans[cursor].classList.remove("cursor");
      cursor = i;
      element.classList.toggle("walked", i !== null);
      if (i === null) return;
      spans[i].classList.add("cursor");
      if (scroll && !inSight(spans[i])) spans[i].scrollIntoView({ block: "center" });
    },
    get cursor() {
      return cursor;
    },
  };
  element.addEventListener("pointerover", (event) => hovered(indexOf(event)));
  element.addEventListener("pointerleave", () => hovered(null));
  element.addEventListener("click", (event) => indexOf(event) !== null && picked(indexOf(event), false));
  element.addEventListener(
    "focus",
    () => cursor === null && spans.length && picked(sequence.prompt % spans.length, false),
  );
  element.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || !spans.length) return;
    const next = moved(event.key, cursor ?? 0, spans);
    if (next === null) return;
    event.preventDefault();
    picked(next, true);
  });
  return view;
}

/** Whether a token stands clear of what sticks to the edges. */
function inSight(span) {
  const box = span.getBoundingClientRect();
  const below = matchMedia("(min-width: 1181px)").matches ? innerHeight - 60 : innerHeight * 0.6;
  return box.height > 0 && box.top > 240 && box.bottom < below;
}

function makeSpan(token, i) {
  const bare = token.text === null || token.text === "";
  const span = el("span", { "data-i": i }, bare ? String(token.id ?? token.position) : visible(token.text));
  if (bare) span.dataset.bare = "";
  return span;
}

function section(title, spans, from, to, tokens) {
  if (from === to) return [];
  const chunks = [];
  let start = from;
  for (let i = from; i < to; i++) {
    const size = i + 1 - start;
    const ends = size >= LONGEST_CHUNK || (size >= CHUNK && tokens[i].text?.includes("\n"));
    if (ends || i + 1 === to) {
      chunks.push(el("div", { class: "chunk" }, spans.slice(start, i + 1)));
      start = i + 1;
    }
  }
  const heading = el(
    "h3",
    {},
    title,
    el("small", {}, ` ${count(to - from)} token${to - from === 1 ? "" : "s"}`),
  );
  return [el("section", { class: `phase phase-${title.toLowerCase()}` }, heading, chunks)];
}

function look(probe, i) {
  const score = probe.scores[i];
  if (score === undefined || Number.isNaN(score))
    return probe.reasons[i] === "not_fed" ? "t unfed" : "t bare";
  const level = heat(probe, score);
  const side = level > 0 ? "over" : level < 0 ? "under" : "even";
  return `t ${side} l${Math.abs(level)}${probe.masked[i] ? " masked" : ""}${probe.peak === i ? " peak" : ""}`;
}

function moved(key, from, spans) {
  const last = spans.length - 1;
  const to = {
    ArrowRight: from + 1,
    ArrowLeft: from - 1,
    PageDown: from + PAGE,
    PageUp: from - PAGE,
    Home: 0,
    End: last,
  }[key];
  if (to !== undefined) return Math.max(0, Math.min(last, to));
  if (key === "ArrowDown") return line(from, 1, spans);
  if (key === "ArrowUp") return line(from, -1, spans);
  return null;
}

/** The token of the next or previous line that stands nearest. */
function line(from, step, spans) {
  const here = spans[from].getBoundingClientRect();
  let best = null;
  let lineTop = null;
  for (let i = from + step; i >= 0 && i < spans.length; i += step) {
    const box = spans[i].getClientRects()[0] ?? spans[i].getBoundingClientRect();
    if (Math.abs(box.top - here.top) < 4) continue;
    lineTop ??= box.top;
    if (Math.abs(box.top - lineTop) >= 4) break;
    if (best === null || Math.abs(box.left - here.left) < best.distance)
      best = { i, distance: Math.abs(box.left - here.left) };
  }
  return best === null ? from : best.i;
}
