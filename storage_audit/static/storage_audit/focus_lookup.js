// "/" focuses the search box, unless this browser's user has turned that off. In a field "/" is text.
"use strict";
{
  const OFF = "storage_audit.slash_off";
  const box = document.getElementById("audit-lookup"), toggle = document.getElementById("audit-slash");
  const isOn = () => !localStorage.getItem(OFF);

  function show() {
    toggle.hidden = false;
    toggle.setAttribute("aria-pressed", isOn());
    box.toggleAttribute("aria-keyshortcuts", isOn());
    if (isOn()) box.setAttribute("aria-keyshortcuts", "/");
  }

  toggle.addEventListener("click", () => {
    if (isOn()) localStorage.setItem(OFF, "1");
    else localStorage.removeItem(OFF);
    show();
  });
  document.addEventListener("keydown", (event) => {
    const isTyping = event.target.closest("input, select, textarea, [contenteditable]");
    if (event.key !== "/" || event.ctrlKey || event.metaKey || event.altKey || isTyping || !isOn()) return;
    event.preventDefault();
    box.focus();
    box.select();
  });
  show();
}
