// Whether a picture looks like a photograph, as in `grr_coca.infer.photographs`.

const [GROUND, MIN_INSIDE, FLAT, MAX_FLAT, NUM_BOTH, EDGE] = [24, 48, 3, 0.9, 3, 16];
const LAPLACIANS = [3, 8, 20, 40, 80];
const STRAYS = [
  [0, 1, 3, 6, 12, 24],
  [1, 4, 10],
  [1, 4, 10],
];
const COHERENT = [0.5, 0.8, 0.95];

/**
 * The score of a picture: above 0, it looks like a photograph; minus infinity: its inside is flat, so it is drawn; NaN:
 * there is next to nothing inside.
 *
 * @param {Uint8Array} pixels RGB, S S 3
 * @param {{weights: number[], offset: number}} fitted
 */
export function photographScore(pixels, fitted) {
  const { isFlat, numbers } = lookInside(pixels);
  if (isFlat) return -Infinity;
  return numbers ? numbers.reduce((sum, value, i) => sum + value * fitted.weights[i], fitted.offset) : NaN;
}

/** {isFlat, numbers}, as `look_inside` in Python; numbers are null if the picture is not judged. */
export function lookInside(pixels) {
  const side = Math.sqrt(pixels.length / 3);
  const [red, green, blue] = [0, 1, 2].map((c) => Int16Array.from({ length: side * side }, (_, at) => pixels[3 * at + c]));
  const inside = insideOf([red, green, blue], side);
  const count = inside.length;
  const laplacian = (plane, at) => Math.abs(4 * plane[at] - plane[at - 1] - plane[at + 1] - plane[at - side] - plane[at + side]);
  const laplacians = inside.map((at) => Math.max(laplacian(red, at), laplacian(green, at), laplacian(blue, at)));
  const flat = laplacians.filter((value) => value <= FLAT).length;
  const isFlat = count >= MIN_INSIDE && flat > MAX_FLAT * count;
  if (count < MIN_INSIDE || isFlat) return { isFlat, numbers: null };
  const mean = (values) => values.reduce((sum, value) => sum + Number(value), 0) / count;
  const upTo = (values, limits) => limits.map((limit) => mean(values.map((value) => value <= limit)));

  const brightness = red.map((_, at) => (2 * red[at] + 5 * green[at] + blue[at]) >> 3);
  const differences = [red, blue].map((plane) => plane.map((value, at) => value - green[at]));
  const numbers = [mean(laplacians.map(Math.log1p)), ...upTo(laplacians, LAPLACIANS)];
  [brightness, ...differences].forEach((plane, i) => {
    const stray = (at, by) => Math.abs(plane[at] - middle(plane[at - by], plane[at], plane[at + by]));
    const strays = inside.map((at) => [stray(at, 1), stray(at, side)]);
    const sums = strays.map(([across, along]) => across + along);
    const slopes = inside.map((at) => Math.abs(plane[at + 1] - plane[at]) + Math.abs(plane[at + side] - plane[at]));
    numbers.push(...upTo(strays.map((both) => Math.max(...both)), STRAYS[i]));
    numbers.push(...upTo(strays.map((both) => Math.min(...both)), STRAYS[i].slice(0, NUM_BOTH)));
    numbers.push(mean(sums) / (mean(slopes) + 1), mean(sums.map(Math.log1p)));
  });
  numbers.push(...coherence(brightness, side, inside, mean), ...colours([red, green, blue], inside));
  const saturations = inside.map(
    (at) => (Math.max(red[at], green[at], blue[at]) - Math.min(red[at], green[at], blue[at])) / 64,
  );
  const light = inside.map((at) => brightness[at] / 64);
  const squares = mean(light.map((value) => value ** 2));
  numbers.push(mean(saturations), mean(saturations.map((value) => value > 3)));
  numbers.push(Math.sqrt(Math.max(squares - mean(light) ** 2, 0)));
  numbers.push(mean(light.map((value) => value > 3.8)), mean(light.map((value) => value < 0.2)), count / side ** 2);
  return { isFlat, numbers };
}

/** The places of the pixels that are more than two pixels away from the ground, without the outermost. */
function insideOf(planes, side) {
  const ground = planes.map((plane) => {
    const border = [];
    for (let i = 0; i < side; i++) border.push(plane[i], plane[(side - 1) * side + i]);
    for (let i = 1; i < side - 1; i++) border.push(plane[i * side], plane[i * side + side - 1]);
    border.sort((a, b) => a - b);
    const half = border.length >> 1;
    return Math.trunc((border[half - 1] + border[half]) / 2);
  });
  const isGround = (x, y) => planes.every((plane, c) => Math.abs(plane[y * side + x] - ground[c]) <= GROUND);
  const nearGround = new Uint8Array(side * side);
  for (let y = 0; y < side; y++) {
    for (let x = 0; x < side; x++) {
      if (!isGround(x, y)) continue;
      for (let v = Math.max(0, y - 2); v <= Math.min(side - 1, y + 2); v++) {
        nearGround.fill(1, v * side + Math.max(0, x - 2), v * side + Math.min(side - 1, x + 2) + 1);
      }
    }
  }
  const found = [];
  for (let y = 1; y < side - 1; y++) {
    for (let x = 1; x < side - 1; x++) if (!nearGround[y * side + x]) found.push(y * side + x);
  }
  return found;
}

/** The median of three. */
const middle = (one, two, three) => Math.max(Math.min(one, two), Math.min(Math.max(one, two), three));

/** The coherence of the structure tensor over three by three pixels. */
function coherence(brightness, side, inside, mean) {
  const products = [0, 1, 2].map(() => new Float64Array(side * side)); // 0 at the outermost pixels
  for (let y = 1; y < side - 1; y++) {
    for (let x = 1; x < side - 1; x++) {
      const at = y * side + x;
      const across = (brightness[at + 1] - brightness[at - 1]) / 2;
      const along = (brightness[at + side] - brightness[at - side]) / 2;
      [across ** 2, along ** 2, across * along].forEach((value, i) => (products[i][at] = value));
    }
  }
  const around = [-side - 1, -side, -side + 1, -1, 0, 1, side - 1, side, side + 1];
  const tensors = inside.map((at) => products.map((values) => around.reduce((sum, by) => sum + values[at + by], 0)));
  const energies = tensors.map(([one, other]) => one + other);
  const coherent = tensors.map(([one, other, both]) => Math.sqrt((one - other) ** 2 + 4 * both ** 2));
  return [
    mean(coherent) / (mean(energies) + 1),
    mean(coherent.map(Math.log1p)) - mean(energies.map(Math.log1p)),
    mean(coherent.map((value, i) => value / (energies[i] + 9))),
    ...COHERENT.map((share) => mean(coherent.map((value, i) => value > share * energies[i] && energies[i] > 9 * EDGE))),
  ];
}

/** Entropy, share of the first and of the first four, and number of colours of four bits a channel. */
function colours([red, green, blue], inside) {
  const counts = new Map();
  for (const at of inside) {
    const colour = ((red[at] >> 4) << 8) | ((green[at] >> 4) << 4) | (blue[at] >> 4);
    counts.set(colour, (counts.get(colour) ?? 0) + 1);
  }
  const shares = [...counts.values()].sort((a, b) => b - a).map((times) => times / inside.length);
  const entropy = -shares.reduce((sum, share) => sum + share * Math.log(share), 0);
  const four = shares.slice(0, 4).reduce((sum, share) => sum + share, 0);
  return [entropy, shares[0], four, shares.length / Math.sqrt(inside.length)];
}
