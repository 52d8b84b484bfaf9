/** From the body of `GET /requests/{id}` to columns: what the views read. */

const REACH = 0.95;
const RARE = 0.02;

/** All sequences of a response. `facts`: body of `GET /probes`, for action, kind and benign spread. */
export function readCase(body, facts = []) {
  const choices = body.choices ?? [{ ...body, index: body.choice ?? 0 }];
  return {
    id: body.id,
    model: body.model,
    verdict: body.verdict,
    finishedAt: body.finished_at ?? null,
    words: body.words ?? {},
    sequences: choices.map((choice) => readSequence(choice, facts)),
  };
}

/** The choice that was asked for, else the first with the verdict of the whole. */
export function chosenSequence(found, index) {
  return (
    found.sequences.find((one) => one.index === index) ??
    found.sequences.find((one) => one.verdict === found.verdict) ??
    found.sequences[0]
  );
}

function readSequence(choice, facts) {
  const entries = Object.entries(choice.probes);
  const longest = entries
    .map(([, said]) => said.tokens ?? [])
    .reduce((a, b) => (b.length > a.length ? b : a), []);
  const tokens = longest.map((token) => ({
    position: token.position,
    id: token.token_id,
    text: token.token,
    prompt: token.phase === "prompt",
  }));
  const probes = entries.map(([name, said]) =>
    readProbe(
      name,
      said,
      facts.find((fact) => fact.name === name),
    ),
  );
  return {
    index: choice.index,
    verdict: choice.verdict,
    finishReason: choice.finish_reason ?? null,
    coverage: choice.coverage,
    tokens,
    prompt: tokens.filter((token) => token.prompt).length,
    probes: probes.sort((a, b) => rank(a) - rank(b) || (a.name < b.name ? -1 : 1)),
  };
}

function rank(probe) {
  return (probe.flagged ? 0 : 2) + (probe.observes ? 1 : 0);
}

function readProbe(name, said, fact) {
  const tokens = said.tokens ?? [];
  const scores = Float64Array.from(tokens, (token) => token.score ?? NaN);
  const probe = {
    name,
    score: said.score,
    threshold: said.threshold,
    flagged: said.flagged,
    peak: said.peak_token,
    scored: said.tokens_scored,
    scores,
    reasons: tokens.map((token) => token.reason),
    masked: tokens.map((token) => token.masked),
    fact: fact ?? null,
    observes: fact?.action === "observe",
  };
  return Object.assign(probe, scaleOf(probe));
}

/** Where the colours change sides, and the distance at which they are full.
 *
 * Centre: the threshold; the median of the counted tokens where a probe has none. Spread: the 95th percentile of the
 * counted tokens' distance from the centre, and at least the benign interquartile range, so that a benign
 * generation does not look as if it burnt. */
function scaleOf(probe) {
  const every = [...probe.scores].filter(Number.isFinite).sort((a, b) => a - b);
  const inside = [...probe.scores].filter((score, i) => Number.isFinite(score) && !probe.masked[i]);
  const counted = inside.length ? inside.sort((a, b) => a - b) : every;
  const at = (sorted, share) => sorted[Math.round(share * (sorted.length - 1))];
  const centre = probe.threshold ?? at(counted, 0.5) ?? 0;
  const distances = counted.map((score) => Math.abs(score - centre)).sort((a, b) => a - b);
  return {
    centre,
    spread: Math.max(at(distances, REACH) ?? 0, probe.fact?.benign_iqr ?? 0) || 1,
    ...rangeOf(centre, counted, every, at),
  };
}

/** What a chart has to hold: all that counts, and what is masked but for its rarest (a first token lies far out). */
function rangeOf(centre, counted, every, at) {
  if (!every.length) return { lowest: centre, highest: centre };
  return {
    lowest: Math.min(centre, counted[0], at(every, RARE)),
    highest: Math.max(centre, counted[counted.length - 1], at(every, 1 - RARE)),
  };
}

/** -8 .. 8: how far a score lies from the centre, in eighths of the spread. Above the centre it is never 0. */
export function heat(probe, score) {
  const eighths = Math.min(8, Math.round((8 * Math.abs(score - probe.centre)) / probe.spread));
  return score > probe.centre ? Math.max(1, eighths) : -eighths;
}

/** The next position above the centre inside the mask, in steps of `step` from `from`; null if there is none. */
export function nextAbove(probe, from, step) {
  for (let i = from + step; i >= 0 && i < probe.scores.length; i += step) {
    if (probe.scores[i] > probe.centre && !probe.masked[i]) return i;
  }
  return null;
}
