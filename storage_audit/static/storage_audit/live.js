// While what a page tells of goes on, it has parts with `data-live`, which are fetched again and again.
// Once it is over it has none, and is loaded as a whole, as its buttons are others then.
const PAUSE = 3000;

function renew(part, fresh) {
  if (part.innerHTML === fresh.innerHTML) return;
  const focused = part.contains(document.activeElement) && document.activeElement.getAttribute("href");
  part.innerHTML = fresh.innerHTML;
  if (focused) part.querySelector(`[href="${CSS.escape(focused)}"]`)?.focus();
}

async function look() {
  const answer = await fetch(location.href);
  if (!answer.ok || answer.redirected) return;
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  for (const part of document.querySelectorAll("[data-live]")) {
    const fresh = page.getElementById(part.id);
    if (fresh) renew(part, fresh);
  }
  if (!page.querySelector("[data-live]")) location.reload();
}

async function follow() {
  // A server that is away for a moment may be there the next time.
  if (!document.hidden) await look().catch(() => {});
  setTimeout(follow, PAUSE);
}
setTimeout(follow, PAUSE);
