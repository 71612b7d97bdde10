// Copies the reply for the customer. Without this script the text can be selected and copied.
"use strict";
for (const reply of document.querySelectorAll(".audit-reply")) {
  const field = reply.querySelector("textarea"), button = reply.querySelector("button");
  button.hidden = false;
  button.addEventListener("click", async () => {
    field.select();
    try {
      await navigator.clipboard.writeText(field.value);
    } catch {
      // Browsers have no clipboard for pages without HTTPS.
      document.execCommand("copy");
    }
    reply.querySelector("[role=status]").textContent = button.dataset.copied;
  });
}
