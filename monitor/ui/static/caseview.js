/** One response: verdict, probes, chart, tokens, and what is said about the token under the pointer. */

import { el, copyButton } from "./dom.js";
import { chosenSequence, nextAbove } from "./case.js";
import { drawing, makeChart } from "./chart.js";
import { inspector } from "./inspector.js";
import { makeTokens } from "./tokens.js";
import { count, moment, number, share } from "./text.js";

/** `wanted`: {choice, probe, token}, each may be missing. `moved`: told of every change of these three.
 * `actions`: further buttons of the head. */
export function makeCase(found, wanted = {}, { moved = () => {}, actions = [] } = {}) {
  const body = el("div", { class: "case-body" });
  const element = el(
    "article",
    { class: "case", "aria-label": `Response ${found.id}` },
    head(found, actions),
    body,
  );
  let current = null;
  const show = (index, probe, token) => {
    current = makeSequence(chosenSequence(found, index), { probe, token }, moved);
    const tabs = found.sequences.length > 1 ? choiceTabs(found, current.sequence, (i) => show(i)) : null;
    body.replaceChildren(...[tabs, current.element].filter(Boolean));
    current.arrive();
  };
  show(wanted.choice, wanted.probe, wanted.token);
  return {
    element,
    /** A key of the case; true if it was one. */
    key: (key) => current.key(key),
    arrive: () => current.arrive(),
  };
}

function head(found, actions) {
  const facts = [found.model, moment(found.finishedAt)].filter(Boolean).join(" · ");
  return el(
    "header",
    { class: "case-head" },
    el("span", { class: `verdict verdict-${found.verdict}` }, found.verdict),
    el("h2", { class: "case-id", title: found.id }, found.id),
    copyButton("Copy id", () => found.id, { class: "small" }),
    actions,
    el("p", { class: "case-facts" }, facts),
  );
}

function choiceTabs(found, shown, pick) {
  const tabs = found.sequences.map((one) =>
    el(
      "button",
      {
        type: "button",
        class: "choice",
        "aria-pressed": String(one === shown),
        onclick: () => pick(one.index),
      },
      `choice ${one.index}`,
      el("span", { class: `dot verdict-${one.verdict}`, title: one.verdict }),
    ),
  );
  return el("nav", { class: "choices", "aria-label": "Choices of this response" }, tabs);
}

function makeSequence(sequence, wanted, moved) {
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
    tokens.select(i, scroll);
    look(i);
    moved({ choice: sequence.index, probe: probe?.name, token: i });
  };
  const chart = makeChart({ hovered, picked: (i) => picked(i) });
  const tokens = makeTokens(sequence, { hovered, picked });
  const cards = el("div", { class: "probes", role: "radiogroup", "aria-label": "Probe" });
  const scale = el("div", { class: "scale" });
  const choose = (next, focus = false) => {
    probe = next;
    cards.replaceChildren(...sequence.probes.map((one) => card(one, one === probe, () => choose(one, true))));
    if (focus) cards.querySelector("[aria-checked=true]").focus();
    chart.draw(sequence, probe);
    scale.replaceChildren(...legend(sequence, probe), jumps(sequence, keys));
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
    ? [chart.element, scale, text(tokens, note)]
    : [withoutTokens(sequence)];
  return {
    sequence,
    element: el("div", { class: "sequence" }, facts(sequence), cards, parts),
    arrive: () => pinned !== null && tokens.select(pinned),
    key: (key) => (keys[key] ? (keys[key](), true) : false),
  };
}

function text(tokens, note) {
  return el("div", { class: "reading" }, tokens.element, note);
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
      : "Its token scores are no longer kept: memory holds the newest responses, the evidence file those that were flagged.";
  return el("p", { class: "state" }, why);
}

function card(probe, chosen, pick) {
  const sign = probe.threshold === null ? "" : probe.flagged ? " > " : " \u2264 ";
  const verdict = el(
    "span",
    { class: "card-score" },
    number(probe.score),
    probe.threshold === null
      ? el("small", {}, " uncalibrated")
      : el("small", {}, `${sign}${number(probe.threshold)}`),
  );
  const action =
    probe.fact === null ? "not attached now" : probe.observes ? "only observes" : probe.fact.action;
  const flagged = probe.flagged && !probe.observes;
  const said = flagged ? `flagged · ${action}` : probe.flagged ? `crossed · ${action}` : action;
  return el(
    "button",
    {
      type: "button",
      role: "radio",
      class: `card${flagged ? " flagged" : ""}`,
      "aria-checked": String(chosen),
      tabindex: chosen ? "0" : "-1",
      title: probe.fact
        ? `${probe.fact.kind} on layer ${probe.fact.layers.join(", ")}, ${probe.fact.concept}`
        : null,
      onclick: pick,
    },
    el(
      "span",
      { class: "card-top" },
      el("span", { class: "card-name" }, probe.name),
      el("span", { class: "card-action" }, said),
    ),
    verdict,
    probe.scores.length ? drawing(probe) : null,
  );
}

function jumps(sequence, keys) {
  const button = (label, key) =>
    el("button", { type: "button", class: "small", onclick: keys[key] }, label, el("kbd", {}, key));
  return el(
    "span",
    { class: "jumps" },
    button("Peak", "p"),
    button("Next above", "n"),
    sequence.prompt > 0 && button("Answer", "a"),
  );
}

function legend(sequence, probe) {
  const edge = (side) => number(probe.centre + side * probe.spread);
  const centre = `${probe.threshold === null ? "median" : "threshold"} ${number(probe.centre)}`;
  const key = (look, label) =>
    el("span", { class: "key" }, el("span", { class: `t ${look}`, "aria-hidden": "true" }, "Aa"), label);
  const has = (test) => probe.scores.some((score, i) => test(score, i));
  return [
    el(
      "span",
      { class: "ramp-box", title: "Full colour lies one spread from the centre" },
      el("span", {}, edge(-1)),
      el("span", { class: "ramp", "aria-hidden": "true" }),
      el("span", {}, edge(1)),
      el("span", { class: "ramp-centre" }, centre),
    ),
    key("over l6", "above"),
    has((score, i) => probe.masked[i] && !Number.isNaN(score))
      ? key("over l6 masked", "masked: not counted")
      : null,
    has((score, i) => Number.isNaN(score) && probe.reasons[i] !== "not_fed") ? key("bare", "no score") : null,
    probe.reasons.includes("not_fed") ? key("unfed", "not fed") : null,
  ].filter(Boolean);
}
