/** The routes of the monitor, with the keys of this tab. */

const BASE = new URL("../v1/probewatch/", location.href);
const STORE = "probewatch.keys";

/** An answer that is none. `status` 0: nobody answered. */
export class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }

  /** Whether a key would help. */
  get locked() {
    return this.status === 401 || this.status === 403;
  }
}

/** Keys in the session storage of the tab: gone when it closes, never in a URL or a cookie. */
export const keys = {
  kept: read(),
  set(apiKey, adminKey) {
    this.kept = { apiKey, adminKey };
    if (apiKey || adminKey) sessionStorage.setItem(STORE, JSON.stringify(this.kept));
    else sessionStorage.removeItem(STORE);
  },
};

function read() {
  const nothing = { apiKey: "", adminKey: "" };
  try {
    return { ...nothing, ...JSON.parse(sessionStorage.getItem(STORE) ?? "{}") };
  } catch {
    return nothing;
  }
}

/** A response with status 200. Raises `ApiError`. */
export async function open(path, parameters = {}, { headers = {}, signal = null } = {}) {
  const url = new URL(path, BASE);
  for (const [name, value] of Object.entries(parameters))
    if (value !== "" && value !== null) url.searchParams.set(name, value);
  const sent = { ...headers };
  if (keys.kept.apiKey) sent.Authorization = `Bearer ${keys.kept.apiKey}`;
  if (keys.kept.adminKey) sent["X-Probewatch-Admin-Key"] = keys.kept.adminKey;
  let reply;
  try {
    reply = await fetch(url, { headers: sent, signal, cache: "no-store", credentials: "same-origin" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, "The server does not answer.");
  }
  if (!reply.ok) throw new ApiError(reply.status, await reason(reply));
  return reply;
}

/** The JSON of a route. */
export async function get(path, parameters, options) {
  return (await open(path, parameters, options)).json();
}

/** The text of one of the page's own files. */
export async function ownFile(name) {
  const reply = await fetch(new URL(`ui/${name}`, location.href));
  if (!reply.ok) throw new ApiError(reply.status, `${name} cannot be read`);
  return reply.text();
}

async function reason(reply) {
  const text = await reply.text();
  try {
    const body = JSON.parse(text);
    const said = body.error?.message ?? body.error ?? body.detail ?? text;
    return typeof said === "string" ? said : JSON.stringify(said);
  } catch {
    return text.slice(0, 300) || `status ${reply.status}`;
  }
}
