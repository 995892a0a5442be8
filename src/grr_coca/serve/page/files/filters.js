// Filters by folder, date, size and the columns of a table: one small panel for each, opened by a button.
// The page holds them as {field: {in: [values]} | {from, to}}, which both backends understand.

const MAX_FACETS = 8;
const UNITS = { size: ["KB", 1000], width: ["px", 1], height: ["px", 1] };
const numbers = new Intl.NumberFormat("en");

export class Filters {
  #place;
  #facets = [];
  #chosen = {};

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
    return !this.#facets.length;
  }

  /** Show what can be chosen. */
  show(facets, chosen) {
    this.#facets = facets.filter(isUseful).slice(0, MAX_FACETS);
    this.#chosen = { ...chosen };
    this.#place.hidden = this.isEmpty;
    this.#draw();
  }

  /** Choose, without a call of `onChange`. */
  choose(chosen) {
    this.#chosen = { ...chosen };
    this.#draw();
  }

  #draw() {
    const clear = element("button", { type: "button", className: "clear", textContent: "Clear filters" });
    clear.hidden = !Object.keys(this.#chosen).length;
    clear.addEventListener("click", () => {
      this.#chosen = {};
      this.#draw();
      this.onChange({});
    });
    this.#place.replaceChildren(...this.#facets.map((facet) => this.#panel(facet)), clear);
  }

  #panel(facet) {
    const panel = element("details", { name: "filters" });
    const summary = element("summary");
    const inside = element("div", { className: "panel" });
    inside.append(facet.kind === "text" ? this.#values(facet) : this.#range(facet));
    panel.append(summary, inside);
    panel.addEventListener("toggle", () => panel.open && panel.querySelector("input")?.focus());
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
    this.onChange({ ...this.#chosen });
  }

  #values(facet) {
    const list = element("ul");
    const chosen = new Set(this.#chosen[facet.field]?.in ?? []);
    for (const [value, count] of facet.values) {
      const box = element("input", { type: "checkbox", checked: chosen.has(value) });
      box.addEventListener("change", () => {
        if (box.checked) chosen.add(value);
        else chosen.delete(value);
        this.#set(box.closest("details"), facet, chosen.size ? { in: [...chosen] } : null);
      });
      const label = element("label");
      label.append(box, element("span", { textContent: value }), element("small", { textContent: numbers.format(count) }));
      const item = element("li");
      item.append(label);
      list.append(item);
    }
    return list;
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
      const label = element("label");
      label.append(element("span", { textContent: `${end === "from" ? "From" : "To"}${unit && ` (${unit})`}` }), input);
      place.append(label);
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

function element(name, properties = {}) {
  return Object.assign(document.createElement(name), properties);
}
