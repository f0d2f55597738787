/** Radiographs as our server sends them: every value, larger is brighter, and the windows that the sender chose. */
import { _, told } from "./language";

/** A window as the values at which it is black and white; what lies between is linear. */
export interface Range {
  lower: number;
  upper: number;
}

export interface Tone extends Range {
  /** The sender's words for it, or empty. */
  name: string;
  /** Grey (0 to 65535) of each value, for what is no linear window. */
  table: Uint16Array | null;
}

export interface Frame {
  image: string;
  rows: number;
  columns: number;
  bits: number;
  pixels: Uint8Array | Uint16Array;
  /** The sender's, the preferred one first; never empty. */
  tones: Tone[];
  /** value × slope + intercept is what the file calls it. */
  slope: number;
  intercept: number;
  /** Millimetres between rows and between columns; null when the file does not say. */
  spacing: [number, number] | null;
  spacingKind: "calibrated" | "detector" | "stated" | null;
  view: string | null;
  laterality: string | null;
  /** To what the rows (rightwards) and the columns (downwards) point, e.g. ["L", "F"]. */
  orientation: [string, string] | null;
}

/** Most bytes of pixels that are kept: the study in front, its prior, and the next one. */
const ROOM = 256 * 2 ** 20;

const frames = new Map<string, Frame>();
const coming = new Map<string, Promise<Frame>>();
const leaving: ((frame: Frame) => void)[] = [];

/** Be told of each frame that is let go, to free what was made from it. */
export function onLeave(callback: (frame: Frame) => void): void {
  leaving.push(callback);
}

/** The frame, if it is here. */
export function held(image: string): Frame | undefined {
  return frames.get(image);
}

/**
 * Fetch all values of an image, or return those that are here. What is fetched `ahead`, of a study that is not open, is
 * told to the server as that, and stays in this page's memory: no cache of the browser has it.
 */
export function fetchFrame(image: string, ahead = false): Promise<Frame> {
  const known = frames.get(image);
  if (known) {
    frames.delete(image); // the newest is last
    frames.set(image, known);
    return Promise.resolve(known);
  }
  let promise = coming.get(image);
  if (!promise) {
    promise = request(image, ahead).finally(() => coming.delete(image));
    coming.set(image, promise);
  }
  return promise;
}

async function request(image: string, ahead: boolean): Promise<Frame> {
  const response = await fetch(`/api/v1/images/${encodeURIComponent(image)}/values`, {
    credentials: "same-origin",
    ...(ahead ? { cache: "no-store", headers: { "Wetread-Ahead": "1" } } : {}),
  });
  if (!response.ok) {
    const problem: unknown = await response.json().catch(() => null);
    const detail = problem && typeof problem === "object" && "detail" in problem ? String(problem.detail) : "";
    throw new Error(told(detail) || _("the server answered %(status)s", { status: response.status }));
  }
  const frame = parse(image, await response.arrayBuffer());
  frames.set(image, frame);
  let bytes = [...frames.values()].reduce((sum, { pixels }) => sum + pixels.byteLength, 0);
  for (const old of [...frames.values()]) {
    if (bytes <= ROOM || old === frame || shown.has(old.image)) continue;
    bytes -= old.pixels.byteLength;
    frames.delete(old.image);
    for (const callback of leaving) callback(old);
  }
  return frame;
}

/** Images on screen, which are never let go. */
export const shown = new Set<string>();

interface About {
  rows: number;
  columns: number;
  bits: number;
  entries: number;
  slope: number;
  intercept: number;
  tones: { name: string; lower: number; upper: number; table?: number }[];
  spacing: [number, number] | null;
  spacing_kind: Frame["spacingKind"];
  view: string | null;
  laterality: string | null;
  orientation: [string, string] | null;
}

function parse(image: string, buffer: ArrayBuffer): Frame {
  const length = new DataView(buffer).getUint32(0, true);
  const about = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length))) as About;
  const tables = about.tones.filter(({ table }) => table !== undefined).length;
  const start = 4 + length + 2 * tables * about.entries;
  const count = about.rows * about.columns;
  if (buffer.byteLength !== start + (count * about.bits) / 8) {
    const wanted = start + (count * about.bits) / 8;
    throw new Error(_("the image has %(bytes)s bytes instead of %(wanted)s; reload the page", { bytes: buffer.byteLength, wanted }));
  }
  return {
    image,
    rows: about.rows,
    columns: about.columns,
    bits: about.bits,
    pixels: about.bits === 16 ? new Uint16Array(buffer, start, count) : new Uint8Array(buffer, start, count),
    tones: about.tones.map(({ name, lower, upper, table }) => ({
      name,
      lower,
      upper,
      table: table === undefined ? null : new Uint16Array(buffer, 4 + length + 2 * table * about.entries, about.entries),
    })),
    slope: about.slope,
    intercept: about.intercept,
    spacing: about.spacing,
    spacingKind: about.spacing_kind,
    view: about.view,
    laterality: about.laterality,
    orientation: about.orientation,
  };
}

/** How often each value occurs; of a large picture every so-manieth pixel is counted. */
function histogram({ pixels, bits }: Frame): Uint32Array {
  const counts = new Uint32Array(2 ** bits);
  const every = Math.max(1, Math.floor(pixels.length / 500_000));
  for (let i = 0; i < pixels.length; i += every) counts[pixels[i]!]!++;
  return counts;
}

/** The values below which the given fractions of the picture lie. */
export function quantiles(frame: Frame, fractions: number[]): number[] {
  const counts = histogram(frame);
  const all = counts.reduce((sum, count) => sum + count, 0);
  return fractions.map((fraction) => {
    let rest = fraction * all;
    for (let value = 0; value < counts.length; value++) {
      rest -= counts[value]!;
      if (rest <= 0) return value;
    }
    return counts.length - 1;
  });
}

export type Preset = "lungs" | "mediastinum" | "full";

/** Windows by what a reader looks for; what the sender's own window cuts off counts as its end. */
export function preset(frame: Frame, name: Preset): Range {
  if (name === "full") {
    let upper = 1;
    for (const value of frame.pixels) if (value > upper) upper = value;
    return { lower: 0, upper };
  }
  const [low, high] = quantiles(frame, name === "lungs" ? [0.02, 0.7] : [0.3, 0.995]) as [number, number];
  const tone = frame.tones[0]!;
  const within = (value: number) => Math.min(tone.upper, Math.max(tone.lower, value));
  return { lower: within(low), upper: Math.max(within(high), within(low) + 1) };
}
