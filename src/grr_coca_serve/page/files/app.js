// The page: a field, what the model sees in a picture, filters, and a grid of pictures. What answers is a backend:
// `graphs.js` in an exported site, `http.js` on a server. Both have the methods
//   info() → {title, about, placeholder, pictures (number, or null without an index), can, ready}, where
//     can is a list of search, duplicates, caption, tags, explain, and ready is a promise of {files} to keep offline
//   search({texts, without, like, unlike, image, filters, offset, limit}, signal) → {hits, more, verdict, num_likely, can_tell, facets, counted, unknown}
//   pictures(filters, offset, limit, signal) → {total, pictures};  duplicates(offset, limit, signal) → {total, sizes, groups},
//     where a group is its first 60 entries
//   others(entry) → entries, each with a probability
//   facets() → {facets};  counts(filters, fields, signal) → {facets};  caption(file, onToken, signal) → {caption, unfamiliar};  explain({file | entry}, signal) →
//   {caption, words};  keyOf(entry) → what an address calls it;  entry(key) → entry
//   tags(file) → words, if it can;  opened(file) → file that the others accept;  image(entry, side) → address;  svg(entry) → text, if hasDrawings;
//   known(entry) → that text, if it is there already, else undefined

import { Detail, OUTSIDE, copy, drawHeat, namesOf, once, wordsOf } from "./detail.js";
import { element } from "./element.js";
import { Filters } from "./filters.js";
import { Graphs } from "./graphs.js";
import { Grid } from "./grid.js";
import { Http } from "./http.js";
import { isIcon } from "./icon.js";
import { IconStyle } from "./icon_style.js";
import { iconsIn } from "./screenshot.js";

const PAGE = 60; // hits that are asked for at a time
const MAX_WAIT = 120; // ms before a search is said to take long
const VERY_LONG = 10_000; // ms before that is said in words
const PAUSE = 1500; // ms without a letter: what is typed after it is another step back
const one = (selector, root = document) => root.querySelector(selector);
const numbers = new Intl.NumberFormat("en");
const count = (number, noun) => `${numbers.format(number)} ${noun}${number === 1 ? "" : "s"}`;

const isExported = document.documentElement.dataset.backend === "graphs";
export const backend = isExported ? new Graphs(showProgress) : new Http();
const WHERE = isExported ? "Your searches stay in this browser." : "Your searches stay on this server.";
const SLOW = "This is taking longer than usual…";
const query = { text: "", without: [], like: [], unlike: [], file: null, filters: {} };
let info = { can: [], pictures: null };
let running = null; // the AbortController of the newest search
let result = null; // what the newest search found, for further pages
let preview = null; // the address of the dropped picture
let typed = -Infinity; // when the last letter was typed

const grid = new Grid(one("#pictures"), {
  image: addressOf,
  known: knownAddress,
  describe,
  open: (index) => detail.open(index),
  leave: (isEscape) => (isEscape && detail.isPanel ? detail.dismiss() : one("#query").focus()),
  walked: (index) => detail.isPanel && detail.open(index),
  isOpen: (entry) => detail.isPanel && detail.entry.id === entry.id,
  copy: (entry, button) => isOfIcons() && copy(button, async () => style.styled(await backend.svg(entry))),
  failed: () => backend.imageFailed?.(),
  end: () => loadMore(),
  error: showError,
});
const filters = new Filters(one("#filters"), (chosen) => {
  query.filters = chosen;
  changed(true);
});
const style = new IconStyle(one("#icon-style"), () => {
  grid.redraw();
  detail.redraw();
});
const detail = new Detail(one("#detail"), {
  backend,
  grid,
  isExplaining: () => info.can.includes("explain"),
  isAsking,
  like: (entry) => add("like", entry),
  unlike: (entry) => add("unlike", entry),
  iconStyle: () => (isOfIcons() ? style : null),
  moved: (isStep) => {
    writeAddress(isStep);
    grid.mark();
  },
  error: showError,
});

// --- Start

