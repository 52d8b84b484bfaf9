/** How numbers, times and tokens are written. */

/* What would hide, reorder or break: controls, zero-width, bidirectional marks, separators, fillers, byte order mark,
 * variation selectors (but the one of emoji) and tags: a whole hidden text can be written in the last two. */
const UNSEEN =
  /[\u0000-\u0008\u000b-\u001f\u007f-\u00a0\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202f\u2060-\u206f\u3164\ufe00-\ufe0e\ufeff\uffa0\ufff9-\ufffb\u{e0000}-\u{e0fff}]/gu;
const LONGEST = 256;

/** Text of a token with everything unseen made visible; a line break stays one behind its sign. */
export function visible(text) {
  const cut = text.length > LONGEST ? `${text.slice(0, LONGEST)}\u2026` : text;
  return cut
    .replace(UNSEEN, (sign) => `\\u${sign.codePointAt(0).toString(16).padStart(4, "0")}`)
    .replaceAll("\t", "\u21e5\t")
    .replaceAll("\n", "\u21b5\n");
}

/** One line for a token: its text in quotes, else its id, else that nothing is kept. */
export function named(token) {
  if (token.text !== null) return `\u201c${visible(token.text).replaceAll("\n", "")}\u201d`;
  return token.id === null ? "text not stored" : `id ${token.id}`;
}

/** Four significant digits with a true minus sign; a dash for what is not there. */
export function number(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "\u2013";
  const size = Math.abs(value);
  const text =
    size !== 0 && (size >= 1e6 || size < 1e-3) ? value.toExponential(2) : String(+value.toPrecision(4));
  return text.replace("-", "\u2212");
}

/** With its sign. */
export function signed(value) {
  return value > 0 ? `+${number(value)}` : number(value);
}

/** 1 234 567 */
export function count(value) {
  return String(value).replace(/\B(?=(\d{3})+$)/g, "\u202f");
}

/** A share in per cent; never rounded up to 100. */
export function share(value) {
  if (value === null || value === undefined) return "\u2013";
  return value === 1 ? "100%" : `${Math.floor(value * 1000) / 10}%`;
}

/** Date and time of day, local. `seconds`: Unix time. */
export function moment(seconds) {
  if (!seconds) return "time not known";
  const at = new Date(seconds * 1000);
  const two = (value) => String(value).padStart(2, "0");
  return `${at.getFullYear()}-${two(at.getMonth() + 1)}-${two(at.getDate())} ${clock(seconds)}`;
}

/** Time of day, local. */
export function clock(seconds) {
  const at = new Date(seconds * 1000);
  return [at.getHours(), at.getMinutes(), at.getSeconds()]
    .map((value) => String(value).padStart(2, "0"))
    .join(":");
}

/** "12 s ago" */
export function ago(seconds, now = Date.now() / 1000) {
  const past = Math.max(0, now - seconds);
  if (past < 60) return `${Math.floor(past)} s ago`;
  if (past < 3600) return `${Math.floor(past / 60)} min ago`;
  if (past < 86400) return `${Math.floor(past / 3600)} h ago`;
  return `${Math.floor(past / 86400)} d ago`;
}

const REASONS = {
  not_fed: "the last sampled token is never fed to the model",
  non_finite: "the score is not a finite number",
  before_attach: "the token was computed before the probe was attached",
  tap_silent: "the tap did not fire",
  not_delivered: "the score did not arrive",
  other_adapter: "another LoRA adapter computed the token",
  detached: "the probe was detached meanwhile",
  skipped: "the operator exempted the request",
};

/** Why a token has no score, in words. */
export function explained(reason) {
  return REASONS[reason] ? `${reason}: ${REASONS[reason]}` : reason;
}
