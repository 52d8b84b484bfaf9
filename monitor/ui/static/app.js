/** The page: what is listed, what is open, and what stands in the way. */

import { get } from "./api.js";
import { follow } from "./feed.js";
import { makeKeyDialog } from "./keys.js";
import { makeList } from "./list.js";
import { address, placeNow } from "./place.js";
import { makeReader } from "./reader.js";
import { ofAlert, ofHeadline } from "./rows.js";
import { locked, noFlags, nothing } from "./states.js";
import { ago, share } from "./text.js";
import { themeButton } from "./theme.js";

const KEPT = 2000;
const RECENT = 200;
const REFRESH_MS = 5000;

const byId = (id) => document.getElementById(id);
const alerts = new Map();
let recent = [];
let facts = [];
let following = null;
let status = null;
let feedState = "connecting";

const list = makeList({ changed: filterChanged, asked: (text) => (location.hash = address({ id: text })) });
const dialog = makeKeyDialog({ used: start });
const reader = makeReader(byId("main"), (error) => dialog.open(error));

// --- the list -------------------------------------------------------------------------------------------

function rows() {
  const flagged = [...alerts.values()].sort((a, b) => Number(b.key) - Number(a.key));
  return list.filter().verdict === "flagged" ? flagged : recent;
}

function draw(fresh) {
  const shown = list.show(rows(), placeNow(), fresh);
  const names = new Set([
    ...facts.map((fact) => fact.name),
    ...rows().flatMap((row) => row.probes.map((probe) => probe.name)),
  ]);
  list.probes([...names].sort());
  if (feedState === "live" || feedState === "polling") list.state(...emptiness(shown));
}

function emptiness(shown) {
  if (shown) return [];
  if (rows().length || list.filter().verdict !== "flagged") return [nothing(rows().length > 0)];
  return [noFlags(facts)];
}

function arrived(found, first) {
  const fresh = new Set();
  for (const alert of found) {
    const row = ofAlert(alert);
    alerts.set(row.key, row);
    if (!first) fresh.add(row.key);
  }
  const oldest = [...alerts.keys()].sort((a, b) => a - b).slice(0, Math.max(0, alerts.size - KEPT));
  for (const key of oldest) alerts.delete(key);
  draw(fresh);
}

async function filterChanged(filter, probeChanged) {
  draw();
  if (filter.verdict !== "flagged") await refresh();
  else if (probeChanged && filter.probe) {
    const older = await attempt(() => get("alerts", { probe: filter.probe, limit: 1000 }));
    if (older) arrived(older.reverse(), true);
  }
}

// --- the server -----------------------------------------------------------------------------------------

function start() {
  alerts.clear();
  listen();
  refresh();
  reader.route();
}

function listen() {
  following?.abort();
  following = new AbortController();
  setFeed("connecting");
  follow({ arrived, state: setFeed, signal: following.signal });
}

/** A tab that nobody sees holds no stream: browsers open six connections to a server, over all tabs. */
function seen() {
  if (feedState === "locked") return;
  if (!document.hidden) return listen();
  following.abort();
  setFeed("paused");
}

function setFeed(name, error = null, wait = 0) {
  const before = feedState;
  feedState = name;
  const words = {
    live: "Live",
    polling: "Live, by polling",
    away: "Server away",
    locked: "Locked",
    connecting: "Connecting\u2026",
    paused: "Paused",
  };
  byId("feed").textContent = words[name];
  byId("feed").dataset.state = name;
  if (name === "locked") {
    const unlock = () => dialog.open(error);
    list.show([], null);
    list.state(locked(error, unlock));
    unlock();
  } else if (name === "away") {
    banner(`${error.message} What is shown stays; trying again in ${Math.round(wait / 1000)} s.`);
  } else if (before !== name && (name === "live" || name === "polling")) {
    banner(trouble());
    if (before === "away") refresh();
    draw();
  }
}

function trouble() {
  if (status && !status.attached)
    return `The monitor is not attached${status.last_error ? `: ${status.last_error}` : "."}`;
  return "";
}

function banner(text) {
  byId("banner").hidden = !text;
  byId("banner").textContent = text;
}

/** Null where it fails; the feed tells of a server that is away. */
async function attempt(ask) {
  try {
    return await ask();
  } catch {
    return null;
  }
}

async function refresh() {
  const found = await attempt(() => get("status"));
  if (found) {
    status = found;
    facts = found.probes;
    const covered = Object.values(found.coverage).filter((value) => value !== null);
    const coverage = covered.length ? ` · ${share(Math.min(...covered))} of tokens scored` : "";
    byId("server").textContent =
      `${found.model} · ${facts.length} probe${facts.length === 1 ? "" : "s"}${coverage}`;
    if (feedState !== "away") banner(trouble());
  }
  if (list.filter().verdict !== "flagged") {
    const lines = await attempt(() => get("requests", { limit: RECENT }));
    if (lines) recent = lines.map(ofHeadline);
  }
  if (feedState !== "locked") draw();
}

// --- the whole ------------------------------------------------------------------------------------------

function pressed(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  if (event.target.matches("input, select, textarea")) {
    if (event.key === "Escape") list.focus();
    return;
  }
  const doing = {
    "/": () => list.search(),
    "?": () => byId("help").showModal(),
    j: () => list.walk(1),
    k: () => list.walk(-1),
    Escape: () => (matchMedia("(max-width: 820px)").matches ? (location.hash = "") : list.focus()),
  }[event.key];
  if (doing) doing();
  if (doing || reader.key(event.key)) event.preventDefault();
}

byId("list").replaceWith(list.element);
document.body.append(dialog.element);
themeButton(byId("theme-button"));
byId("keys-button").addEventListener("click", () => dialog.open());
byId("help-button").addEventListener("click", () => byId("help").showModal());
addEventListener("hashchange", () => {
  if (feedState !== "locked") draw();
  reader.route();
});
document.addEventListener("keydown", pressed);
document.addEventListener("visibilitychange", seen);
setInterval(() => {
  for (const time of document.querySelectorAll(".row-ago")) time.textContent = ago(Number(time.dataset.time));
}, 10000);
setInterval(() => (feedState === "live" || feedState === "polling") && refresh(), REFRESH_MS);
start();
