"""Review page for matches: one HTML file with each image and its candidates, for choosing.

Uncertain matches are first. A button saves safe and chosen matches as a map, for `grr-coca match --decided`. Drawings
are shown as images, in which scripts cannot run, and the page loads nothing remote.
"""

import base64
import html
import json
from collections.abc import Mapping, Sequence
from string import Template
from types import MappingProxyType

from grr_coca.common.errors import UserError
from grr_coca.data.images import encoded
from grr_coca.data.isolated import decode_image
from grr_coca_icons.match.candidates import PictureMatch
from grr_coca_icons.match.picture_set import OpenPictureSet
from grr_coca_icons.svg import is_svg

_SIDE = 96
"""Maximum side in pixels of a thumbnail of an image other than SVG."""
_MAX_SVG = 20_000
"""Maximum size of an SVG drawing; larger ones are shown as pixels."""
SURE = 0.5
"""Minimum probability of an equivalent that is accepted without a manual decision."""
_MAX_SHOWN = 10_000
"""Maximum number of target icons for which icons other than candidates are searched with their drawings."""


def review_page(
    matches: Sequence[PictureMatch],
    source: OpenPictureSet,
    target: OpenPictureSet,
    title: str,
    uses: Mapping[int, Sequence[str]] = MappingProxyType({}),
) -> str:
    """Return the page as HTML.

    Args:
        matches: Icons of the source with their candidates.
        source: Icons to replace.
        target: Source of the candidates; all its icons can be searched by name.
        title: Title of the page.
        uses: Files and lines that use each source icon, by its index.
    """
    drawings: dict[str, int] = {}

    def drawn(side: OpenPictureSet, place: int) -> int:
        return drawings.setdefault(_image(side, place), len(drawings))

    rows = [
        {
            "name": match.name,
            "image": drawn(source, match.place),
            "chosen": match.best.name if match.best else None,
            "decided": match.is_decided,
            "safe": _is_safe(match),
            "used": list(uses.get(match.place, ())),
            "matches": [
                {
                    "name": one.name,
                    "image": drawn(target, one.place),
                    "probability": one.probability,
                    "same_name": one.same_name,
                }
                for one in match.nearest or match.candidates
            ],
        }
        for match in sorted(matches, key=_order)
    ]
    licences = sorted({str(fields[key]) for fields in target.fields for key in ("licence",) if fields.get(key)})
    are_shown = len(target.set) <= _MAX_SHOWN
    others = [
        {
            "name": name,
            "words": " ".join((name, *further)).lower(),
            "image": drawn(target, place) if are_shown else None,
        }
        for place, (name, further) in enumerate(zip(target.set.names, target.further_names, strict=True))
    ]
    safe = sum(map(_is_safe, matches))
    content = {"rows": rows, "others": others, "images": list(drawings)}
    # `<` cannot end the script with the data.
    data = json.dumps(content, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    return _PAGE.substitute(
        title=html.escape(title),
        safe=f"{safe:,}",
        open=f"{len(rows) - safe:,}",
        licences=html.escape(f" Licence of the candidates: {', '.join(licences[:6])}." if licences else ""),
        data=data,
    )


def _is_safe(match: PictureMatch) -> bool:
    return match.is_decided or (match.best is not None and (match.best.probability or 0) >= SURE)


def _order(match: PictureMatch) -> tuple[bool, float, str]:
    """Sort key: matches without an equivalent and the least probable first, decided matches last."""
    first = match.nearest[0].probability if match.nearest else None
    return match.is_decided, 0.0 if first is None else first, match.name


def _image(side: OpenPictureSet, place: int) -> str:
    try:
        content = side.read(place)
        if is_svg(content) and len(content) <= _MAX_SVG:
            return f"data:image/svg+xml;base64,{base64.b64encode(content).decode()}"
        image = decode_image(content, side.set.names[place], to_srgb=True)
    except UserError:
        return ""
    image.thumbnail((_SIDE, _SIDE))
    return f"data:image/webp;base64,{base64.b64encode(encoded(image, 'WEBP', quality=80)).decode()}"


_PAGE = Template("""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>$title</title>
<style>
:root { color-scheme: light dark; --line: #8885; --accent: #2468d8; }
* { box-sizing: border-box; }
body { font: 14px/1.4 system-ui, sans-serif; margin: 0 auto; max-width: 72rem; padding: 0 1rem 4rem; }
header { background: Canvas; border-bottom: 1px solid var(--line); padding: .8rem 0; position: sticky; top: 0; }
header { z-index: 1; }
header div { align-items: center; display: flex; flex-wrap: wrap; gap: .6rem; }
h1 { font-size: 1.2rem; margin: 0; }
p { margin: .2rem 0; opacity: .75; }
button, select, input { border: 1px solid var(--line); border-radius: 6px; font: inherit; padding: .3rem .7rem; }
button { background: Canvas; color: CanvasText; cursor: pointer; }
#save { background: var(--accent); border-color: var(--accent); color: #fff; }
ol { list-style: none; margin: 0; padding: 0; }
li { align-items: stretch; border-bottom: 1px solid var(--line); display: flex; gap: .6rem; padding: .6rem 0; }
.source { flex: 0 0 9rem; }
.choices { display: flex; flex-wrap: wrap; gap: .4rem; }
.choices button { scroll-margin-top: 8rem; padding: .3rem; text-align: center; width: 7.6rem; }
.choices button.none { width: 4rem; }
.choices button[aria-pressed=true] { outline: 3px solid var(--accent); outline-offset: -2px; }
img, .gone { background: #fff; border-radius: 6px; height: 48px; object-fit: contain; padding: 4px; width: 48px; }
.gone { display: inline-block; }
small { display: block; overflow-wrap: anywhere; }
.note { font-variant-numeric: tabular-nums; opacity: .7; }
.source { overflow-wrap: anywhere; }
.choices input { align-self: start; width: 7.6rem; }
@media (max-width: 40rem) {
  li { flex-direction: column; }
  .source { align-items: center; display: flex; flex: none; gap: .6rem; }
  .choices { display: grid; grid-template-columns: repeat(3, 1fr); }
  .choices button, .choices button.none { width: auto; }
}
</style>
<header>
<div><h1>$title</h1><button id="save">Save the map</button>
<label>Show <select id="which"><option value="all">all</option><option value="open">to look at</option>
<option value="none">without an equivalent</option></select></label>
<input id="filter" type="search" placeholder="name" aria-label="Only names with these letters"></div>
<p>$safe safe, $open to look at, <span id="done"></span> of them chosen. The least probable come first. The map has
what is safe or chosen.$licences Keys: arrows, and Enter to choose.</p>
</header>
<main><ol id="rows"></ol></main>
<script type="application/json" id="data">$data</script>
<script>
"use strict";
const {rows, others, images} = JSON.parse(document.getElementById("data").textContent);
const list = document.getElementById("rows");
const PAGE = 100;
const key = "grr-coca review " + document.title + rows.length;
let byHand = {};
try { byHand = JSON.parse(localStorage.getItem(key)) || {}; } catch { byHand = {}; }

function make(tag, props, ...inner) {
  const node = Object.assign(document.createElement(tag), props);
  node.append(...inner);
  return node;
}
function picture(number) {
  const src = images[number];
  return src ? make("img", {src, alt: "", loading: "lazy"}) : make("span", {className: "gone", title: "no drawing"});
}
const chosen = row => Object.hasOwn(byHand, row.name) ? byHand[row.name] : row.chosen;
const isByHand = row => Object.hasOwn(byHand, row.name);
const isDone = row => row.safe || isByHand(row);

function choose(row, name, buttons) {
  byHand[row.name] = name;
  try { localStorage.setItem(key, JSON.stringify(byHand)); } catch { /* a private window; the button still saves */ }
  press(row, buttons);
  count();
}
function press(row, buttons) {
  for (const [button, name] of buttons) {
    button.setAttribute("aria-pressed", String(isDone(row) && chosen(row) === name));
    button.tabIndex = chosen(row) === name ? 0 : -1; // Tab goes from icon to icon, arrows from candidate to candidate
  }
  if (buttons.length && !buttons.some(([button]) => button.tabIndex === 0)) buttons[0][0].tabIndex = 0;
}
function move(event) {
  const step = {ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0]}[event.key];
  const item = event.target.closest("li");
  const isTyped = step?.[1] && event.target.matches("input");
  if (!step || !item || isTyped || event.altKey || event.ctrlKey || event.metaKey) return;
  event.preventDefault();
  const all = [...item.querySelectorAll("button, input")];
  const other = step[0] > 0 ? item.nextElementSibling : step[0] < 0 ? item.previousElementSibling : item;
  const place = all.indexOf(event.target) + step[1];
  const row = other ? [...other.querySelectorAll("button, input")] : all;
  const next = row[Math.max(0, Math.min(row.length - 1, place))];
  next.focus({preventScroll: true});
  next.scrollIntoView({block: "nearest"});
}
function item(row) {
  const names = new Set(row.matches.map(match => match.name));
  const further = others.filter(other => other.name === chosen(row) && !names.has(other.name));
  const buttons = [...row.matches, ...further].map(match => [candidate(match), match.name]);
  buttons.push([make("button", {type: "button", className: "none", textContent: "none"}), null]);
  for (const [button, name] of buttons) button.addEventListener("click", () => choose(row, name, buttons));
  press(row, buttons);
  const choices = make("div", {className: "choices"}, ...buttons.map(([button]) => button), search(row));
  choices.setAttribute("role", "group");
  choices.setAttribute("aria-label", "equivalent of " + row.name);
  const used = row.used.slice(0, 2).join(", ") + (row.used.length > 2 ? ` and $${row.used.length - 2} more` : "");
  const source = make("div", {className: "source", title: row.used.join("\\n")}, picture(row.image),
    make("small", {textContent: row.name}), make("small", {className: "note", textContent: used}));
  return make("li", {}, source, choices);
}
function candidate(match) {
  const percent = typeof match.probability === "number" ? Math.round(match.probability * 100) + " %" : "";
  const same = match.same_name ? " same name" : "";
  return make("button", {type: "button"}, picture(match.image), make("small", {textContent: match.name}),
    make("small", {className: "note", textContent: percent + same}));
}
function search(row) {
  const field = make("input", {type: "search", placeholder: "another", autocomplete: "off", tabIndex: -1});
  field.setAttribute("aria-label", "another equivalent of " + row.name);
  field.addEventListener("input", () => {
    const words = field.value.toLowerCase().split(/[\\s-]+/).filter(Boolean);
    const found = words.length ? others.filter(other => words.every(word => other.words.includes(word))) : [];
    found.sort((one, other) => one.words.length - other.words.length);
    while (field.nextSibling) field.nextSibling.remove();
    field.after(...found.slice(0, 12).map(other => {
      const button = candidate(other);
      button.addEventListener("click", () => {
        choose(row, other.name, []);
        field.closest("li").replaceWith(item(row));
      });
      return button;
    }));
  });
  return field;
}
let shown = [], next = 0;
function more() {
  for (const row of shown.slice(next, next + PAGE)) list.append(item(row));
  next += PAGE;
}
function show() {
  const which = document.getElementById("which").value;
  const letters = document.getElementById("filter").value.toLowerCase();
  shown = rows.filter(row => row.name.toLowerCase().includes(letters) && (which === "all" ||
    (which === "open" ? !isDone(row) : chosen(row) === null)));
  next = 0;
  list.replaceChildren();
  more();
}
function count() {
  const done = rows.filter(row => !row.safe && isByHand(row)).length;
  document.getElementById("done").textContent = done.toLocaleString("en");
}
function save() {
  const pairs = rows.filter(isDone).map(row => [row.name, chosen(row)]);
  const icons = Object.fromEntries(pairs.sort(([a], [b]) => a < b ? -1 : 1));
  const text = JSON.stringify({format: 1, icons}, null, 1) + "\\n";
  const href = URL.createObjectURL(new Blob([text], {type: "application/json"}));
  const link = make("a", {download: "map.json", href});
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
document.getElementById("save").addEventListener("click", save);
list.addEventListener("keydown", move);
document.getElementById("which").addEventListener("change", show);
document.getElementById("filter").addEventListener("input", show);
addEventListener("scroll", () => {
  if (next < shown.length && innerHeight + scrollY > document.body.scrollHeight - 800) more();
}, {passive: true});
count();
show();
</script>
</html>
""")
