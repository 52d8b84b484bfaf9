/** Lines of the list, whether they come from `/alerts` or from `/requests`, and which of them a filter lets through. */

/** A line of `/alerts`. */
export function ofAlert(alert) {
  return {
    ...common(alert),
    key: `${alert.event_id}`,
    time: alert.time,
    probes: alert.probes.map((probe) => ({ ...probe, flagged: true })),
  };
}

/** A line of `/requests`. */
export function ofHeadline(line) {
  return {
    ...common(line),
    key: `${line.id} ${line.choice} ${line.finished_at}`,
    time: line.finished_at,
    probes: Object.entries(line.probes)
      .map(([name, said]) => ({ name, ...said, flagged: line.flagged_by.includes(name) }))
      .sort((a, b) => b.flagged - a.flagged),
  };
}

function common(line) {
  return {
    id: line.id,
    choice: line.choice,
    model: line.model,
    verdict: line.verdict,
    finishReason: line.finish_reason,
    tokens: line.fed_tokens,
  };
}

/** `filter`: {text, probe, verdict, seconds}; empty strings let everything through. `now`: Unix time. */
export function passes(row, filter, now = Date.now() / 1000) {
  if (filter.verdict && row.verdict !== filter.verdict) return false;
  if (
    filter.probe &&
    !row.probes.some((probe) => probe.name === filter.probe && (probe.flagged || row.verdict !== "flagged"))
  )
    return false;
  if (filter.seconds && row.time < now - filter.seconds) return false;
  const said = [row.id, row.model, row.finishReason, ...row.probes.map((probe) => probe.name)]
    .join(" ")
    .toLowerCase();
  return filter.text
    .toLowerCase()
    .split(/\s+/)
    .every((word) => said.includes(word));
}
