/** What every probe says about one token. */

import { el } from "./dom.js";
import { heat } from "./case.js";
import { count, explained, named, number, signed } from "./text.js";

/** `chosen`: the probe whose colours are shown; `i`: the token, null for none. */
export function inspector(sequence, chosen, i) {
  if (i === null || !sequence.tokens[i]) {
    return [el("p", { class: "hint" }, "Point at a token, or walk with the arrow keys.")];
  }
  const token = sequence.tokens[i];
  const place = token.prompt ? "prompt" : "answer";
  const id = token.id === null ? "" : ` · id ${token.id}`;
  return [
    el("p", { class: "token-name" }, named(token)),
    el(
      "p",
      { class: "token-place" },
      `position ${count(token.position)} · ${place}${token.text === null ? "" : id}`,
    ),
    el(
      "table",
      {},
      el(
        "tbody",
        {},
        sequence.probes.map((probe) => row(probe, i, probe === chosen)),
      ),
    ),
  ];
}

function row(probe, i, isChosen) {
  const score = probe.scores[i];
  const name = el("th", { scope: "row" }, probe.name);
  const properties = { class: isChosen ? "chosen" : null };
  if (score === undefined)
    return el("tr", properties, name, el("td", { colspan: 2, class: "why" }, "token scores not kept"));
  if (Number.isNaN(score)) {
    return el(
      "tr",
      properties,
      name,
      el("td", { colspan: 2, class: "why" }, explained(probe.reasons[i] ?? "no score")),
    );
  }
  const level = heat(probe, score);
  const side = level > 0 ? "over" : "under";
  const note = probe.masked[i] ? "masked" : i === probe.peak ? "peak" : "";
  return el(
    "tr",
    properties,
    name,
    el(
      "td",
      { class: "value" },
      el("span", { class: `swatch t ${side} l${Math.abs(level)}` }),
      number(score),
    ),
    el("td", { class: "distance" }, `${signed(score - probe.centre)}`, note && el("small", {}, note)),
  );
}
