// The list of judgments. Whatever a run's texts hold, they get into the page as text alone: `textContent`, `append`.
"use strict";

const PAGE = 50;
const EXCERPT = 300; // characters, more than a line
const FEW = 12; // labels that fit above the columns; of more, the ends
const TYPING = 200; // milliseconds without a key before the filter is applied
const KEYS = {
  number: (judgment) => judgment.number,
  gold: (judgment) => judgment.gold,
  score: (judgment) => judgment.score,
  error: (judgment) => judgment.error,
  mass: (judgment) => judgment.mass,
};
const ORDERS = ["ascending", "descending"];

const results = JSON.parse(document.getElementById("data").textContent).results;
const list = document.getElementById("list");
const filter = document.getElementById("filter");
const unscored = document.getElementById("unscored");
const chosen = document.getElementById("result");
const more = document.getElementById("more");
const USUAL = { result: 0, sort: "error", order: "descending", unscored: false, filter: "" };
const state = { ...USUAL };
let found = [];
let shown = 0;

for (const { judgments } of results) judgments.forEach((judgment, index) => (judgment.number = index + 1));

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function written(value, digits) {
  if (value === null) return "–";
  const text = value.toFixed(digits);
  return Number.isInteger(value) ? String(value) : text;
}

// State, which the part of the address after # holds, so that a view can be linked to.

function readAddress() {
  const given = new URLSearchParams(location.hash.slice(1));
  Object.assign(state, USUAL);
  if (results[Number(given.get("result"))]) state.result = Number(given.get("result"));
  if (Object.hasOwn(KEYS, given.get("sort"))) {
    state.sort = given.get("sort");
    state.order = usualOrder(state.sort);
  }
  if (ORDERS.includes(given.get("order"))) state.order = given.get("order");
  state.unscored = given.get("unscored") === "first";
  state.filter = given.get("filter") ?? "";
}

function writeAddress() {
  const given = new URLSearchParams({ sort: state.sort, order: state.order });
  if (state.result) given.set("result", state.result);
  if (state.unscored) given.set("unscored", "first");
  if (state.filter) given.set("filter", state.filter);
  history.replaceState(null, "", "#" + given);
}

function usualOrder(key) {
  return key === "error" ? "descending" : "ascending";
}

function change(changes) {
  Object.assign(state, changes);
  writeAddress();
  draw();
}

// Which judgments, and in which order

function matches(judgment, words) {
  judgment.words ??= [judgment.prompt, judgment.rationale, judgment.reason, judgment.place].join("\n").toLowerCase();
  return judgment.words.includes(words);
}

function compare(a, b) {
  if (state.unscored && (a.score === null) !== (b.score === null)) return a.score === null ? -1 : 1;
  const [x, y] = [KEYS[state.sort](a), KEYS[state.sort](b)];
  if (x === null || y === null) return (x === null) - (y === null) || a.number - b.number; // not known: last
  return (state.order === "ascending" ? x - y : y - x) || a.number - b.number;
}

// Drawing

function draw() {
  const words = state.filter.toLowerCase();
  const { judgments } = results[state.result];
  found = judgments.filter((judgment) => !words || matches(judgment, words)).sort(compare);
  for (const body of [...list.tBodies]) body.remove();
  shown = 0;
  for (const button of list.querySelectorAll("[data-sort]")) {
    const head = button.closest("th");
    if (button.dataset.sort === state.sort) head.setAttribute("aria-sort", state.order);
    else head.removeAttribute("aria-sort");
  }
  document.getElementById("labels").replaceChildren(...labels(results[state.result].scale));
  [chosen.value, filter.value, unscored.checked] = [String(state.result), state.filter, state.unscored];
  showMore();
}

function labels(scale) {
  const sorted = [...scale].sort((a, b) => a.value - b.value);
  const few = sorted.length <= FEW ? sorted : [sorted[0], sorted.at(-1)];
  return few.map(({ label }) => element("bdi", "", label));
}

function showMore() {
  const { scale, judgments } = results[state.result];
  for (const judgment of found.slice(shown, shown + PAGE)) list.append(body(judgment, scale));
  shown = Math.min(found.length, shown + PAGE);
  more.hidden = shown === found.length;
  const missing = judgments.filter((judgment) => judgment.score === null).length;
  const counts = [shown, found.length, judgments.length, missing].map((count) => count.toLocaleString("en"));
  document.getElementById("status").textContent =
    `${counts[0]} of ${counts[1]} shown` +
    (found.length < judgments.length ? `, of ${counts[2]} judgments` : "") +
    `; ${counts[3]} unscored.`;
}

