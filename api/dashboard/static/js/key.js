// Asks for an API key, once for all panels that wait for it.

import { h } from "./dom.js";
import { setApiKey } from "./settings.js";

let asking = null;

/** True once a key was given, false if the viewer closed the question. `wrong`: the last one was refused. */
export function askForKey(wrong) {
  asking ??= ask(wrong).finally(() => {
    asking = null;
  });
  return asking;
}

function ask(wrong) {
  const key = h("input", {
    id: "api-key", type: "password", autocomplete: "off", spellcheck: "false", required: true,
    "aria-describedby": "api-key-help",
  });
  const remember = h("input", { type: "checkbox", id: "api-key-remember" });
  const cancel = h("button", { type: "button", class: "button" }, "Cancel");
  const form = h(
    "form", { method: "dialog", class: "key-form" },
    h("h2", { id: "api-key-title" }, wrong ? "That key was refused" : "This API needs a key"),
    h("p", { id: "api-key-help" }, "A key with the scope “read” shows everything; uploads need “write”, silences “admin”."),
    h("label", { for: "api-key" }, "API key"), key,
    h("label", { class: "check", for: "api-key-remember" }, remember, "Remember on this device"),
    h("div", { class: "row end" }, cancel, h("button", { class: "button primary", type: "submit" }, "Use key")),
  );
  const dialog = h("dialog", { class: "dialog", "aria-labelledby": "api-key-title" }, form);
  document.body.append(dialog);
  dialog.showModal();
  key.focus();
  return new Promise((resolve) => {
    form.addEventListener("submit", () => {
      setApiKey(key.value.trim(), remember.checked);
      resolve(true);
    });
    cancel.addEventListener("click", () => dialog.close());
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(false); // Without effect after a submit.
    });
  });
}
