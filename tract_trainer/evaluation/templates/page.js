// The list of judgments. Untrusted texts get into the page as text only: `textContent`, `append`, `title`.
"use strict";

const PAGE = 50;
const TYPING = 200; // milliseconds without a key before the filter applies

const byId = (id) => document.getElementById(id);
const { results } = JSON.parse(byId("data").textContent);
const list = byId("list");
const heads = [...list.querySelectorAll("[data-sort]")];
const KEYS = heads.map((head) => head.dataset.sort);
let state, found, shown; // what is chosen, as in the address, so that a view can be linked to

function element(tag, className = "", ...content) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.append(...content);
  return made;
}

function written(value, digits = 2) {
  if (value === null) return "–";
  return Number.isInteger(value) ? String(value) : value.toFixed(digits);
}

const result = () => results[Number(state.get("result")) || 0] ?? results[0];
const sort = () => (KEYS.includes(state.get("sort")) ? state.get("sort") : "error");
const usualOrder = () => (sort() === "error" ? "descending" : "ascending");
const order = () => (["ascending", "descending"].includes(state.get("order")) ? state.get("order") : usualOrder());

function change(key, value) {
  state.set(key, value);
  history.replaceState(null, "", "#" + state);
  draw();
}

function matches(judgment, words) {
  judgment.words ??= [judgment.prompt, judgment.rationale, judgment.reason, judgment.record].join("\n").toLowerCase();
  return judgment.words.includes(words);
}

function compare(a, b) {
  const [x, y] = [a[sort()], b[sort()]];
  const unscored = state.get("unscored") === "first" && (b.score === null) - (a.score === null);
  const distance = order() === "ascending" ? x - y : y - x;
  return unscored || (x === null) - (y === null) || distance || a.number - b.number; // what is not known is last
}

function draw() {
  const { judgments, labels } = result();
  const words = state.get("filter") ?? "";
  found = judgments.filter((judgment) => matches(judgment, words.toLowerCase())).sort(compare);
  for (const body of [...list.tBodies]) body.remove();
  for (const head of heads) {
    if (head.dataset.sort === sort()) head.parentElement.setAttribute("aria-sort", order());
    else head.parentElement.removeAttribute("aria-sort");
  }
  byId("labels").textContent = labels.length ? `probability of ${labels[0]} to ${labels.at(-1)}` : "";
  byId("result").value = results.indexOf(result());
  byId("filter").value = words;
  byId("unscored").checked = state.get("unscored") === "first";
  shown = 0;
  showMore();
}

function showMore() {
  for (const judgment of found.slice(shown, shown + PAGE)) list.append(row(judgment));
  shown = Math.min(found.length, shown + PAGE);
  byId("more").hidden = shown === found.length;
  const { judgments } = result();
  const unscored = judgments.filter((judgment) => judgment.score === null).length;
  const all = found.length < judgments.length ? `, of ${judgments.length} judgments` : "";
  byId("status").textContent = `${shown} of ${found.length} shown${all}; ${unscored} unscored.`;
}

function row(judgment) {
  const { labels } = result();
  const cells = [judgment.gold, judgment.score, judgment.error].map((value) => element("td", "", written(value)));
  cells.push(element("td", "", written(judgment.mass, 3)), element("td", "", bars(judgment.probs, judgment, labels)));
  const excerpt = (judgment.reason || judgment.rationale || judgment.prompt || judgment.record || "no text").slice(0, 300);
  const summary = element("summary", "", judgment.score === null ? `unscored: ${excerpt}` : excerpt);
  summary.dir = "auto";
  const details = element("details", "", summary);
  details.addEventListener("toggle", () => details.append(...reading(judgment, labels)), { once: true });
  const text = element("td", "text", details);
  text.colSpan = KEYS.length + 1;
  return element("tbody", "", element("tr", "", element("th", "", judgment.number), ...cells), element("tr", "", text));
}

function reading(judgment, labels) {
  const parts = [["Why it is unscored", judgment.reason], ["Rationale", judgment.rationale], ["Prompt", judgment.prompt]];
  parts.push(["Record", judgment.record]);
  const made = parts.filter(([, text]) => text).flatMap(([title, text]) => [element("h4", "", title), said(text)]);
  for (const { label, probs, tokens, forced } of judgment.rationales) {
    const about = element("span", "", "Label ", element("bdi", "", label || "–"), `, ${tokens ?? "?"} tokens`);
    made.push(element("div", "drawn", bars(probs, judgment, labels), about, forced ? "forced" : ""));
  }
  return [...made, element("p", "note", `Standard deviation: ${written(judgment.std)}`)];
}

function said(text) {
  const made = element("div", "said", text);
  made.dir = "auto";
  made.tabIndex = 0; // a long one scrolls, with the keyboard too
  return made;
}

function bars(probs, { nearest }, labels) {
  const made = element("div", "bars");
  probs.forEach((prob, place) => {
    const bar = element("i", nearest.includes(place) ? "gold" : "");
    bar.style.height = `${100 * prob}%`;
    made.append(bar);
  });
  made.title = probs.map((prob, place) => `${labels[place]}: ${prob}`).join(", ") || "no distribution";
  return made;
}

for (const head of heads) {
  head.addEventListener("click", () => {
    const key = head.dataset.sort;
    if (key === sort()) return change("order", order() === "ascending" ? "descending" : "ascending");
    state.delete("order");
    change("sort", key);
  });
}
let waiting;
byId("filter").addEventListener("input", ({ target }) => {
  clearTimeout(waiting);
  waiting = setTimeout(() => change("filter", target.value), TYPING);
});
byId("unscored").addEventListener("change", ({ target }) => change("unscored", target.checked ? "first" : ""));
byId("result").addEventListener("change", ({ target }) => change("result", target.value));
byId("more").addEventListener("click", showMore);

function readAddress() {
  if (state && !location.hash.includes("=")) return; // a link to a section
  state = new URLSearchParams(location.hash.slice(1));
  draw();
}
addEventListener("hashchange", readAddress);
byId("browser").hidden = false;
readAddress();
