// "/" focuses the search box. In a field "/" is text.
"use strict";
{
  const box = document.getElementById("audit-lookup");
  box.setAttribute("aria-keyshortcuts", "/");
  document.addEventListener("keydown", (event) => {
    const isTyping = event.target.closest("input, select, textarea, [contenteditable]");
    if (event.key !== "/" || event.ctrlKey || event.metaKey || event.altKey || isTyping) return;
    event.preventDefault();
    box.focus();
    box.select();
  });
}