async function start() {
  backend.askForKey = askForKey;
  backend.onWait = setStatus;
  backend.onLost = () => {
    showMessage(grid.count ? "Cannot reach the server. Trying again. These are earlier results." : "Cannot reach the server. Trying again.");
    document.body.classList.add("lost");
  };
  backend.onBack = () => {
    document.body.classList.remove("lost");
    showMessage("");
    if (!document.body.dataset.state) return; // it was never reached: `info` is asked for again
    grid.redraw();
    update(true);
  };
  try {
    info = await backend.info();
  } catch (error) {
    document.body.dataset.state = "broken";
    one("#skeleton").hidden = true;
    setStatus("");
    showError(error);
    return;
  }
  one("#home").textContent = info.title;
  document.title = `${info.title}: search images by meaning`;
  const canSearch = info.can.includes("search") && info.pictures !== 0;
  one("#search").classList.toggle("off", !canSearch && !info.can.includes("caption"));
  one("#query").disabled = !canSearch;
  one("#query").placeholder = canSearch ? info.placeholder ?? "" : "Drop or paste an image";
  one("#choose").hidden = !info.can.includes("caption");
  one("#show-duplicates").hidden = !canSearch || !info.can.includes("duplicates");
  showSize();
  await readAddress();
  await update();
  info.ready.then(whenReady, (error) => {
    document.body.dataset.state = "broken";
    one("#progress").hidden = true;
    setStatus("");
    showError(error);
  });
  if (canSearch) backend.facets().then(({ facets }) => showFilters((known = facets)), showError);
  if (canSearch && matchMedia("(hover: hover)").matches) one("#query").focus();
}

function whenReady({ files }) {
  one("#progress").hidden = true;
  document.body.dataset.state = "ready";
  if (!one("#query").disabled && !info.placeholder) suggest();
  setStatus(isAsking() ? "Searching" : "");
  update(true);
  backend.prepare().catch(showError);
  if (isExported && "serviceWorker" in navigator && isSecureContext) keepOffline(files ?? []);
}

/** Keep the files of the site in this browser, so that it works without a network. */
async function keepOffline(files) {
  const wasKept = Boolean(navigator.serviceWorker.controller);
  navigator.serviceWorker.addEventListener("controllerchange", () => wasKept && showMessage("This site has changed. Reload the page."));
  await navigator.serviceWorker.register("offline.js"); // no module: Firefox before 147 refuses that
  const registration = await navigator.serviceWorker.ready;
  const own = performance.getEntriesByType("resource").map(({ name }) => name);
  navigator.serviceWorker.addEventListener("message", ({ data }) => {
    if (data.kept) document.documentElement.dataset.kept = "";
  });
  registration.active.postMessage({ keep: [...new Set([location.href.split("#")[0], ...own, ...files])] });
}

let couldMean = false; // words find by meaning, and not only by words

function showProgress(state) {
  if (state.canMean && !couldMean) {
    couldMean = true;
    if (isAsking()) update(true);
  }
  const bar = one("#progress");
  if (state.isReady || ["ready", "broken"].includes(document.body.dataset.state)) return;
  const share = Math.min(1, state.bytes / Math.max(1, state.total));
  bar.hidden = false;
  bar.firstElementChild.style.scale = `${share} 1`;
  document.body.dataset.state = "loading";
  const isNew = state.rows > 0 && grid.count < Math.min(state.rows, 200) && !isAsking();
  if (isNew) update();
  else if (!isAsking() && grid.count) browseCount(state.rows);
  const megabytes = (bytes) => (bytes / 1e6).toFixed(0);
  setStatus(`Loading the model and the index: ${megabytes(state.bytes)} of ${megabytes(state.total)} MB`);
}

function browseCount(rows) {
  if (!Object.keys(query.filters).length && rows > grid.count) grid.grow(rows);
}

/** An example of what can be asked: a caption of the index. */
async function suggest() {
  const { pictures } = await backend.pictures({}, 0, 20).catch(() => ({ pictures: [] }));
  const known = pictures.filter(({ caption, fields }) => caption && fields?.unfamiliar !== "yes");
  known.sort((a, b) => (b.fields?.confidence ?? 0) - (a.fields?.confidence ?? 0));
  if (known.length) one("#query").placeholder = `${known[0].caption}, for example`;
}

/** The key of a server, which the user types; null if they do not. */
function askForKey(isWrong) {
  const dialog = document.createElement("dialog");
  dialog.id = "key";
  dialog.setAttribute("aria-labelledby", "key-title");
  dialog.innerHTML = `<form method="dialog">
    <h2 id="key-title">${isWrong ? "Wrong key" : "This server requires a key"}</h2>
    <label>API key <input type="password" autocomplete="current-password" required /></label>
    <p class="actions"><button value="ok" class="primary">Continue</button></p>
  </form>`;
  document.body.append(dialog);
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      resolve(dialog.returnValue === "ok" ? one("input", dialog).value : null);
      dialog.remove();
    });
    dialog.showModal();
  });
}

// --- The query

const AVOIDED = /(?:^|\s)[-−]\s?("([^"]+)"|\S+)/g;

