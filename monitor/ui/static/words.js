/** Logit-lens words at the peak of a probe: asked for, and kept with the case. */

import { el } from "./dom.js";
import { count, named, number, visible } from "./text.js";

/** `kept`: answers by choice and probe; it grows. `request(choice, probe)`: asks the server; null where nobody can be
 * asked. */
export function makeWords(kept, request) {
  const element = el("section", { class: "words", "aria-live": "polite", "aria-label": "Logit-lens words" });
  let shown = null;
  const keyOf = ({ sequence, probe }) => `${sequence.index}/${probe.name}`;
  const draw = (...content) => {
    element.hidden = content.length === 0;
    element.replaceChildren(...(content.length ? [el("h3", {}, "Logit lens at the peak"), ...content] : []));
  };
  const offer = (why = null) => {
    if (!request || shown.probe.peak === null) return draw();
    const said = why === null ? [] : [el("p", { class: "why" }, why)];
    const title = "The server replays this generation up to its peak, on its processor, for some seconds (w)";
    draw(...said, el("button", { type: "button", class: "small", title, onclick: ask }, "Show words"));
  };
  async function ask() {
    const asked = shown;
    if (!request || asked === null || asked.probe.peak === null || kept[keyOf(asked)]) return;
    const tokens = count(asked.probe.peak + 1);
    draw(el("p", { class: "hint", role: "status" }, `Replaying ${tokens} tokens on the server\u2019s processor\u2026`));
    try {
      kept[keyOf(asked)] = await request(asked.sequence.index, asked.probe.name);
      if (shown !== asked) return;
      draw(...answer(asked.sequence, kept[keyOf(asked)]));
      element.scrollIntoView({ block: "nearest" });
    } catch (error) {
      if (shown === asked) offer(error.message);
    }
  }
  return {
    element,
    ask,
    show(sequence, probe) {
      shown = { sequence, probe };
      const known = kept[keyOf(shown)];
      if (known) draw(...answer(sequence, known));
      else offer();
    },
  };
}

function answer(sequence, found) {
  const next = sequence.tokens[found.position + 1];
  const then = next ? ` The next token was ${named(next)}.` : "";
  return [
    el("p", { class: "hint" }, `What the model would say next if it stopped after this block.${then}`),
    el("div", { class: "blocks" }, found.layers.map(layer)),
    el("p", { class: found.agrees ? "hint" : "why" }, likeness(found)),
  ];
}

function layer({ layer, words }) {
  const line = (word) => {
    const bar = el("span", { class: "word-bar" });
    bar.style.width = `${100 * word.probability}%`;
    return el(
      "li",
      {},
      bar,
      el("span", { class: "word" }, visible(word.token)),
      el("small", {}, percent(word.probability)),
    );
  };
  return el("figure", {}, el("figcaption", {}, `after block ${layer}`), el("ol", {}, words.map(line)));
}

function percent(probability) {
  return probability < 0.001 ? "<0.1%" : `${number(Math.round(1000 * probability) / 10)}%`;
}

function likeness(found) {
  const scores = `The probe scores ${number(found.replayed_score)} on the replay, ${number(found.score)} when served`;
  return found.agrees
    ? `${scores}.`
    : `${scores}: this generation was steered, ran with an adapter or in another precision, or saw more than text. ` +
        "These words may not be what it held.";
}
