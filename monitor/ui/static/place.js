/** The address of the page after its #: which response is open, and where in it. */

/** `place`: {id, choice, probe, token}; what is missing is left out. */
export function address(place) {
  const given = Object.entries(place).filter(
    ([, value]) => value !== undefined && value !== null && value !== "",
  );
  return `#${new URLSearchParams(given.map(([name, value]) => [name, String(value)]))}`;
}

/** What the address asks for; null for no response. */
export function placeNow() {
  const asked = new URLSearchParams(location.hash.slice(1));
  if (!asked.get("id")) return null;
  const whole = (name) => (/^\d{1,9}$/.test(asked.get(name) ?? "") ? Number(asked.get(name)) : undefined);
  return {
    id: asked.get("id"),
    choice: whole("choice"),
    probe: asked.get("probe") ?? undefined,
    token: whole("token"),
  };
}
