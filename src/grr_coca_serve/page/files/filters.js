// Filters by columns of tables, keywords, folder, date and so on: one small panel for each, opened by a button. The first
// ones stand in the bar, the others behind "More filters"; one that is chosen always stands there.
// The page holds them as {field: {in: [values]} | {from, to}}, which both backends understand.

import { element } from "./element.js";

const NUM_SHOWN = 6;
const UNITS = { size: ["KB", 1000], width: ["px", 1], height: ["px", 1] };
const numbers = new Intl.NumberFormat("en");

export class Filters {
  #place;
  #facets = [];
  #chosen = {};
  #counts = null; // of the values among the hits, by field; undefined: not known
  #among = null; // how many hits are counted
  #isWhole = false;

  /** @param {(chosen: object) => void} onChange */
  constructor(place, onChange) {
    this.#place = place;
    this.onChange = onChange;
    addEventListener("click", ({ target }) => {
      for (const panel of place.querySelectorAll("details[open]")) if (!panel.contains(target)) panel.open = false;
    });
    place.addEventListener("keydown", (event) => {
      const panel = event.target.closest("details[open]");
      if (event.key !== "Escape" || !panel) return;
      panel.open = false;
      panel.querySelector("summary").focus();
    });
  }

  get isEmpty() {
    return !this.#facets.length && !Object.keys(this.#chosen).length;
  }

  /** Show what can be chosen. */
  show(facets, chosen) {
    this.#facets = facets.filter(isUseful);
    this.#chosen = { ...chosen };
    this.#draw();
  }

