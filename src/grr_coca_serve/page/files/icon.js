// What can be done with an icon: copied into code in many forms, saved, and tried in sizes and colours.

import { element } from "./element.js";

const SIZES = [16, 24, 32, 48, 64, 128, 256, 512];
const NEEDS_CREDIT = /^CC-BY/i;

let dark = null; // a tile of an icon asks for it

/** The colour of the text, for drawings without a colour; `isTurned`: on the background of the other scheme. */
export function inkNow(isTurned = false) {
  dark ??= matchMedia("(prefers-color-scheme: dark)");
  return dark.matches !== isTurned ? "#eceae6" : "#1b1b1a";
}

/** True if an entry is an icon whose SVG can be had. */
export const isIcon = (entry) => Boolean(entry.drawing || entry.is_vector);

/** The name of an icon in its set, and the set's prefix; the prefix is "" for a file. */
export function nameOf(entry) {
  const file = entry.name.slice(entry.name.lastIndexOf("/") + 1).replace(/\.svgz?$/i, "");
  const known = entry.fields?.icon ?? (entry.drawing ? entry.name : null);
  const [prefix, name] = known ? known.split(":") : ["", file];
  return { prefix, name: name ?? file };
}

const pascal = (name) => name.split(/[^\p{L}\p{N}]+/u).map((part) => part.slice(0, 1).toUpperCase() + part.slice(1)).join("");
const componentOf = (name) => (/^\p{L}/u.test(name) ? pascal(name) : `Icon${pascal(name)}`);

