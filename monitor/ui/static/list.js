/** The list on the left: filters, and a link for every line. */

import { el } from "./dom.js";
import { address } from "./place.js";
import { passes } from "./rows.js";
import { ago, clock, count, moment, number, visible } from "./text.js";

const SHOWN = 500;
const AGES = [
  ["", "any time"],
  ["300", "5 minutes"],
  ["3600", "1 hour"],
  ["86400", "24 hours"],
  ["604800", "7 days"],
];
const VERDICTS = [
  ["flagged", "flagged"],
  ["unscored", "unscored"],
  ["ok", "ok"],
  ["", "any verdict"],
];

/** `changed(filter)`: told of another filter; `asked(text)`: Enter in the text field. */
export function makeList({ changed, asked }) {
  const search = el("input", {
    type: "search",
    id: "search",
    placeholder: "Id, probe or model",
    "aria-label": "Search in the list",
    autocomplete: "off",
    spellcheck: "false",
  });
  const verdict = select("Verdict", VERDICTS);
  const probe = select("Probe", [["", "any probe"]]);
  const age = select("Time", AGES);
  const rows = el("ol", { class: "rows" });
  const said = el("p", { class: "list-note", role: "status" });
  const state = el("div", { class: "state-box" });
  const element = el(
    "nav",
    { class: "list", "aria-label": "Generations" },
    el("div", { class: "filters" }, search, verdict, probe, age),
    said,
    state,
    rows,
  );
  const filter = () => ({
    text: search.value.trim(),
    verdict: verdict.value,
    probe: probe.value,
    seconds: Number(age.value),
  });
  for (const field of [search, verdict, probe, age])
    field.addEventListener("input", () => changed(filter(), field === probe));
  search.addEventListener(
    "keydown",
    (event) => event.key === "Enter" && search.value.trim() && asked(search.value.trim()),
  );
  rows.addEventListener("keydown", (event) => {
    const step = { ArrowDown: 1, j: 1, ArrowUp: -1, k: -1 }[event.key];
    if (step === undefined || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    walk(rows, step);
  });
  rows.addEventListener("animationend", (event) => event.target.classList.remove("fresh"));
  const made = new Map();
  let named = "";
  return {
    element,
    filter,
    focus: () => (rows.querySelector("[aria-current]") ?? rows.querySelector("a") ?? search).focus(),
    search: () => search.focus(),
    walk: (step) => walk(rows, step),
    /** Names for the probe filter; what was chosen stays. */
    probes(names) {
      if (names.join("\n") === named) return; // an open menu would close
      named = names.join("\n");
      const kept = probe.value;
      probe.replaceChildren(...[["", "any probe"], ...names.map((name) => [name, name])].map(option));
      probe.value = names.includes(kept) ? kept : "";
    },
    /** `all`: newest first. `fresh`: keys of lines that just came. `selected`: {id, choice} or null. */
    show(all, selected, fresh = new Set()) {
      const shown = all.filter((row) => passes(row, filter()));
      const lines = shown.slice(0, SHOWN).map((row) => {
        const line = made.get(row.key) ?? makeRow(row);
        made.set(row.key, line);
        mark(line, row, selected, fresh.has(row.key));
        return line;
      });
      for (const key of made.keys()) if (!all.some((row) => row.key === key)) made.delete(key);
      replace(rows, lines);
      said.textContent = note(all.length, shown.length);
      return shown.length;
    },
    /** A message in place of lines, or none. */
    state: (...parts) => state.replaceChildren(...parts),
  };
}

function note(all, shown) {
  if (!all) return "";
  const cut = shown > SHOWN ? `, the newest ${SHOWN} listed` : "";
  return shown === all
    ? `${count(all)} shown${cut}`
    : `${count(shown)} of ${count(all)} pass the filter${cut}`;
}

function select(label, options) {
  return el("select", { "aria-label": label, title: label }, options.map(option));
}

function option([value, label]) {
  return el("option", { value }, label);
}

function makeRow(row) {
  const probes = row.probes.filter((probe) => probe.flagged || row.verdict !== "flagged").slice(0, 3);
  return el(
    "li",
    {},
    el(
      "a",
      { href: address({ id: row.id, choice: row.choice || null }), class: `row verdict-${row.verdict}` },
      el(
        "span",
        { class: "row-top" },
        el("time", { title: moment(row.time) }, clock(row.time)),
        el("span", { class: "row-ago", "data-time": row.time }, ago(row.time)),
      ),
      probes.map(chip),
      el("span", { class: "row-id" }, visible(row.id), row.choice ? ` · choice ${row.choice}` : ""),
      el("span", { class: "row-facts" }, `${row.model} · ${count(row.tokens)} tokens · ${row.finishReason}`),
    ),
  );
}

function chip(probe) {
  const sign = probe.threshold === null ? "" : probe.score > probe.threshold ? " > " : " \u2264 ";
  return el(
    "span",
    { class: `chip${probe.flagged ? " flagged" : ""}` },
    el("span", { class: "chip-name" }, probe.name),
    el(
      "span",
      { class: "chip-score" },
      `${number(probe.score)}${sign}${probe.threshold === null ? "" : number(probe.threshold)}`,
    ),
  );
}

function mark(line, row, selected, fresh) {
  const link = line.firstChild;
  const current = selected !== null && selected.id === row.id && (selected.choice ?? 0) === row.choice;
  if (current) link.setAttribute("aria-current", "true");
  else link.removeAttribute("aria-current");
  if (fresh) line.classList.add("fresh");
}

/** Puts the lines in, if they are others; what had the focus keeps it. */
function replace(rows, lines) {
  const same = lines.length === rows.children.length && lines.every((line, i) => line === rows.children[i]);
  if (same) return;
  const focused = rows.contains(document.activeElement) ? document.activeElement : null;
  rows.replaceChildren(...lines);
  if (focused?.isConnected) focused.focus({ preventScroll: true });
}

function walk(rows, step) {
  const links = [...rows.querySelectorAll("a")];
  const at = links.indexOf(document.activeElement);
  const from = at >= 0 ? at : links.findIndex((link) => link.hasAttribute("aria-current"));
  links[Math.max(0, Math.min(links.length - 1, from + step))]?.focus();
}
