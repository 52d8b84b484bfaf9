/** The right side: one response, or what is said where none can be shown. */

import { get } from "./api.js";
import { readCase } from "./case.js";
import { makeCase } from "./caseview.js";
import { copyButton, el } from "./dom.js";
import { saveCase } from "./export.js";
import { address, placeNow } from "./place.js";

const SAMPLE = [
  ["The", "under l5"],
  [" paint", "under l2"],
  [" is", "even l0"],
  [" smooth", "over l8"],
  [",", "over l3"],
  [" and", "over l1"],
  [" new", "under l1"],
  [".", "bare"],
];

/** Draws into `main` what the address asks for. `unlock(error)`: asks for keys. */
export function makeReader(main, unlock) {
  let opened = null;

  function show(body, facts, wanted) {
    body.words ??= {}; // what was asked for is exported, too
    const found = readCase(body, facts);
    const several = found.sequences.length > 1;
    const moved = (now) => {
      const place = { id: found.id, ...now, choice: several ? now.choice : null };
      history.replaceState(null, "", address(place));
    };
    opened = makeCase(found, wanted, { moved, actions: actions(body, facts), askWords: askWords(body.id) });
    document.title = `${found.verdict}: ${found.id}`;
    main.replaceChildren(back(), opened.element);
    opened.arrive();
  }

  async function route() {
    const wanted = placeNow();
    opened = null;
    document.body.classList.toggle("reading-case", wanted !== null);
    if (wanted === null) {
      document.title = "probewatch evidence";
      main.replaceChildren(welcome());
      return;
    }
    main.replaceChildren(back(), el("p", { class: "state", role: "status" }, `Loading ${wanted.id} \u2026`));
    const overtaken = () => placeNow()?.id !== wanted.id;
    try {
      const asked = [get(`requests/${encodeURIComponent(wanted.id)}`), get("probes")];
      const [body, facts] = await Promise.all(asked);
      if (!overtaken()) show(body, facts, wanted);
    } catch (error) {
      if (!overtaken()) main.replaceChildren(back(), failed(error, wanted, unlock, route));
    }
  }

  return { route, key: (key) => opened?.key(key) ?? false };
}

function actions(body, facts) {
  const title = "One HTML file with prompt, answer and scores in it";
  const save = () => saveCase(body, facts);
  return [
    copyButton("Copy link", () => location.href, { class: "small" }),
    el("button", { type: "button", class: "small", title, onclick: save }, "Export"),
  ];
}

function askWords(id) {
  return (choice, probe) => get("words", { id, choice, probe });
}

function failed(error, wanted, unlock, route) {
  const [label, doing] = error.locked ? ["Enter keys", () => unlock(error)] : ["Try again", route];
  return el(
    "div",
    { class: "state" },
    el("strong", {}, `${wanted.id} cannot be shown.`),
    el("p", {}, error.message),
    el("button", { type: "button", class: "primary", onclick: doing }, label),
  );
}

function back() {
  return el("a", { class: "back", href: "#" }, "\u2190 All generations");
}

function welcome() {
  const sample = SAMPLE.map(([text, look]) => el("span", { class: `t ${look}` }, text));
  return el(
    "div",
    { class: "welcome" },
    el("h2", {}, "Choose a generation"),
    el("p", {}, "Each token is coloured by how far its score lies from the probe's threshold:"),
    el("p", { class: "sample", "aria-hidden": "true" }, sample),
    el("p", { class: "hint" }, "Orange is above the threshold, blue below; hatched tokens have no score."),
    el("p", { class: "hint" }, "A score is evidence, not proof. Press ? for the keyboard."),
  );
}
