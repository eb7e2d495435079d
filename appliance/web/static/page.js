// What every page does with a script, and works without: forms that stay where they are when something is wrong, buttons
// that copy, times that go on. Parts that htmx brings later are covered, since everything listens on the document.
"use strict";

const notice = (text) => {
  const box = document.getElementById("notice");
  box.textContent = text;
  box.hidden = false;
  clearTimeout(notice.timer);
  notice.timer = setTimeout(() => { box.hidden = true; }, 2500);
};

const sayProblem = (form, answer) => {
  let box = form.querySelector(".problem.in-form");
  if (!box) {
    box = document.createElement("div");
    box.className = "problem in-form";
    box.setAttribute("role", "alert");
    form.append(box);
  }
  box.textContent = answer.message || "The server did not answer; try again.";
  if (answer.issues && answer.issues.length > 1) {
    const list = document.createElement("ul");
    for (const issue of answer.issues) {
      const item = document.createElement("li");
      item.textContent = issue.message;
      list.append(item);
    }
    box.textContent = "";
    box.append(list);
  }
};

const send = async (form, button) => {
  const body = new URLSearchParams(new FormData(form));
  if (button) button.disabled = true;
  try {
    const answer = await fetch(form.action, { method: "POST", body, headers: { Accept: "application/json" } });
    const found = await answer.json().catch(() => ({}));
    if (answer.ok && found.location) {
      const next = new URL(found.location, location.href);
      if (next.href === location.href) location.reload();
      else location.assign(next);
      return;
    }
    sayProblem(form, found);
  } catch {
    sayProblem(form, {});
  }
  if (button) button.disabled = false;
};

document.addEventListener("submit", (event) => {
  const form = event.target;
  if (form.method !== "post" || "plain" in form.dataset || form.hasAttribute("hx-post")) return;
  event.preventDefault();
  send(form, event.submitter);
});

// htmx: an error answer is a sentence beside the form, not new content.
document.addEventListener("htmx:responseError", (event) => {
  const form = event.detail.elt.closest("form");
  if (!form) {
    if (event.detail.xhr.status === 401) location.reload();  // signed out meanwhile: the sign-in leads back here
    return;
  }
  let found = {};
  try { found = JSON.parse(event.detail.xhr.responseText); } catch { /* the sentence for no answer */ }
  sayProblem(form, found);
});
document.addEventListener("htmx:beforeRequest", (event) => {
  const box = event.detail.elt.querySelector && event.detail.elt.querySelector(".problem.in-form");
  if (box) box.remove();
});

document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-copy]");
  if (button) {
    const text = button.parentElement.querySelector("pre").textContent;
    try {
      await navigator.clipboard.writeText(text);
      notice("Copied.");
    } catch {
      const range = document.createRange();
      range.selectNodeContents(button.parentElement.querySelector("pre"));
      getSelection().removeAllRanges();
      getSelection().addRange(range);
      notice("Selected: copy it with the keyboard.");
    }
  }
  for (const menu of document.querySelectorAll("details.menu[open]")) {
    if (!menu.contains(event.target)) menu.open = false;
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  for (const menu of document.querySelectorAll("details.menu[open]")) {
    menu.open = false;
    menu.querySelector("summary").focus();
  }
});
document.addEventListener("toggle", (event) => {
  if (event.target.matches && event.target.matches("details.menu[open]")) {
    const first = event.target.querySelector("input:not([type=hidden]), select");
    if (first) first.focus();
  }
}, true);

// A page that lives: told that something changed, it asks for itself anew (htmx does) and swaps the part with the id `live`.
// A hidden tab listens to nothing, and looks once when it is seen again: browsers allow few connections to one server.
const watch = (box) => {
  let source = null;
  let again = 0;
  let isOver = false;
  const look = () => {
    const part = document.getElementById("live");
    if (part) window.htmx.trigger(part, "changed");
  };
  const close = () => {
    clearTimeout(again);
    if (source) source.close();
    source = null;
  };
  const open = () => {
    close();
    if (isOver || document.hidden) return;
    source = new EventSource(box.dataset.changes);
    source.addEventListener("changed", look);
    source.addEventListener("over", () => {
      isOver = true;
      close();
      look();
    });
    source.addEventListener("end", () => {  // the session, or the right to see this, has ended: looking says which
      isOver = true;
      close();
      look();
    });
    source.onerror = () => {
      close();
      again = setTimeout(open, 5000);
    };
  };
  document.addEventListener("visibilitychange", () => (document.hidden ? close() : open()));
  addEventListener("pagehide", close);
  open();
};
for (const box of document.querySelectorAll("[data-changes]")) watch(box);

// The same words as view.py's `ago` and `duration`.
const ago = (at) => {
  const seconds = (Date.now() - at) / 1000;
  if (Math.abs(seconds) >= 7 * 86400) return new Date(at).toISOString().slice(0, 10);
  if (Math.abs(seconds) < 5) return "just now";
  const [size, unit] = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]].find(([each]) => Math.abs(seconds) >= each);
  const words = `${Math.floor(Math.abs(seconds) / size)} ${unit}`;
  return seconds > 0 ? `${words} ago` : `in ${words}`;
};
const lasted = (since) => {
  const seconds = Math.max(0, Math.floor((Date.now() - since) / 1000));
  const [hours, minutes] = [Math.floor(seconds / 3600), Math.floor(seconds / 60)];
  if (hours) return `${hours} h ${String(minutes % 60).padStart(2, "0")} min`;
  return minutes ? `${minutes} min ${String(seconds % 60).padStart(2, "0")} s` : `${seconds} s`;
};
const write = (element, text) => { if (element.textContent !== text) element.textContent = text; };
setInterval(() => {
  if (document.hidden) return;
  for (const each of document.querySelectorAll("time[datetime]")) write(each, ago(Date.parse(each.dateTime)));
  for (const each of document.querySelectorAll("[data-since]")) write(each, lasted(Date.parse(each.dataset.since)));
}, 1000);
