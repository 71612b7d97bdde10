// A button at each key that a list may cut. Without this script, selected text is the whole key.
"use strict";
{
  const { label, copied } = document.currentScript.dataset;
  const ICON = '<svg width="16" height="16" aria-hidden="true"><path d="M5.5 5.5h8v8h-8zM10.5 5.5v-3h-8v8h3"/></svg>';
  for (const key of document.querySelectorAll("#result_list .audit-long-key")) {
    const button = document.createElement("button");
    Object.assign(button, { type: "button", className: "audit-copy", innerHTML: ICON, title: label });
    button.setAttribute("aria-label", `${label}: ${key.title}`);
    button.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(key.title);
      } catch {
        // Browsers have no clipboard for pages without HTTPS.
        getSelection().selectAllChildren(key);
        document.execCommand("copy");
      }
      button.dataset.done = "";
      button.title = copied;
      button.innerHTML = "✓";
    });
    (key.closest("a") ?? key).after(button);
  }
}
