/** The probes of a sequence as cards, and the key to the colours of the chosen one. */

import { drawing } from "./chart.js";
import { el } from "./dom.js";
import { number } from "./text.js";

/** `pick()`: the card was chosen. */
export function card(probe, chosen, pick) {
  const verdict = el(
    "span",
    { class: "card-score" },
    number(probe.score),
    el("small", {}, comparison(probe)),
  );
  const action = actionOf(probe);
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

function comparison(probe) {
  if (probe.threshold === null) return "";
  return `${probe.flagged ? " > " : " \u2264 "}${number(probe.threshold)}`;
}

function actionOf(probe) {
  if (probe.threshold === null) return "uncalibrated";
  if (probe.fact === null) return "not attached now";
  return probe.observes ? "only observes" : probe.fact.action;
}

/** Buttons for the keys that jump. */
export function jumps(sequence, keys) {
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

/** What the colours of `probe` mean. */
export function legend(sequence, probe) {
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
