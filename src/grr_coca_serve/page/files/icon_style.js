// How all icons of the page are drawn and copied: in a colour, a size and a width of strokes, on one of two backgrounds.

import { element } from "./element.js";
import { dataUri, inkNow } from "./icon.js";

const GRID = 24; // strokes are as wide as in a drawing of this side
const USUAL_SIDE = 48;

export class IconStyle {
  #place;
  #controls;
  colour = ""; // of the text, if empty
  stroke = 0; // as drawn, if 0
  side = 0; // as drawn, if 0
  isTurned = false;

  /**
   * @param {HTMLElement} place where the controls are put
   * @param {() => void} onChange the icons are to be drawn again
   */
  constructor(place, onChange) {
    this.#place = place;
    const slider = (label, min, max, step, value) => element("input", { type: "range", min, max, step, value, "aria-label": label });
    const colour = element("input", { type: "color", "aria-label": "Colour" });
    const size = slider("Size in pixels", 16, 96, 4, USUAL_SIDE);
    const stroke = slider("Stroke width", 0.5, 3, 0.25, 2);
    const [sizeSaid, strokeSaid] = [element("output"), element("output")];
    const turn = element("button", { type: "button", "aria-pressed": "false" }, "Switch background");
    const reset = element("button", { type: "button", className: "reset" }, "Reset");
    const changed = () => {
      this.#say();
      onChange();
    };
    colour.addEventListener("input", () => {
      this.colour = colour.value;
      changed();
    });
    size.addEventListener("input", () => {
      this.side = Number(size.value);
      changed();
    });
    stroke.addEventListener("input", () => {
      this.stroke = Number(stroke.value);
      changed();
    });
    turn.addEventListener("click", () => {
      this.isTurned = !this.isTurned;
      changed();
    });
    reset.addEventListener("click", () => {
      Object.assign(this, { colour: "", stroke: 0, side: 0, isTurned: false });
      changed();
    });
    this.#controls = { colour, size, stroke, sizeSaid, strokeSaid, turn, reset };
    const labelled = (text, ...parts) => element("label", {}, element("span", {}, text), ...parts);
    place.replaceChildren(labelled("Colour", colour), labelled("Size", size, sizeSaid), labelled("Stroke", stroke, strokeSaid), turn, reset);
    this.#say();
  }

  #say() {
    const { colour, size, stroke, sizeSaid, strokeSaid, turn, reset } = this.#controls;
    colour.value = this.colour || inkNow(this.isTurned);
    size.value = this.shownSide;
    sizeSaid.textContent = `${this.shownSide} px`;
    stroke.value = this.stroke || 2;
    strokeSaid.textContent = this.stroke ? String(this.stroke) : "as drawn";
    turn.setAttribute("aria-pressed", this.isTurned);
    reset.style.visibility = this.colour || this.stroke || this.side || this.isTurned ? "" : "hidden";
    document.body.classList.toggle("turned", this.isTurned);
    document.body.style.setProperty("--icon", `${this.shownSide}px`);
    document.body.style.setProperty("--icon-tile", `${Math.max(104, this.shownSide + 56)}px`);
  }

  show() {
    this.#place.hidden = false;
    this.#say();
  }

  get shownSide() {
    return this.side || USUAL_SIDE;
  }

  /** An SVG document in the style that was chosen: what is copied and saved. */
  styled(svg) {
    const root = /<svg\b[^>]*>/.exec(svg)?.[0];
    if (!root) return svg;
    let head = root;
    if (this.colour) head = withAttribute(head, "color", this.colour);
    if (this.side) head = withAttribute(withAttribute(head, "width", this.side), "height", this.side);
    const whole = svg.replace(root, () => head);
    if (!this.stroke) return whole;
    const width = Number(/\bviewBox="[^"]*?([\d.]+)[\s,]+[\d.]+"/.exec(root)?.[1]) || GRID;
    const stroke = Number(((this.stroke * width) / GRID).toFixed(3));
    return whole.replace(/(\sstroke-width=")[^"]*"/g, `$1${stroke}"`);
  }

  /** The address of an icon as it is shown: in the colour of the text, if it has none. */
  address(svg) {
    const styled = this.styled(svg);
    return dataUri(this.colour ? styled : styled.replace("<svg", `<svg color="${inkNow(this.isTurned)}"`));
  }
}

/** The tag of an element with another value of an attribute. */
function withAttribute(tag, name, value) {
  const bare = tag.replace(new RegExp(`\\s${name}="[^"]*"`), "");
  return bare.replace("<svg", `<svg ${name}="${value}"`);
}
