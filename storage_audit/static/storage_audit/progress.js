// Keeps a cleanup's page up to date while it runs, without loading it again.
"use strict";
{
  const HIDDEN = 15, SLOWEST = 60; // seconds
  let timer, troubles = 0, asking = false, step = "";

  const box = () => document.getElementById("audit-progress");
  const show = (id, yes) => { document.getElementById(id).hidden = !yes; };
  const say = (text) => { document.getElementById("audit-announcement").textContent = text; };
  // Who is signed out is led to the login page: that is no answer for us.
  const get = (url) => fetch(url, { redirect: "manual", cache: "no-store" });
  const isRefused = (answer) => answer.type === "opaqueredirect" || [401, 403, 404].includes(answer.status);

  function wait(seconds) {
    clearTimeout(timer);
    const least = document.hidden ? HIDDEN : 0;
    timer = setTimeout(poll, 1000 * Math.max(seconds, least));
  }

  async function poll() {
    if (asking) return;
    asking = true;
    clearTimeout(timer);
    try {
      const answer = await get(box().dataset.url);
      if (isRefused(answer)) return refuse();
      if (!answer.ok) throw new Error(answer.status);
      const progress = await answer.json();
      if (progress.status === box().dataset.status && has(progress.totals)) draw(progress);
      else if (isRefused(await replace())) return refuse();
      troubles = 0;
      if (box()) {
        show("audit-unreachable", false);
        wait(progress.next_poll_seconds);
      }
      if (progress.step_in_words !== step) say(progress.step_in_words);
      step = progress.step_in_words;
    } catch {
      // Also when the answer is not what it should be, as from a proxy in front.
      troubles += 1;
      show("audit-unreachable", true);
      wait(Math.min(SLOWEST, 2 ** troubles));
    } finally {
      asking = false;
    }
  }

  function refuse() {
    show("audit-unreachable", false);
    show("audit-refused", true);
  }

  // The first of them come with lines that the page does not have yet.
  const has = (totals) => !totals.length || document.querySelector("#totals div[data-name]");

  function draw(progress) {
    document.getElementById("audit-sentence").textContent = progress.sentence;
    const bar = box().querySelector("progress");
    bar.hidden = progress.waits;
    if (progress.total) {
      bar.max = progress.total;
      bar.value = progress.done;
    } else {
      bar.removeAttribute("value");
    }
    for (const line of progress.totals) {
      const row = document.querySelector(`#totals div[data-name="${line.name}"]`);
      row.hidden = !line.objects;
      row.querySelector(".audit-objects").textContent = line.objects;
      row.querySelector(".audit-size").textContent = line.size;
      const part = document.querySelector(`#totals rect[data-name="${line.name}"]`);
      part?.setAttribute("x", line.x);
      part?.setAttribute("width", line.width);
    }
  }

  // The page as it is now takes the place of what is shown: another status has other sentences.
  async function replace() {
    const answer = await get(location.href);
    if (isRefused(answer)) return answer;
    if (!answer.ok) throw new Error(answer.status);
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    const old = document.getElementById("content-main"), fresh = page.getElementById("content-main");
    const focused = old.contains(document.activeElement) ? document.activeElement : null;
    old.replaceWith(fresh);
    if (focused) putFocus(focused, fresh);
    return answer;
  }

  // Where it was, with what was typed there, if it is a place that the new page has too.
  function putFocus(before, fresh) {
    const same = before.id && document.getElementById(before.id);
    if (same && before.value !== undefined) same.value = before.value;
    if (!same) fresh.tabIndex = -1;
    (same || fresh).focus();
  }

  document.addEventListener("visibilitychange", () => {
    if (!document.hidden && box() && document.getElementById("audit-refused").hidden) poll();
  });
  wait(Number(box().dataset.wait));
}
