/** One sequence: probes, chart, tokens, and what is said about the token under the pointer. */

import { nextAbove } from "./case.js";
import { makeChart } from "./chart.js";
import { el } from "./dom.js";
import { highest } from "./highest.js";
import { inspector } from "./inspector.js";
import { card, jumps, legend } from "./probes.js";
import { count, share } from "./text.js";
import { makeTokens } from "./tokens.js";

/** `wanted`: {probe, token}, each may be missing. `moved`: told of every change of choice, probe and token.
 * `words`: of `makeWords`. */
export function makeSequence(sequence, wanted, moved, words) {
  let probe = sequence.probes.find((one) => one.name === wanted.probe) ?? sequence.probes[0] ?? null;
  let pinned = sequence.tokens[wanted.token] ? wanted.token : null;
  const note = el("aside", { class: "inspector", "aria-live": "polite", "aria-label": "The token" });
  const look = (i) => {
    note.replaceChildren(...inspector(sequence, probe, i));
    chart.point(i);
  };
  const hovered = (i) => look(i ?? pinned);
  const picked = (i, scroll = true) => {
    pinned = i;
    look(i);
    tokens.select(i, scroll);
    moved({ choice: sequence.index, probe: probe?.name, token: i });
  };
  const chart = makeChart({ hovered, picked: (i) => picked(i) });
  const tokens = makeTokens(sequence, { hovered, picked });
  const cards = el("div", { class: "probes", role: "radiogroup", "aria-label": "Probe" });
  const scale = el("div", { class: "scale" });
  const best = el("section", { class: "highest" });
  const choose = (next, focus = false) => {
    probe = next;
    cards.replaceChildren(...sequence.probes.map((one) => card(one, one === probe, () => choose(one, true))));
    if (focus) cards.querySelector("[aria-checked=true]").focus();
    chart.draw(sequence, probe);
    scale.replaceChildren(...legend(sequence, probe), jumps(sequence, keys));
    best.replaceChildren(...highest(sequence, probe, jump));
    words.show(sequence, probe);
    tokens.paint(probe);
    look(pinned);
    moved({ choice: sequence.index, probe: probe.name, token: pinned });
  };
  const turn = (step) => {
    const at = sequence.probes.indexOf(probe);
    choose(
      sequence.probes[(at + step + sequence.probes.length) % sequence.probes.length],
      cards.contains(document.activeElement),
    );
  };
  const jump = (to) => {
    if (to === null || to === undefined || !sequence.tokens[to]) return;
    picked(to);
    tokens.element.focus({ preventScroll: true });
  };
  const keys = {
    p: () => jump(probe?.peak),
    a: () => jump(Math.min(sequence.prompt, sequence.tokens.length - 1)),
    n: () => jump(probe && nextAbove(probe, pinned ?? -1, 1)),
    N: () => jump(probe && nextAbove(probe, pinned ?? sequence.tokens.length, -1)),
    w: () => words.ask(),
    "]": () => probe && turn(1),
    "[": () => probe && turn(-1),
  };
  cards.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (step === undefined) return;
    event.preventDefault();
    turn(step);
  });
  if (probe) choose(probe);
  const parts = sequence.tokens.length
    ? [
        chart.element,
        scale,
        words.element,
        el("div", { class: "reading" }, tokens.element, el("div", { class: "side" }, note, best)),
      ]
    : [withoutTokens(sequence)];
  return {
    sequence,
    element: el("div", { class: "sequence" }, facts(sequence), cards, parts),
    /** Brings the chosen token into sight, once the element stands in the page. */
    arrive: () => pinned !== null && tokens.select(pinned),
    /** A key of the sequence; true if it was one. */
    key: (key) => (keys[key] ? (keys[key](), true) : false),
  };
}

function facts(sequence) {
  const { coverage, tokens, prompt } = sequence;
  const shown = [
    sequence.finishReason && `finished: ${sequence.finishReason}`,
    tokens.length > 0 && `${count(prompt)} prompt + ${count(tokens.length - prompt)} answer tokens`,
    `scored: prompt ${share(coverage.prompt)}, answer ${share(coverage.generated)}`,
  ];
  return el("p", { class: "case-facts" }, shown.filter(Boolean).join(" · "));
}

function withoutTokens(sequence) {
  const why =
    sequence.probes.length === 0
      ? "No probe was attached when this response was judged."
      : "Its token scores are no longer kept: memory has the newest responses, the evidence file the flagged ones.";
  return el("p", { class: "state" }, why);
}
