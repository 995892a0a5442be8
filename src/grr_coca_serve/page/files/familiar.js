// Whether a picture is unlike those that the model was trained on, as in `grr_coca.infer.calibration`.

import { photographScore } from "./photographs.js";

const [SAME, NEAR, SHIFT] = [4, 8, 4];

/**
 * @param {Uint8Array} pixels RGB, S S 3
 * @param {{mean: number[], precision: number[][], max_distance: number, photographs: ?object} | null} fitted null: it cannot be told
 */
export function isUnfamiliar(pixels, fitted) {
  if (!fitted) return false;
  const away = statistics(pixels).map((value, i) => value - fitted.mean[i]);
  let distance = 0;
  away.forEach((one, i) => away.forEach((other, j) => (distance += one * fitted.precision[i][j] * other)));
  const isFar = distance > fitted.max_distance;
  if (!fitted.photographs) return isFar;
  const score = photographScore(pixels, fitted.photographs);
  return score > 0 || (isFar && score !== -Infinity);
}

/** The six numbers of `statistics` in Python. */
export function statistics(pixels) {
  const side = Math.sqrt(pixels.length / 3);
  const count = side * side;
  const difference = (a, b) => {
    let most = 0;
    for (let c = 0; c < 3; c++) most = Math.max(most, Math.abs(pixels[a + c] - pixels[b + c]));
    return most;
  };
  const [same, total] = [[0, 0], [0, 0]];
  const neighbours = side * (side - 1);
  for (let y = 0; y < side; y++) {
    for (let x = 0; x < side; x++) {
      const at = (y * side + x) * 3;
      [x + 1 < side ? at + 3 : -1, y + 1 < side ? at + side * 3 : -1].forEach((next, axis) => {
        if (next < 0) return;
        const by = difference(at, next);
        total[axis] += by;
        if (by <= SAME) same[axis]++;
      });
    }
  }
  const border = [];
  for (let x = 0; x < side; x++) border.push(x * 3);
  for (let x = 0; x < side; x++) border.push(((side - 1) * side + x) * 3);
  for (let y = 1; y < side - 1; y++) border.push(y * side * 3);
  for (let y = 1; y < side - 1; y++) border.push((y * side + side - 1) * 3);
  const half = border.length >> 1;
  const twice = [0, 1, 2].map((c) => {
    const sorted = Uint8Array.from(border, (at) => pixels[at + c]).sort();
    return sorted[half - 1] + sorted[half];
  });
  const isBackground = (at) => twice.every((value, c) => Math.abs(2 * pixels[at + c] - value) <= 2 * NEAR);
  let everywhere = 0;
  const colours = new Map();
  for (let at = 0; at < pixels.length; at += 3) {
    if (isBackground(at)) everywhere++;
    const colour = ((pixels[at] >> SHIFT) << 8) | ((pixels[at + 1] >> SHIFT) << 4) | (pixels[at + 2] >> SHIFT);
    colours.set(colour, (colours.get(colour) ?? 0) + 1);
  }
  let entropy = 0;
  for (const times of colours.values()) entropy -= (times / count) * Math.log(times / count);
  const spread = [0, 1, 2].map((c) => {
    const mean = border.reduce((sum, at) => sum + pixels[at + c], 0) / border.length;
    return Math.sqrt(border.reduce((sum, at) => sum + (pixels[at + c] - mean) ** 2, 0) / border.length);
  });
  return [
    (same[0] / neighbours + same[1] / neighbours) / 2,
    entropy,
    border.filter(isBackground).length / border.length,
    everywhere / count,
    Math.log1p(total[0] / neighbours + total[1] / neighbours),
    (spread[0] + spread[1] + spread[2]) / 3 / 64,
  ];
}