const WITHOUT = /^(|.*?\s)without\s+(\S.*)$/i;

/** What stands after "without", apart from the words before it; nothing if there is nothing that it could narrow. */
function splitWithout(text) {
  const [, before, after] = WITHOUT.exec(text) ?? [];
  const avoided = (after ?? "").split(/\s*(?:,|\band\b|\bor\b)\s*/i).map((words) => words.replace(/^(?:an?|the|any)\s+/i, "").trim()).filter(Boolean);
  const canNarrow = before?.trim() || query.like.length || query.file;
  return canNarrow && avoided.length ? { before, avoided } : { before: text, avoided: [] };
}

/** The words to look for, and those after a minus or "without", and in chips, to avoid. */
function parts() {
  const without = [...query.without];
  const { before, avoided } = splitWithout(query.text.replace(AVOIDED, (_, word, quoted) => {
    without.push(quoted ?? word);
    return " ";
  }));
  without.push(...avoided);
  const clean = before.trim().split(/\s+/).join(" ");
  return { texts: clean ? [clean] : [], without };
}

/** Turn words after a minus that are finished into chips; at the end, also those after "without". */
function takeAvoided(isDone) {
  let text = query.text.replace(AVOIDED, (whole, word, quoted, at) => {
    const isFinished = isDone || quoted || at + whole.length < query.text.length;
    if (!isFinished || word.startsWith('"') !== Boolean(quoted)) return whole;
    query.without.push(quoted ?? word);
    return " ";
  });
  if (isDone) {
    const { before, avoided } = splitWithout(text);
    query.without.push(...avoided);
    text = before;
  }
  if (text === query.text) return;
  query.text = text.replace(/\s+/g, " ")[isDone ? "trim" : "trimStart"]();
  one("#query").value = query.text;
}

/** True if something is looked for, and not everything shown. */
function isAsking() {
  const { texts } = parts();
  return texts.length > 0 || query.like.length > 0 || query.file !== null;
}

function changed(isStep = false) {
  if (!detail.isPanel) detail.close();
  if (isStep) typed = -Infinity; // what is typed next is another step
  update(); // begins to search, while this goes on
  writeAddress(isStep);
  showParts();
  scrollTo({ top: 0, behavior: "instant" });
}

/** Ask for what the query now says, and show it. */
async function update(keepsPlace = false) {
  if (!one("#duplicates").hidden) return;
  running?.abort();
  const { signal } = (running = new AbortController());
  if (document.body.dataset.state !== "broken" && !document.body.classList.contains("lost")) showMessage("");
  const slow = setTimeout(() => document.body.classList.add("slow"), MAX_WAIT);
  const verySlow = setTimeout(() => showMessage(SLOW), VERY_LONG);
  document.body.classList.add("busy");
  try {
    if (info.pictures === null || info.pictures === 0) showEmpty();
    else if (isAsking()) await showHits(signal, keepsPlace);
    else await showAll(signal, keepsPlace);
    one("#skeleton").hidden = true;
  } catch (error) {
    if (!signal.aborted && !error.isLost) {
      showError(error);
      // What stands there answers another question. Without a server it is better than nothing, and dimmed.
      if (isAsking()) {
        result = null;
        grid.show({ count: 0, entries: [], more: async () => [] });
        setStatus("");
      }
    }
  } finally {
    clearTimeout(slow);
    clearTimeout(verySlow);
    if (running.signal === signal && !document.body.classList.contains("lost")) clearSlowMessage();
    if (running.signal === signal) document.body.classList.remove("slow", "busy");
  }
}

let isKindKnown = false;
let known = []; // facets of the index
const OF_ICONS = ["set", "style", "licence", "tags"];
const OF_FILES = ["confidence", "size", "width", "height", "date", "folder", "aliases", "package"]; // not what one chooses icons by

const isOfIcons = () => document.body.classList.contains("drawings");

/** The filters: of icons first those by which one chooses icons, and none of their files. */
function showFilters(facets) {
  const rank = ({ field }) => (OF_ICONS.indexOf(field) + 1 || OF_ICONS.length + 1);
  const shown = isOfIcons() ? facets.filter(({ field }) => !OF_FILES.includes(field)).sort((a, b) => rank(a) - rank(b)) : facets;
  filters.show(shown, query.filters);
}

/** The address of the image of a tile. Icons are drawn in the style that was chosen. */
async function addressOf(entry) {
  if (!isOfIcons() || !isIcon(entry)) return backend.image(entry);
  const svg = await backend.svg(entry).catch(() => null);
  return svg === null ? backend.image(entry) : style.address(svg);
}

