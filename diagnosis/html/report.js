"use strict";
// Takes the page anew every five seconds and changes what is different in it. What the reader
// has opened, marked, focused or scrolled to stays as it is.

const every = 5000; // ms, after an answer

const report = document.getElementById("report");
const old = document.getElementById("old");
const pause = document.getElementById("pause");
let last = new Date(); // when the exporter answered
let timer;

// same tells whether a node is about the same thing as one of the new page.
function same(node, next) {
  return node.nodeName === next.nodeName && node.dataset?.key === next.dataset?.key;
}

// update makes a node what it is in the new page.
function update(node, next) {
  if (node.nodeType !== Node.ELEMENT_NODE) {
    if (node.nodeValue !== next.nodeValue) node.nodeValue = next.nodeValue;
    return;
  }
  for (const { name, value } of next.attributes) {
    // Whether details are open is the reader's choice.
    if (name !== "open" && node.getAttribute(name) !== value) node.setAttribute(name, value);
  }
  for (const { name } of [...node.attributes]) {
    if (name !== "open" && !next.hasAttribute(name)) node.removeAttribute(name);
  }
  let at = node.firstChild;
  for (const child of [...next.childNodes]) {
    let found = at;
    while (found && !same(found, child)) found = found.nextSibling;
    if (!found) {
      node.insertBefore(child, at);
      continue;
    }
    if (found === at) at = at.nextSibling;
    else node.insertBefore(found, at);
    update(found, child);
  }
  while (at) {
    const gone = at;
    at = at.nextSibling;
    gone.remove();
  }
}

async function refresh() {
  clearTimeout(timer);
  try {
    // Not a relative address: the page's own may have a password in it, which fetch refuses.
    const answer = await fetch(location.origin + location.pathname, { cache: "no-store", signal: AbortSignal.timeout(30000) });
    if (!answer.ok) throw new Error(`HTTP status ${answer.status}`);
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    const next = page.getElementById("report");
    if (!next) throw new Error("the answer is another page");
    const focused = document.activeElement;
    update(report, next);
    if (focused !== document.activeElement) focused.focus({ preventScroll: true }); // it has moved
    document.title = page.title;
    last = new Date();
    tell("");
  } catch (error) {
    tell(`These numbers are old: no answer since ${last.toLocaleTimeString()} (${error.message}).`);
  }
  clearTimeout(timer); // of another one that was under way
  if (!pausing()) timer = setTimeout(refresh, every);
}

function tell(text) {
  if (old.textContent !== text) old.textContent = text;
  document.body.className = text && "old";
}

function pausing() {
  return document.hidden || pause.getAttribute("aria-pressed") === "true";
}

pause.addEventListener("click", () => {
  const pausedNow = pause.getAttribute("aria-pressed") !== "true";
  pause.setAttribute("aria-pressed", pausedNow);
  if (pausedNow) clearTimeout(timer);
  else refresh();
});
document.addEventListener("visibilitychange", () => {
  if (!pausing()) refresh();
});
pause.hidden = false;
timer = setTimeout(refresh, every);
