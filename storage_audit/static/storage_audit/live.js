// While what a page tells of goes on, it has parts with `data-live`, which are fetched again and again.
// Once it is over it has none, and is renewed as a whole, as its buttons are others then.
"use strict";
{
  const PAUSE = 3, SLOWEST = 60; // seconds
  let troubles = 0;

  const show = (id, yes) => { document.getElementById(id).hidden = !yes; };
  const isRefused = (answer) => answer.type === "opaqueredirect" || [401, 403, 404].includes(answer.status);

  function renew(part, fresh) {
    if (part.innerHTML === fresh.innerHTML) return;
    const focused = part.contains(document.activeElement) && document.activeElement;
    part.innerHTML = fresh.innerHTML;
    if (focused) putFocus(part, focused.getAttribute("href"));
  }

  // Where it was, if it is a link that the new part has too.
  function putFocus(part, href) {
    const same = href && part.querySelector(`[href="${CSS.escape(href)}"]`);
    if (!same) part.tabIndex = -1;
    (same || part).focus();
  }

  // Whether there is more to come.
  async function poll() {
    // Who is signed out is led to the login page: that is no answer for us.
    const answer = await fetch(location.href, { redirect: "manual", cache: "no-store" });
    if (isRefused(answer)) {
      show("audit-refused", true);
      return false;
    }
    if (!answer.ok) throw new Error(answer.status);
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    const isOver = !page.querySelector("[data-live]");
    for (const part of document.querySelectorAll(isOver ? "#content-main" : "[data-live]")) {
      const fresh = page.getElementById(part.id);
      // As from a proxy in front.
      if (!fresh) throw new Error("This is another page.");
      renew(part, fresh);
    }
    show("audit-ended", isOver);
    return !isOver;
  }

  async function follow() {
    let goesOn = true;
    if (!document.hidden) {
      try {
        goesOn = await poll();
        troubles = 0;
      } catch {
        troubles += 1;
      }
      show("audit-unreachable", troubles > 0);
    }
    if (goesOn) setTimeout(follow, 1000 * Math.min(SLOWEST, PAUSE * 2 ** troubles));
  }
  setTimeout(follow, 1000 * PAUSE);
}
