/** Flags as they come: server-sent events over fetch, because EventSource sends no key; polling where they do not pass. */

import { ApiError, get, open } from "./api.js";

const LIMIT = 500;
const FIRST_WORD_MS = 6000;
const SILENCE_MS = 40000;
const POLL_MS = 4000;
const POLLS_BEFORE_RETRY = 8;
const LONGEST_WAIT_MS = 15000;

/** Follows alerts until `signal` aborts or a key is missing.
 *
 * `arrived(alerts, first)`: oldest first; `first` for those that were there already. `state(name, error, wait)`: live,
 * polling, away (tried again after `wait` ms) or locked. */
export async function follow({ arrived, state, signal }) {
  let last = null;
  let trouble = 0;
  let polls = 0;
  const poll = async () => {
    const found = (await get("alerts", { limit: LIMIT }, { signal })).reverse();
    arrived(
      found.filter((alert) => last === null || alert.event_id > last),
      last === null,
    );
    last = Math.max(last ?? 0, ...found.map((alert) => alert.event_id));
  };
  while (!signal.aborted) {
    try {
      if (last === null || polls > 0) await poll();
      if (polls === 0) {
        const opened = () => {
          state("live");
          trouble = 0;
        };
        const heard = (alert) => {
          last = alert.event_id;
          arrived([alert], false);
        };
        await stream({ after: last, signal, opened, heard });
        await pause(POLL_MS / 8, signal);
      } else {
        state("polling");
        trouble = 0;
        polls -= 1;
        await pause(POLL_MS, signal);
      }
    } catch (error) {
      if (signal.aborted) return;
      if (error instanceof ApiError && error.locked) return state("locked", error);
      if (error.silent || error.status === 503) polls = POLLS_BEFORE_RETRY;
      else await away(state, error, ++trouble, signal);
    }
  }
}

async function away(state, error, trouble, signal) {
  const wait = Math.min(LONGEST_WAIT_MS, 500 * 2 ** trouble);
  state("away", error, wait);
  await pause(wait, signal);
}

function pause(ms, signal) {
  return new Promise((done) => {
    setTimeout(done, ms);
    signal.addEventListener("abort", done, { once: true });
  });
}

/** Returns when the server ends the stream. Raises an error with `silent` where nothing comes through. */
async function stream({ after, signal, opened, heard }) {
  const own = new AbortController();
  const stop = () => own.abort();
  signal.addEventListener("abort", stop, { once: true });
  let timer = setTimeout(stop, FIRST_WORD_MS);
  let spoke = false;
  try {
    const reply = await open(
      "events",
      {},
      { headers: { "Last-Event-ID": String(after) }, signal: own.signal },
    );
    const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
    const word = () => {
      if (!spoke) opened();
      spoke = true;
      clearTimeout(timer);
      timer = setTimeout(stop, SILENCE_MS);
    };
    for await (const event of events(reader, word)) {
      if (event.event === "alert") heard(JSON.parse(event.data));
    }
  } catch (error) {
    if (error instanceof ApiError) throw error;
    if (own.signal.aborted && !spoke)
      throw Object.assign(new Error("no event comes through"), { silent: true });
  } finally {
    clearTimeout(timer);
    signal.removeEventListener("abort", stop);
  }
}

/** Server-sent events of a reader; `word` is called for every chunk. */
export async function* events(reader, word) {
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    word();
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) yield Object.fromEntries(block.split("\n").map(field));
  }
}

function field(line) {
  const colon = line.indexOf(":");
  return [line.slice(0, colon), line.slice(colon + 1).replace(/^ /, "")];
}