function body(judgment, scale) {
  const made = element("tbody");
  const row = made.insertRow();
  const head = element("th", "", judgment.number);
  head.scope = "row";
  row.append(head);
  row.append(element("td", "", written(judgment.gold, 2)), element("td", "", written(judgment.score, 2)));
  row.append(element("td", "", written(judgment.error, 2)), element("td", "", written(judgment.mass, 3)));
  row.append(element("td"));
  row.lastChild.append(picture(judgment.probs, scale, judgment));
  const cell = element("td", "text");
  cell.colSpan = 6;
  cell.append(texts(judgment, scale));
  made.insertRow().append(cell);
  return made;
}

function texts(judgment, scale) {
  const made = element("details");
  const first = judgment.reason || judgment.rationale || judgment.prompt || "no text";
  const about = [judgment.place, judgment.score === null ? "unscored" : "", first.slice(0, EXCERPT)];
  const summary = element("summary", "", about.filter(Boolean).join(": "));
  summary.dir = "auto";
  made.append(summary);
  made.addEventListener("toggle", () => made.append(...whole(judgment, scale)), { once: true });
  return made;
}

function whole(judgment, scale) {
  const { reason, rationale, prompt } = judgment;
  const parts = [["Why it is unscored", reason], ["Rationale", rationale], ["Prompt", prompt]];
  const made = judgment.place ? [element("p", "note", judgment.place)] : [];
  made.push(...parts.filter(([, text]) => text).flatMap(([title, text]) => [element("h4", "", title), said(text)]));
  const facts = element("p", "note", `Standard deviation: ${written(judgment.std, 2)}. `);
  if (judgment.label) facts.append("Label it wrote: ", element("bdi", "", judgment.label));
  made.push(facts);
  if (judgment.rationales.length > 1) {
    made.push(element("h4", "", `Its ${judgment.rationales.length} rationales`), drawn(judgment, scale));
  }
  return made;
}

function said(text) {
  const made = element("div", "said", text);
  made.dir = "auto";
  made.tabIndex = 0; // a long one scrolls, with the keyboard too
  return made;
}

function drawn(judgment, scale) {
  const made = element("ul", "drawn");
  for (const { label, probs, tokens, forced } of judgment.rationales) {
    const item = element("li");
    const rest = (tokens === null ? "" : `, ${tokens} tokens`) + (forced ? ", forced" : "");
    item.append(picture(probs, scale, { gold: judgment.gold, score: null }), "label ");
    item.append(element("bdi", "", label || "–"), rest); // a label's own direction ends with it
    made.append(item);
  }
  return made;
}

function picture(probs, scale, { gold, score }) {
  const made = element("div", "scale");
  const columns = probs.map((prob, index) => ({ label: String(index + 1), value: null, ...scale[index], prob }));
  columns.sort((a, b) => a.value - b.value);
  for (const { prob } of columns) {
    const column = element("span", "column");
    const bar = element("span", "bar");
    bar.style.height = `${100 * Math.min(1, Math.max(0, prob))}%`;
    column.append(bar);
    made.append(column);
  }
  for (const [kind, value] of [["score", score], ["gold", gold]]) {
    const place = position(value, columns.map(({ value }) => value));
    if (place === null) continue;
    const mark = element("span", `mark ${kind}`);
    mark.style.left = `${place}%`;
    made.append(mark);
  }
  made.setAttribute("role", "img");
  const shares = columns.map(({ label, prob }) => `${label}: ${prob}`).join(", ");
  made.setAttribute("aria-label", `${shares || "no distribution"}; gold ${written(gold, 2)}`);
  return made;
}

// Where a value is between the middles of the columns, in percent; they need not be at equal distances on the scale.
function position(value, values) {
  if (value === null || !values.length || values.includes(null)) return null;
  const above = values.findIndex((other) => other >= value);
  if (above <= 0) return (100 * (above ? values.length - 0.5 : 0.5)) / values.length;
  const share = (value - values[above - 1]) / (values[above] - values[above - 1]);
  return (100 * (above - 0.5 + share)) / values.length;
}

// Controls

for (const button of list.querySelectorAll("[data-sort]")) {
  const key = button.dataset.sort;
  button.addEventListener("click", () => {
    const turned = state.order === "ascending" ? "descending" : "ascending";
    change({ sort: key, order: state.sort === key ? turned : usualOrder(key) });
  });
}
let waiting;
filter.addEventListener("input", () => {
  clearTimeout(waiting);
  waiting = setTimeout(() => change({ filter: filter.value }), TYPING);
});
unscored.addEventListener("change", () => change({ unscored: unscored.checked }));
chosen.addEventListener("change", () => change({ result: Number(chosen.value) }));
more.addEventListener("click", () => {
  const before = shown;
  showMore();
  list.tBodies[before].querySelector("summary").focus();
});
addEventListener("hashchange", () => {
  if (!location.hash.includes("=")) return; // a link to a section
  readAddress();
  draw();
});
document.getElementById("browser").hidden = false;
readAddress();
draw();