/** That address, if the source of the icon is there already; else undefined. */
function knownAddress(entry) {
  const svg = isOfIcons() && isIcon(entry) ? backend.known(entry) : undefined;
  return svg === undefined ? undefined : style.address(svg);
}

/**
 * Find out from its newest images whether the index is of icons, and whether images are small: they would be blurred in
 * large tiles. This is a matter of the index, so tiles are the same however a search began.
 */
async function findKind(signal, pictures = null) {
  if (isKindKnown) return;
  pictures ??= (await backend.pictures({}, 0, 100, signal).catch(() => ({ pictures: [] }))).pictures; // asked for again
  if (!pictures.length) return;
  isKindKnown = true;
  const { classList } = document.body;
  classList.toggle("drawings", pictures.every(isIcon));
  if (isOfIcons()) {
    style.show();
    showFilters(known);
  }
  classList.toggle("small", !isOfIcons() && pictures.every(({ width, height }) => Math.max(width, height) <= 128));
}

const noun = () => (isOfIcons() ? "icon" : "image");

async function showAll(signal, keepsPlace) {
  result = null;
  const isFiltered = Object.keys(query.filters).length > 0;
  const [{ total, pictures }] = await Promise.all([backend.pictures(query.filters, 0, 100, signal), isFiltered && findKind(signal)]);
  if (signal.aborted) return;
  if (!isFiltered) findKind(signal, pictures);
  one("#empty").hidden = true;
  const more = async (from, to) => (await backend.pictures(query.filters, from, to - from)).pictures;
  grid.show({ count: total, entries: pictures, more }, keepsPlace);
  countValues(signal);
  if (isFiltered) setStatus(total ? `${count(total, noun())} of ${numbers.format(info.pictures)}` : `No ${noun()} matches the filters.`);
  else if (document.body.dataset.state === "loading") return;
  else setStatus(info.about ?? `Search ${count(total, noun())} by meaning. ${WHERE}`);
}

async function showHits(signal, keepsPlace) {
  const asked = { ...parts(), like: ids(query.like), unlike: ids(query.unlike), image: query.file, filters: query.filters };
  const [found] = await Promise.all([backend.search({ ...asked, offset: 0, limit: PAGE }, signal), findKind(signal)]);
  if (signal.aborted) return;
  one("#empty").hidden = true;
  result = { asked, more: found.more, isLoading: false };
  const split = found.verdict === "likely" && found.can_tell ? found.num_likely : undefined;
  grid.show({ count: found.hits.length, entries: found.hits, more: async () => [], split }, keepsPlace);
  countValues(signal, asked, found);
  if (found.isByWords) setStatus(found.hits.length ? "Text matches. Image search starts when the model is loaded." : "No text matches. Image search starts when the model is loaded.");
  else if (!found.hits.length) setStatus(`No ${noun()} matches the filters.`);
  else if (found.unknown?.length) setStatus(`No caption that the model was adapted to has a word of “${found.unknown[0]}”. Closest results:`);
  else if (asked.image || asked.like.length || asked.unlike.length) setStatus(`Closest results from ${count(found.searched, noun())}`);
  else if (!found.can_tell) setStatus("Relevance is unavailable for this library.");
  else if (found.verdict === "nothing") setStatus("No good match. Closest results:");
  else if (found.verdict === "unsure") setStatus("Not sure. Closest results:");
  else setStatus(`Best matches from ${count(found.searched, noun())}`);
  document.body.classList.toggle("unlikely", found.verdict !== "likely");
}

/**
 * Show in the filters how many pictures have each value: of the hits, or else of all that the filters select. What is
 * chosen of a field does not count for this field itself: its other values would all have none.
 */
async function countValues(signal, asked, found) {
  const { filters: chosen } = query;
  const isWhole = !asked && !Object.keys(chosen).length;
  const without = (field) => Object.fromEntries(Object.entries(chosen).filter(([other]) => other !== field));
  const own = async (field) => {
    const others = without(field);
    if (!asked && !Object.keys(others).length) return { field, values: null };
    const counted = asked ? backend.search({ ...asked, filters: others, offset: 0, limit: 1 }, signal) : backend.counts(others, [field], signal);
    return (await counted).facets.find((facet) => facet.field === field) ?? { field, values: [] };
  };
  try {
    const parts = await Promise.all(Object.keys(chosen).filter((field) => chosen[field].in).map(own));
    const others = isWhole ? [] : found?.facets ?? (await backend.counts(chosen, [], signal)).facets;
    if (signal.aborted) return;
    const isOther = ({ field }) => !parts.some((part) => part.field === field);
    filters.count(isWhole ? null : [...parts, ...others.filter(isOther)], found?.counted);
  } catch {
    if (!signal.aborted) filters.count(); // they are not known
  }
}

