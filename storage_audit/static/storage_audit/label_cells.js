// On phones a row is a card: each cell says its column's name. Without this script only the names are missing.
"use strict";
{
  const names = [...document.querySelectorAll("#result_list thead th")].map(
    (head) => head.querySelector(".text")?.textContent.trim(),
  );
  for (const row of document.querySelectorAll("#result_list tbody tr")) {
    for (const cell of row.cells) {
      const name = names[cell.cellIndex];
      const isLabelled = cell.tagName === "TD" && !cell.classList.contains("action-checkbox");
      if (isLabelled && name) cell.dataset.label = name;
    }
  }
}
