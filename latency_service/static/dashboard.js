// Two comforts over plain pages: what is marked data-live is fetched anew every few seconds, and links marked
// data-panel open beside the page. Without this script the same links lead to the same pages.
"use strict";

const EVERY_MS = 5000;

async function fetched(url) {
  const response = await fetch(url, { credentials: "same-origin" });
  if (!response.ok) throw new Error(`status ${response.status}`);
  return new DOMParser().parseFromString(await response.text(), "text/html");
}

function renew(page) {
  for (const shown of document.querySelectorAll("[data-live]")) {
    const newer = page.getElementById(shown.id);
    // Nobody's place is taken away: neither the focus, nor a text that is being selected, nor what was unfolded.
    const selected = !getSelection().isCollapsed && getSelection().containsNode(shown, true);
    if (!newer || selected || shown.contains(document.activeElement)) continue;
    for (const unfolded of shown.querySelectorAll("details[open]")) {
      const same = newer.querySelector(`#${CSS.escape(unfolded.id)}`);
      if (same) same.open = true;
    }
    if (newer.innerHTML !== shown.innerHTML) shown.innerHTML = newer.innerHTML;
  }
}

function say(element, sentence) {
  if (element.textContent !== sentence) element.textContent = sentence;
}

async function keepFresh() {
  const trouble = document.getElementById("trouble");
  for (;;) {
    await new Promise((done) => setTimeout(done, EVERY_MS));
    if (document.hidden) continue;
    try {
      renew(await fetched(location.href));
      say(trouble, "");
    } catch {
      say(trouble, trouble.dataset.said);
    }
  }
}

function panel() {
  const dialog = document.createElement("dialog");
  dialog.setAttribute("aria-label", "Measurement");
  document.body.append(dialog);
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  return dialog;
}

async function open(link, dialog) {
  try {
    const page = await fetched(link.href);
    const close = document.createElement("button");
    close.textContent = "Close";
    close.className = "close";
    close.addEventListener("click", () => dialog.close());
    dialog.replaceChildren(close, ...page.querySelector("main").children);
    dialog.showModal();
    dialog.scrollTop = 0;
  } catch {
    location.href = link.href; // which says what is wrong
  }
}

if (document.querySelector("main [data-live]")) keepFresh();
if (document.querySelector("[data-panel]")) {
  const dialog = panel();
  document.addEventListener("click", (event) => {
    const link = event.target.closest("a[data-panel]");
    if (!link || event.ctrlKey || event.metaKey || event.shiftKey || event.button !== 0) return;
    event.preventDefault();
    open(link, dialog);
  });
}