/** Further hits, when the page is scrolled to the end. */
async function loadMore() {
  if (!result?.more || result.isLoading) return;
  const before = result;
  before.isLoading = true;
  try {
    const found = await backend.search({ ...before.asked, offset: grid.count, limit: PAGE });
    if (result !== before) return;
    result = { ...before, more: found.more && found.hits.length > 0, isLoading: false };
    grid.extend(found.hits);
  } catch (error) {
    before.isLoading = false;
    before.more = false;
    showError(error);
  }
}

const ids = (entries) => entries.map(({ id }) => id);

function describe(entry) {
  const { heading, set } = namesOf(entry);
  return {
    caption: heading,
    set,
    alike: entry.copies?.length ? `+${entry.copies.length}` : "",
    hint: [...new Set([heading, entry.caption, entry.name])].filter(Boolean).join("\n"),
  };
}

// --- How large tiles are

const SIZES = ["small", "medium", "large"];
const KEPT = "grr-coca size of tiles";

/** The size that was chosen before; null if there is none, or this browser keeps nothing. */
function kept() {
  try {
    return localStorage.getItem(KEPT);
  } catch {
    return null;
  }
}

function nextSize() {
  const size = SIZES[(SIZES.indexOf(document.body.dataset.size) + 1) % SIZES.length];
  try {
    localStorage.setItem(KEPT, size);
  } catch {
    // it is not kept
  }
  showSize(size);
}

function showSize(size = kept()) {
  const chosen = SIZES.includes(size) ? size : "medium";
  document.body.dataset.size = chosen;
  one("#size").setAttribute("aria-label", `Tile size: ${chosen}`);
  one("#size").title = `Tile size: ${chosen}`;
  grid.redraw();
}

// --- Parts of the query beside the words: pictures that are like it, or not

function add(kind, entry) {
  const other = kind === "like" ? "unlike" : "like";
  query[other] = query[other].filter(({ id }) => id !== entry.id);
  const part = { id: entry.id, key: backend.keyOf(entry), caption: entry.caption, entry };
  met.set(part.key, Promise.resolve(part));
  if (!ids(query[kind]).includes(entry.id)) query[kind].push(part);
  leaveDuplicates();
  changed(true);
}

function showParts() {
  const list = one("#parts");
  const chips = [
    ...query.like.map((part) => ["like", part]),
    ...query.unlike.map((part) => ["unlike", part]),
    ...query.without.map((word) => ["without", word]),
  ];
  list.replaceChildren(
    ...chips.map(([kind, part]) => {
      const remove = () => {
        query[kind] = query[kind].filter((other) => other !== part);
        changed(true);
        one("#query").focus();
      };
      const words = { without: `without ${part}`, like: "like this", unlike: "not like this" }[kind];
      const button = element("button", { type: "button", className: `chip ${kind}`, title: "Remove", on: { click: remove } }, words);
      button.setAttribute("aria-label", `${words}${kind === "without" ? "" : `: ${part.caption}`}. Remove`);
      if (kind !== "without") {
        const image = element("img", { alt: "" });
        backend.image(part.entry).then((address) => (image.src = address), () => {});
        button.prepend(image);
      }
      return element("li", {}, button);
    }),
  );
  list.hidden = !chips.length;
}

// --- A picture from outside

/** Search by the icons of a screenshot: each gets the name of the icon that is most like it, and the first is chosen. */
async function takePieces(pieces) {
  const list = one("#dropped .pieces");
  const buttons = pieces.map((piece, number) => {
    const image = element("img", { alt: "", src: URL.createObjectURL(piece), on: { load: () => URL.revokeObjectURL(image.src) } });
    const choose = () => {
      for (const other of buttons) other.setAttribute("aria-pressed", other === button);
      take(piece, true);
    };
    const button = element("button", { type: "button", "aria-label": `Icon ${number + 1}`, "aria-pressed": number === 0, on: { click: choose } }, image);
    return button;
  });
  list.replaceChildren(...buttons.map((button) => element("li", {}, button)));
  take(pieces[0], true);
  const { filters: chosen } = query;
  for (const [number, piece] of pieces.entries()) {
    const found = await backend.search({ texts: [], without: [], like: [], unlike: [], image: piece, filters: chosen, offset: 0, limit: 1 }).catch(() => null);
    if (!buttons[number].isConnected) return; // there is another picture now
    if (!found?.hits.length) continue;
    const { heading } = namesOf(found.hits[0]);
    buttons[number].setAttribute("aria-label", `Icon ${number + 1}: ${heading}`);
    buttons[number].append(element("span", {}, heading));
  }
}

