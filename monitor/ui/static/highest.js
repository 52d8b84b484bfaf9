/** The tokens with the highest scores of a probe, to go to. */

import { heat } from "./case.js";
import { el } from "./dom.js";
import { count, named, number } from "./text.js";

const LISTED = 6;

/** `jump(i)`: a token was chosen. Tokens outside the mask do not count. */
export function highest(sequence, probe, jump) {
  const counted = [...probe.scores.keys()].filter((i) => !Number.isNaN(probe.scores[i]) && !probe.masked[i]);
  const best = counted.sort((a, b) => probe.scores[b] - probe.scores[a]).slice(0, LISTED);
  const line = (i) => {
    const level = heat(probe, probe.scores[i]);
    const look = `swatch t ${level > 0 ? "over" : "under"} l${Math.abs(level)}`;
    return el(
      "li",
      {},
      el(
        "button",
        { type: "button", onclick: () => jump(i) },
        el("span", { class: look }),
        el("span", { class: "highest-name" }, named(sequence.tokens[i])),
        el("small", {}, count(i)),
        el("span", { class: "highest-score" }, number(probe.scores[i])),
      ),
    );
  };
  return [el("h3", {}, "Highest tokens"), el("ol", {}, best.map(line))];
}