  /**
   * How many pictures have each value.
   * @param {{field: string, values: [any, number][] | null}[] | null | undefined} facets null: all pictures are shown, and
   *   their numbers count, as of a field without values; undefined: not known
   * @param {number | null} among the number of hits, if the numbers are of these
   */
  count(facets, among = null) {
    this.#counts = facets && new Map(facets.map(({ field, values }) => [field, values && new Map(values)]));
    this.#among = among;
    // A closed panel is updated when it opens: thousands of tags would take longer than the search itself.
    for (const panel of this.#place.querySelectorAll("details[open]")) this.#say(panel);
  }

  /** Choose, without a call of `onChange`. */
  choose(chosen) {
    this.#chosen = { ...chosen };
    this.#draw();
  }

  #draw() {
    const drop = () => {
      this.#chosen = {};
      this.#draw();
      this.onChange({});
    };
    const clear = element("button", { type: "button", className: "clear", hidden: !Object.keys(this.#chosen).length, on: { click: drop } }, "Clear filters");
    const isKnown = new Set(this.#facets.map(({ field }) => field));
    const others = Object.entries(this.#chosen).filter(([field]) => !isKnown.has(field)).map(facetOf);
    const isFirst = ({ field }, place) => this.#isWhole || place < NUM_SHOWN || field in this.#chosen;
    const shown = [...this.#facets.filter(isFirst), ...others];
    const showAll = () => {
      this.#isWhole = true;
      this.#draw();
      this.#place.querySelectorAll("summary")[NUM_SHOWN]?.focus();
    };
    const more = element("button", { type: "button", className: "more", hidden: shown.length >= this.#facets.length, on: { click: showAll } }, "More filters");
    this.#place.replaceChildren(...shown.map((facet) => this.#panel(facet)), more, clear);
    this.#place.hidden = this.isEmpty;
  }

  #panel(facet) {
    const inside = element("div", { className: "panel" }, facet.kind === "text" ? this.#values(facet) : this.#range(facet));
    const panel = element("details", { name: "filters", "data-field": facet.field }, element("summary"), inside);
    panel.addEventListener("toggle", () => {
      if (!panel.open) return;
      this.#say(panel); // also if the browser's search for text opened it
      panel.querySelector("input")?.focus();
    });
    panel.querySelector("summary").addEventListener("click", () => this.#say(panel)); // before it is seen
    this.#name(panel, facet);
    return panel;
  }

  /** The button of a panel says what is chosen. */
  #name(panel, { field }) {
    const test = this.#chosen[field];
    const summary = panel.querySelector("summary");
    panel.classList.toggle("on", Boolean(test));
    let said = titleOf(field);
    if (test?.in) said += `: ${test.in.length > 1 ? `${test.in.length} of them` : test.in[0]}`;
    else if (test) said += `: ${[test.from, test.to].map((end) => written(field, end)).join(" – ")}`;
    summary.textContent = said;
  }

  #set(panel, facet, test) {
    if (test) this.#chosen[facet.field] = test;
    else delete this.#chosen[facet.field];
    this.#name(panel, facet);
    const clear = this.#place.querySelector(".clear");
    clear.hidden = !Object.keys(this.#chosen).length;
    panel.classList.toggle("on", Boolean(test));
    this.onChange({ ...this.#chosen });
  }

  #values(facet) {
    const list = element("ul");
    const chosen = new Set(this.#chosen[facet.field]?.in ?? []);
    const note = element("p", { className: "note", hidden: true });
    const add = ([value, count]) => {
      const box = element("input", { type: "checkbox", checked: chosen.has(value) });
      box.addEventListener("change", () => {
        if (box.checked) chosen.add(value);
        else chosen.delete(value);
        this.#set(box.closest("details"), facet, chosen.size ? { in: [...chosen] } : null);
      });
      const number = element("small", { "data-value": JSON.stringify(value) }, count === null ? "" : numbers.format(count));
      if (count !== null) number.dataset.all = count;
      list.append(element("li", {}, element("label", {}, box, element("span", {}, value), number)));
    };
    facet.values.forEach(add);
    list.addEventListener("more", ({ detail }) => add([detail, 0])); // a rare value, which some hits have
    return element("div", { className: "values" }, note, list);
  }

  /** The numbers of a panel: of the hits, of what the filters select, or of all pictures. */
  #say(panel) {
    const list = panel.querySelector(".values ul");
    if (!list) return;
    const { field } = panel.dataset;
    const isOfAll = this.#counts === null || this.#counts?.get(field) === null;
    const counts = this.#counts?.get(field) ?? new Map();
    const listed = new Set(Array.from(list.querySelectorAll("small"), (number) => JSON.parse(number.dataset.value)));
    for (const value of counts.keys()) if (!listed.has(value)) list.dispatchEvent(new CustomEvent("more", { detail: value }));
    for (const number of list.querySelectorAll("small[data-all]")) {
      const count = isOfAll ? Number(number.dataset.all) : counts.get(JSON.parse(number.dataset.value)) ?? 0;
      number.textContent = this.#counts === undefined ? "" : numbers.format(count);
      number.closest("li").classList.toggle("none", count === 0 && this.#counts !== undefined);
    }
    const note = panel.querySelector(".note");
    note.hidden = this.#among === null;
    if (this.#among !== null) note.textContent = this.#among === 1 ? "Of the nearest one" : `Of the nearest ${numbers.format(this.#among)}`;
  }

  #range(facet) {
    const [unit, factor] = UNITS[facet.field] ?? ["", 1];
    const isDate = facet.kind === "date";
    const place = element("div", { className: "range" });
    const ends = ["from", "to"].map((end) => {
      const input = element("input", { type: isDate ? "date" : "number", step: "any" });
      const limits = isDate ? [facet.min.slice(0, 10), facet.max.slice(0, 10)] : [facet.min / factor, facet.max / factor];
      input.placeholder = isDate ? "" : numbers.format(Math.round(limits[end === "from" ? 0 : 1]));
      const known = this.#chosen[facet.field]?.[end];
      if (known !== undefined) input.value = isDate ? known.slice(0, 10) : known / factor;
      place.append(element("label", {}, element("span", {}, `${end === "from" ? "From" : "To"}${unit && ` (${unit})`}`), input));
      return input;
    });
    const read = (input, isEnd) => {
      if (!input.value) return undefined;
      if (isDate) return input.value + (isEnd ? "T23:59:59" : ""); // a photograph may have a day without a time
      return Number(input.value) * factor;
    };
    for (const input of ends) {
      input.addEventListener("change", () => {
        const test = { from: read(ends[0], false), to: read(ends[1], true) };
        for (const end of ["from", "to"]) if (test[end] === undefined) delete test[end];
        this.#set(input.closest("details"), facet, Object.keys(test).length ? test : null);
      });
    }
    return place;
  }
}

/** What can be chosen of a field of which nothing is known but the choice: of a link, or of an index that has changed. */
function facetOf([field, test]) {
  if (test.in) return { field, kind: "text", values: test.in.map((value) => [value, null]) };
  const [low, high] = [test.from ?? test.to, test.to ?? test.from];
  return { field, kind: typeof low === "string" ? "date" : "number", min: low, max: high };
}

/** False if there is nothing to choose. */
function isUseful(facet) {
  return facet.kind === "text" ? facet.values.length > 1 : facet.min < facet.max;
}

function titleOf(field) {
  return field[0].toUpperCase() + field.slice(1).replaceAll("_", " ");
}

function written(field, value) {
  if (value === undefined) return "…";
  if (typeof value === "string") return value.slice(0, 10);
  const [unit, factor] = UNITS[field] ?? ["", 1];
  return `${numbers.format(value / factor)} ${unit}`.trim();
}