async function take(file, isPiece = false) {
  showMessage("");
  let opened;
  try {
    opened = await backend.opened(file);
  } catch (error) {
    removePicture(); // what it found answers another question, and the message is above it
    showError(error);
    return;
  }
  if (!isPiece) {
    one("#dropped .pieces").replaceChildren();
    const pieces = isOfIcons() ? await iconsIn(opened).catch(() => []) : [];
    if (pieces.length) return takePieces(pieces);
  }
  leaveDuplicates();
  if (preview) URL.revokeObjectURL(preview);
  preview = URL.createObjectURL(file);
  query.file = opened;
  clearWords();
  const panel = one("#dropped");
  panel.hidden = false;
  one("canvas", panel)?.remove();
  one("img", panel).src = preview;
  one(".hint", panel).textContent = "";
  one(".tags", panel).replaceChildren();
  one(".eyebrow", panel).textContent = "What the model sees";
  panel.classList.remove("unfamiliar");
  const said = one(".caption", panel);
  said.textContent = "";
  said.classList.add("running");
  one("#empty").hidden = true;
  changed();
  try {
    const write = (text) => query.file === opened && (said.textContent = text);
    const { caption, unfamiliar } = await backend.caption(opened, write);
    if (query.file !== opened) return;
    panel.classList.toggle("unfamiliar", unfamiliar);
    if (unfamiliar) one(".eyebrow", panel).textContent = OUTSIDE;
    said.textContent = caption || "no matching words";
    said.classList.remove("running");
    if (info.can.includes("explain") && caption) explainDropped(opened, said, panel);
    if (info.can.includes("tags") && !unfamiliar) showTags(opened, one(".tags", panel));
  } catch (error) {
    said.classList.remove("running");
    if (query.file === opened) {
      removePicture();
      showError(error);
    }
  }
}

/** Make the words of the caption buttons, which show where the model looks. */
function explainDropped(file, said, panel) {
  const maps = once(() => backend.explain({ file }));
  one(".hint", panel).textContent = "Choose a word to see where the model looks.";
  const choose = async (index) => {
    const { words, square } = await maps();
    if (query.file === file) drawHeat(one(".frame", panel), words[index]?.heat, square); // else there is another picture now
  };
  wordsOf(said, choose, showError);
}

/** Words for a picture, besides its caption. With an index, a word searches for it. */
async function showTags(file, list) {
  const tags = await backend.tags(file).catch(() => []); // without them, the caption is shown all the same
  if (query.file !== file) return;
  list.replaceChildren(...tags.map((tag) => {
    const ask = () => {
      query.text = one("#query").value = tag;
      forgetPicture();
      changed(true);
      one("#query").focus();
    };
    const asking = { type: "button", title: `Search for “${tag}”`, on: { click: ask } };
    return element("li", {}, info.can.includes("search") ? element("button", asking, tag) : tag);
  }));
}

function forgetPicture() {
  query.file = null;
  one("#dropped").hidden = true;
  if (preview) URL.revokeObjectURL(preview);
  preview = null;
}

function removePicture() {
  forgetPicture();
  changed();
}

// --- Duplicates

function toggleDuplicates() {
  const isShown = !one("#duplicates").hidden;
  if (isShown) leaveDuplicates();
  else showDuplicates();
  writeAddress(true);
  if (isShown) update();
}

async function showDuplicates() {
  const place = one("#duplicates");
  const button = one("#show-duplicates");
  if (!place.hidden) return;
  detail.close();
  running?.abort();
  result = null;
  button.setAttribute("aria-pressed", "true");
  grid.show({ count: 0, entries: [], more: async () => [] });
  one("#dropped").hidden = one("#filters").hidden = one("#empty").hidden = true;
  place.replaceChildren();
  place.hidden = false;
  setStatus("Finding duplicates…");
  await moreDuplicates(place, 0);
}

async function moreDuplicates(place, offset) {
  try {
    const { total, sizes, groups } = await backend.duplicates(offset, 50);
    if (place.hidden) return;
    setStatus(total ? `${count(total, "group")} of duplicates, largest first` : "No duplicates.");
    place.append(...groups.map((entries, number) => groupOf(entries, sizes[number])));
    const shown = offset + groups.length;
    if (shown >= total || !groups.length) return;
    const watcher = new IntersectionObserver(([{ isIntersecting }]) => {
      if (!isIntersecting) return;
      watcher.disconnect();
      moreDuplicates(place, shown);
    }, { rootMargin: "600px" });
    watcher.observe(place.lastElementChild);
  } catch (error) {
    showError(error);
  }
}

