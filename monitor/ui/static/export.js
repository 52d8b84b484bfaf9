/** Saves one case as a single file: the server's empty form with the data put in. */

import { ownFile } from "./api.js";
import { el } from "./dom.js";

const PLACEHOLDER = '{"case": null}';

/** `body`: of `GET /requests/{id}`; `facts`: of `GET /probes`. */
export async function saveCase(body, facts) {
  const data = { case: body, probes: facts, source: location.origin, exported_at: Date.now() / 1000 };
  const block = JSON.stringify(data).replaceAll("<", "\\u003c"); // it cannot end the element it stands in
  const file = (await ownFile("case.html")).replace(PLACEHOLDER, () => block);
  const url = URL.createObjectURL(new Blob([file], { type: "text/html" }));
  el("a", { href: url, download: `case-${body.id.replace(/[^\w.-]+/g, "_").slice(0, 80)}.html` }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}
