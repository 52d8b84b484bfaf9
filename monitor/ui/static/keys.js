/** Asks for the keys. */

import { el } from "./dom.js";
import { keys } from "./api.js";

/** `used()`: the keys have changed. */
export function makeKeyDialog({ used }) {
  const why = el("p", { class: "why", role: "alert" });
  const admin = field("Admin key", "PROBEWATCH_ADMIN_KEY of the server: opens the evidence");
  const api = field("API key", "vLLM's --api-key, if the server has one");
  const form = el(
    "form",
    { method: "dialog" },
    el("h2", {}, "Keys for this server"),
    why,
    admin.element,
    api.element,
    el("p", { class: "hint" }, "They stay in this tab until it closes and go to this server only."),
    el(
      "div",
      { class: "buttons" },
      el("button", { type: "button", onclick: () => forget() }, "Forget keys"),
      el("button", { type: "button", onclick: () => dialog.close() }, "Cancel"),
      el("button", { type: "submit", class: "primary" }, "Use keys"),
    ),
  );
  const dialog = el("dialog", { class: "keys", "aria-label": "Keys for this server" }, form);
  const take = (apiKey, adminKey) => {
    keys.set(apiKey, adminKey);
    dialog.close();
    used();
  };
  const forget = () => {
    admin.input.value = api.input.value = "";
    take("", "");
  };
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const given = [api.input.value.trim(), admin.input.value.trim()];
    // What is no ASCII cannot travel in a header, and no server has such a key.
    if (given.every((key) => /^[\x20-\x7e]*$/.test(key))) take(...given);
    else why.textContent = "A key holds ASCII characters only.";
  });
  return {
    element: dialog,
    /** `error`: what the server said, if it refused. */
    open(error = null) {
      why.textContent = error?.message ?? "";
      api.input.value = keys.kept.apiKey;
      admin.input.value = keys.kept.adminKey;
      if (!dialog.open) dialog.showModal();
      (error?.status === 401 ? api : admin).input.focus();
    },
  };
}

function field(label, explanation) {
  const input = el("input", { type: "password", autocomplete: "off", spellcheck: "false" });
  return { input, element: el("label", {}, el("span", {}, label), input, el("small", {}, explanation)) };
}