/** The name of a file, or of a picture in a shard, without folders. */
const ownNameOf = ({ name }) => name.split(": ").at(-1).split("/").at(-1);

function groupOf(entries, size) {
  const items = entries.map((entry) => {
    const image = element("img", { alt: "", loading: "lazy", on: { error: () => item.classList.add("unloaded") } });
    const item = element("li", {}, element(
      "button",
      { type: "button", className: "tile", title: `${entry.name} · ${entry.width} × ${entry.height}`, on: { click: () => detail.openEntry(entry) } },
      element("span", { className: "frame" }, image),
      element("span", { className: "line" }, ownNameOf(entry)),
    ));
    backend.image(entry).then((address) => (image.src = address), () => item.classList.add("gone"));
    return item;
  });
  const title = element("h2", {}, `${numbers.format(size)} alike: ${namesOf(entries[0]).heading}`);
  return element("section", {}, title, element("ul", {}, ...items));
}

function leaveDuplicates() {
  if (one("#duplicates").hidden) return;
  one("#duplicates").hidden = true;
  one("#duplicates").replaceChildren();
  one("#show-duplicates").setAttribute("aria-pressed", "false");
  one("#dropped").hidden = !query.file;
  one("#filters").hidden = filters.isEmpty;
}

// --- Messages

function clearWords() {
  query.text = one("#query").value = "";
  query.without = [];
  query.like = [];
  query.unlike = [];
}

function setStatus(text) {
  document.body.classList.remove("unlikely");
  if (one("#status").textContent !== text) one("#status").textContent = text;
}

function showMessage(text) {
  const place = one("#message");
  place.hidden = !text;
  place.textContent = text;
}

function clearSlowMessage() {
  if (one("#message").textContent.startsWith(SLOW)) showMessage("");
}

function showError(error) {
  if (error?.name === "AbortError") return;
  showMessage(error?.message ?? String(error));
}

function showEmpty() {
  result = null;
  grid.show({ count: 0, entries: [], more: async () => [] });
  setStatus("");
  if (query.file) return;
  const place = one("#empty");
  place.hidden = false;
  one("h2", place).textContent = "Drop an image here";
  one("p", place).textContent = "or paste one, and read its caption, word by word.";
  const hasIndex = info.pictures === 0;
  const command = one(".command", place);
  command.replaceChildren(hasIndex ? "This index is empty. Fill it: " : "To search your own images: ", element("code", {}, "grr-coca index IMAGES --out INDEX"));
  command.hidden = isExported && !hasIndex;
}

// --- The address: a search can be kept as a link

function writeAddress(isStep) {
  const given = new URLSearchParams();
  if (query.text.trim()) given.set("q", query.text.trim());
  for (const word of query.without) given.append("without", word);
  for (const { key } of query.like) given.append("like", key);
  for (const { key } of query.unlike) given.append("unlike", key);
  if (Object.keys(query.filters).length) given.set("filters", JSON.stringify(query.filters));
  if (!one("#duplicates").hidden) given.set("view", "duplicates");
  if (detail.entry) given.set("open", backend.keyOf(detail.entry));
  const address = `#${given}`;
  if (address === (location.hash || "#")) return;
  if (isStep) history.pushState(null, "", address);
  else history.replaceState(null, "", address);
}

const met = new Map(); // pictures of chips, by key: a chip keeps its picture, also after a step back

/** Pictures of an address as parts of the query. Unknown ones are asked for; those that are gone are left out. */
async function partsOf(keys) {
  const found = keys.map(async (key) => {
    if (!met.has(key)) met.set(key, backend.entry(key).then((entry) => ({ id: entry.id, key, caption: entry.caption, entry })));
    return met.get(key).catch((error) => {
      met.delete(key);
      showError(error);
      return null;
    });
  });
  return (await Promise.all(found)).filter(Boolean);
}

