// "/" focuses the search box, unless this browser's user has turned that off on the page "Why?". In a
// field "/" is text.
"use strict";
{
  const OFF = "storage_audit.slash_off";
  const box = document.getElementById("audit-lookup"), choice = document.getElementById("audit-slash");
  const isOn = () => !localStorage.getItem(OFF);

  function show() {
    if (isOn()) box.setAttribute("aria-keyshortcuts", "/");
    else box.removeAttribute("aria-keyshortcuts");
  }

  if (choice) {
    choice.closest("p").hidden = false;
    choice.checked = isOn();
    choice.addEventListener("change", () => {
      if (choice.checked) localStorage.removeItem(OFF);
      else localStorage.setItem(OFF, "1");
      show();
    });
  }
  document.addEventListener("keydown", (event) => {
    const isTyping = event.target.closest("input, select, textarea, [contenteditable]");
    if (event.key !== "/" || event.ctrlKey || event.metaKey || event.altKey || isTyping || !isOn()) return;
    event.preventDefault();
    box.focus();
    box.select();
  });
  show();
}
