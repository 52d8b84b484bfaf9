/** One response: its verdict, and one of its sequences. */

import { chosenSequence } from "./case.js";
import { copyButton, el } from "./dom.js";
import { makeSequence } from "./sequence.js";
import { moment, visible } from "./text.js";
import { makeWords } from "./words.js";

/** `wanted`: {choice, probe, token}, each may be missing. `moved`: told of every change of these three.
 * `actions`: further buttons of the head. `askWords`: see `makeWords`; null where nobody can be asked. */
export function makeCase(found, wanted = {}, { moved = () => {}, actions = [], askWords = null } = {}) {
  const body = el("div", { class: "case-body" });
  const element = el(
    "article",
    { class: "case", "aria-label": `Response ${found.id}` },
    head(found, actions),
    body,
  );
  let current = null;
  const show = (index, probe, token) => {
    const words = makeWords(found.words, askWords);
    current = makeSequence(chosenSequence(found, index), { probe, token }, moved, words);
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
    el("h2", { class: "case-id", title: visible(found.id) }, visible(found.id)),
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