async function readAddress() {
  const given = new URLSearchParams(location.hash.slice(1));
  query.text = one("#query").value = given.get("q") ?? "";
  query.without = given.getAll("without");
  for (const kind of ["like", "unlike"]) query[kind] = await partsOf(given.getAll(kind));
  try {
    const chosen = JSON.parse(given.get("filters") ?? "{}");
    query.filters = chosen && typeof chosen === "object" && !Array.isArray(chosen) ? chosen : {};
  } catch {
    query.filters = {};
  }
  filters.choose(query.filters);
  showParts();
  if (given.get("view") === "duplicates" && info.can.includes("duplicates")) showDuplicates();
  else leaveDuplicates();
  const key = given.get("open");
  if (!key) detail.close();
  else if (!detail.entry || backend.keyOf(detail.entry) !== key) {
    backend.entry(key).then((entry) => location.hash.includes("open=") && detail.openEntry(entry), showError);
  }
}

// --- Events

one("#query").addEventListener("input", ({ target }) => {
  const isStep = performance.now() - typed > PAUSE;
  query.text = target.value;
  takeAvoided(false);
  leaveDuplicates();
  changed(isStep);
  typed = performance.now();
});
one("#search").addEventListener("submit", (event) => {
  event.preventDefault();
  takeAvoided(true);
  typed = -Infinity; // what is typed next is another query
  changed();
  if (matchMedia("(pointer: coarse)").matches) one("#query").blur(); // the keyboard would cover the hits
});
one("#query").addEventListener("keydown", (event) => {
  if (event.key === "ArrowDown") {
    event.preventDefault();
    grid.focus(0);
  } else if (event.key === "Escape" && (query.text || query.without.length || query.like.length || query.unlike.length)) {
    event.preventDefault();
    clearWords();
    changed(true);
  } else if (event.key === "Backspace" && !event.target.value && one("#parts li:last-child button")) {
    one("#parts li:last-child button").click();
  }
});
one("#home").addEventListener("click", (event) => {
  event.preventDefault();
  clearWords();
  query.filters = {};
  filters.choose({});
  leaveDuplicates();
  if (query.file) removePicture();
  else changed(true);
});
one("#choose").addEventListener("click", () => one("#file").click());
one("#empty .primary").addEventListener("click", () => one("#file").click());
one("#file").addEventListener("change", ({ target }) => {
  if (target.files[0]) take(target.files[0]);
  target.value = "";
});
one("#dropped .close").addEventListener("click", () => {
  removePicture();
  one("#query").focus();
});
one("#show-duplicates").addEventListener("click", toggleDuplicates);
one("#size").addEventListener("click", nextSize);
one("#show-help").addEventListener("click", () => one("#help").showModal());
one("#help").addEventListener("click", ({ target }) => target === one("#help") && one("#help").close());
one(".skip").addEventListener("click", (event) => {
  event.preventDefault(); // the address holds the search
  if (grid.count) grid.focus(0);
  else one("#pictures").focus();
});
addEventListener("hashchange", async () => {
  const before = JSON.stringify([query, one("#duplicates").hidden], (name, value) => (name === "entry" ? undefined : value));
  await readAddress();
  const after = JSON.stringify([query, one("#duplicates").hidden], (name, value) => (name === "entry" ? undefined : value));
  typed = -Infinity;
  if (before !== after) update();
});
addEventListener("keydown", (event) => {
  const isTyping = event.target.closest?.("input, textarea, select, dialog[open]");
  if (event.key === "/" && !isTyping && !event.ctrlKey && !event.metaKey && !event.altKey) {
    event.preventDefault();
    one("#query").focus();
    one("#query").select();
  } else if (event.key === "?" && !isTyping && !event.ctrlKey && !event.metaKey) {
    event.preventDefault();
    one("#help").showModal();
  }
});
addEventListener("paste", (event) => {
  const file = [...event.clipboardData.files].find(({ type }) => type.startsWith("image/")) ?? event.clipboardData.files[0];
  if (!file || !info.can.includes("caption")) return;
  event.preventDefault();
  take(file);
});

let depth = 0;
const hasFiles = (event) => event.dataTransfer?.types.includes("Files") && info.can.includes("caption");
addEventListener("dragenter", (event) => {
  if (!hasFiles(event)) return;
  depth++;
  one("#drop").hidden = false;
});
addEventListener("dragleave", (event) => {
  if (!hasFiles(event)) return;
  depth = Math.max(0, depth - 1);
  one("#drop").hidden = depth === 0;
});
addEventListener("dragover", (event) => {
  if (hasFiles(event)) event.preventDefault();
});
addEventListener("drop", (event) => {
  depth = 0;
  one("#drop").hidden = true;
  if (!hasFiles(event)) return;
  event.preventDefault();
  if (event.dataTransfer.files[0]) take(event.dataTransfer.files[0]);
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  grid.redraw();
  detail.redraw();
});

start();
