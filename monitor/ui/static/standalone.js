/** The exported file: one case, drawn from the data that lies in it. */

import { el } from "./dom.js";
import { readCase } from "./case.js";
import { makeCase } from "./caseview.js";
import { moment } from "./text.js";

const data = JSON.parse(document.getElementById("data").textContent);
const main = document.getElementById("main");
if (data.case === null) {
  main.append(
    el("p", { class: "state" }, "This file holds no case: it is the empty form that an export fills."),
  );
} else {
  const found = readCase(data.case, data.probes);
  document.title = `${found.verdict}: ${found.id}`;
  const origin = `Exported ${moment(data.exported_at)} from ${data.source} by probewatch. A score is evidence, not proof.`;
  const view = makeCase(found);
  main.append(view.element, el("footer", { class: "origin" }, origin));
  document.addEventListener("keydown", (event) => {
    if (!event.ctrlKey && !event.metaKey && !event.altKey && view.key(event.key)) event.preventDefault();
  });
}
