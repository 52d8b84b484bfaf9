/** What the list says when it has no lines. */

import { el } from "./dom.js";

/** Nothing was flagged so far. `facts`: body of `GET /probes`. */
export function noFlags(facts) {
  const acting = facts.filter((fact) => fact.action !== "observe").map((fact) => fact.name);
  const watching = acting.length
    ? `Watching: ${acting.join(", ")}.`
    : "No attached probe acts: probes that only observe flag nothing.";
  const later = "A flagged generation appears here as soon as it ends.";
  return el("p", { class: "state" }, el("strong", {}, "No flags yet."), ` ${watching} ${later}`);
}

/** The filter lets nothing through, or there is nothing of its verdict. */
export function nothing(someExist) {
  return el(
    "p",
    { class: "state" },
    someExist ? "Nothing passes the filter." : "No response of that kind is remembered.",
  );
}

/** The server wants a key. `unlock()`: asks for it. */
export function locked(error, unlock) {
  const api = error.status === 401;
  return el(
    "div",
    { class: "state" },
    el("strong", {}, api ? "This server asks for its API key." : "The evidence needs the admin key."),
    el("p", {}, error.message),
    el("button", { type: "button", class: "primary", onclick: unlock }, "Enter keys"),
  );
}