/** SVG as React writes it: names of attributes in camel case, and the properties of the caller. */
export function jsx(svg, name) {
  const named = svg
    .replace(/<\?xml[^>]*>\s*/, "")
    .replace(/\sclass=/g, " className=")
    .replace(/\s(?!(?:data|aria)-)([a-z]+(?:[-:][a-z]+)+)=/g, (_, attribute) => ` ${attribute.replace(/[-:]([a-z])/g, (__, letter) => letter.toUpperCase())}=`)
    .replace(/\sstyle="([^"]*)"/g, (_, style) => ` style={${JSON.stringify(Object.fromEntries(style.split(";").filter((one) => one.includes(":")).map((one) => [one.slice(0, one.indexOf(":")).trim().replace(/-([a-z])/g, (__, letter) => letter.toUpperCase()), one.slice(one.indexOf(":") + 1).trim()])))}}`)
    .replace(/<style([^>]*)>([^<]*)<\/style>/g, (_, attributes, rules) => `<style${attributes}>{${JSON.stringify(rules)}}</style>`)
    .replace(/<svg((?:[^>"']|"[^"]*"|'[^']*')*)>/, "<svg$1 {...props}>"); // last: what the caller gives counts
  return `export function ${componentOf(name)}(props) {\n  return (\n    ${named.trim()}\n  );\n}\n`;
}

/** A template of Vue, which refuses elements of style there. */
export function vue(svg) {
  const styled = svg.replace(/<style/g, '<component is="style"').replaceAll("</style>", "</component>");
  return `<template>\n  ${styled.replace(/<\?xml[^>]*>\s*/, "").trim()}\n</template>\n`;
}

export function dataUri(svg) {
  const short = svg.replace(/\s+/g, " ").replaceAll('"', "'");
  return `data:image/svg+xml,${short.replace(/[%#<>?[\\\]^`{|}]/g, encodeURIComponent)}`;
}

/** A rule that takes the colour of the text, as a mask. */
export const css = (svg, name) =>
  `.icon-${name} {\n  width: 1em;\n  height: 1em;\n  background: currentColor;\n  mask: url("${dataUri(svg)}") center / contain no-repeat;\n}\n`;

const WEIGHTS = /-(thin|light|bold|fill|duotone)$/;
const HEROICONS = [[/-20-solid$/, "20/solid"], [/-16-solid$/, "16/solid"], [/-solid$/, "24/solid"], [/$/, "24/outline"]];
const PACKAGES = {
  lucide: (name) => [pascal(name), "lucide-react"],
  tabler: (name) => [`Icon${pascal(name)}`, "@tabler/icons-react"],
  ph: (name) => [`${pascal(name.replace(WEIGHTS, ""))}Icon`, "@phosphor-icons/react"], // the weight is a property
  heroicons: (name) => {
    const [ending, from] = HEROICONS.find(([one]) => one.test(name));
    const what = pascal(name.replace(ending, "")).replace(/\d[a-z]/g, (part) => part.toUpperCase()); // Squares2X2
    return [`${what}Icon`, `@heroicons/react/${from}`];
  },
  ri: (name) => [`Ri${pascal(name)}`, "@remixicon/react"],
  mdi: (name) => [`mdi${pascal(name)}`, "@mdi/js"],
};

/** The import of an icon of a package that people use; null if none is known. */
export function importLine({ prefix, name }) {
  if (!Object.hasOwn(PACKAGES, prefix)) return null;
  const [what, from] = PACKAGES[prefix](name);
  return `import { ${what} } from "${from}";`;
}

/** A line that names the author and licence, where the licence asks for it; else null. */
export function credit(entry) {
  const { licence, author, set } = entry.fields ?? {};
  return licence && NEEDS_CREDIT.test(licence) ? `${nameOf(entry).name} from ${set ?? "an icon set"}${author ? ` by ${author}` : ""}, ${licence}` : null;
}

/** A PNG of an icon, in a size and colour. */
async function png(svg, side) {
  const image = new Image();
  const address = URL.createObjectURL(new Blob([svg], { type: "image/svg+xml" }));
  try {
    image.src = address;
    await image.decode();
    const scale = side / Math.max(image.naturalWidth || side, image.naturalHeight || side);
    const canvas = new OffscreenCanvas(side, side);
    const [width, height] = [(image.naturalWidth || side) * scale, (image.naturalHeight || side) * scale];
    canvas.getContext("2d").drawImage(image, (side - width) / 2, (side - height) / 2, width, height);
    return await canvas.convertToBlob({ type: "image/png" });
  } finally {
    URL.revokeObjectURL(address);
  }
}

function save(content, name) {
  const link = element("a", { href: URL.createObjectURL(content), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

/**
 * The part of a detail that offers an icon.
 * @param {() => Promise<string>} source its SVG
 * @param {HTMLImageElement} image the picture above it, which is drawn again in another size or colour, and dragged out
 * @param {(button: HTMLButtonElement, make: () => Promise<string>) => void} copy
 * @param {IconStyle | null} style of all icons of the page; null: this icon has controls of its own
 */
export function iconPart(entry, source, image, copy, style = null) {
  const { prefix, name } = nameOf(entry);
  const choices = { colour: "", side: 0 };
  const coloured = async () => {
    const svg = await source();
    if (style) return style.styled(svg);
    return choices.colour ? svg.replace("<svg", `<svg color="${choices.colour}"`) : svg;
  };

  const list = element("p", { className: "actions" });
  const act = (label, make, className = "") => {
    list.append(element("button", { type: "button", className, on: { click: ({ target }) => copy(target, make) } }, label));
  };
  act("Copy SVG", coloured, "primary");
  act("Name", async () => name);
  if (prefix) act("Iconify", async () => `${prefix}:${name}`);
  act("JSX", async () => jsx(await source(), name));
  act("Vue", async () => vue(await source()));
  act("CSS", async () => css(await source(), name));
  act("Data URI", async () => dataUri(await coloured()));
  const line = importLine({ prefix, name });
  if (line) act("Import", async () => line);
  act("Link", async () => location.href);
  const wanted = credit(entry);
  if (wanted) act("Credit", async () => wanted);

  const sizes = SIZES.map((side) => element("option", { value: side, selected: side === 64 }, `${side} px`));
  const size = element("select", { "aria-label": "Size in pixels" }, ...sizes);
  const colour = element("input", { type: "color", value: inkNow(), "aria-label": "Colour" });
  let isTurned = false;
  const turn = () => {
    isTurned = image.closest(".stage").classList.toggle("turned");
    if (!choices.colour) colour.value = inkNow(isTurned);
    draw();
  };
  const paper = element("button", { type: "button", on: { click: turn } }, "Switch background");
  const draw = async () => {
    const svg = await coloured();
    image.src = URL.createObjectURL(new Blob([choices.colour ? svg : svg.replace("<svg", `<svg color="${inkNow(isTurned)}"`)], { type: "image/svg+xml" }));
    image.style.width = image.style.height = choices.side ? `${choices.side}px` : "";
  };
  size.addEventListener("change", () => {
    choices.side = Number(size.value);
    draw();
  });
  colour.addEventListener("input", () => {
    choices.colour = colour.value;
    draw();
  });
  const saveAs = (label, make, suffix) =>
    element("button", { type: "button", on: { click: async () => save(await make(), `${name}${suffix}`) } }, label);
  const blob = async () => new Blob([await coloured()], { type: "image/svg+xml" });
  const savePng = saveAs("Save PNG", async () => png(await coloured(), style ? style.shownSide : Number(size.value)), ".png");
  const tried = element("div", { className: "tried" }, ...(style ? [] : [size, colour, paper]), saveAs("Save SVG", blob, ".svg"), savePng);

  image.draggable = true;
  let ready = null;
  source().then((svg) => {
    ready = svg;
    if (style) image.src = style.address(svg);
  }, () => {});
  image.addEventListener("dragstart", (event) => {
    if (!ready) return;
    event.dataTransfer.setData("text/plain", ready);
    event.dataTransfer.setData("DownloadURL", `image/svg+xml:${name}.svg:${dataUri(ready)}`);
  });
  return element("section", { className: "icon" }, list, tried);
}
