/** A finding's heatmap over the radiograph, in image coordinates, on a canvas of its own: never part of the picture. */
import type { Pane } from "./pane";

export interface HeatMap {
  rows: number;
  columns: number;
  /** Row by row; only positive values speak for the finding. */
  values: number[];
  /** The part of the image that the model saw: left, top, width, height as fractions of the image. */
  box: [number, number, number, number];
}

/** Viridis, seventeen anchors: perceptually uniform, the same order for readers with any colour vision. */
const VIRIDIS = [
  [68, 1, 84], [72, 24, 106], [71, 45, 123], [66, 64, 134], [59, 82, 139], [51, 99, 141],
  [44, 114, 142], [38, 130, 142], [33, 145, 140], [31, 160, 136], [40, 174, 128], [63, 188, 115],
  [94, 201, 98], [132, 212, 75], [173, 220, 48], [216, 226, 25], [253, 231, 37],
] as const; // prettier-ignore

export function colour(value: number): [number, number, number] {
  const at = Math.min(1, Math.max(0, value)) * (VIRIDIS.length - 1);
  const low = VIRIDIS[Math.floor(at)]!;
  const high = VIRIDIS[Math.ceil(at)]!;
  return [0, 1, 2].map((c) => low[c]! + (high[c]! - low[c]!) * (at % 1)) as [number, number, number];
}

/** Bilinear, aligned at cell centres, held constant beyond the outermost ones. */
export function sample(map: HeatMap, x: number, y: number): number {
  const at = (fraction: number, count: number) => Math.min(count - 1, Math.max(0, fraction * count - 0.5));
  const [cx, cy] = [at(x, map.columns), at(y, map.rows)];
  const [x0, y0] = [Math.floor(cx), Math.floor(cy)];
  const [x1, y1] = [Math.min(x0 + 1, map.columns - 1), Math.min(y0 + 1, map.rows - 1)];
  const value = (r: number, c: number) => map.values[r * map.columns + c] ?? 0;
  const top = value(y0, x0) * (1 - (cx - x0)) + value(y0, x1) * (cx - x0);
  const bottom = value(y1, x0) * (1 - (cx - x0)) + value(y1, x1) * (cx - x0);
  return top * (1 - (cy - y0)) + bottom * (cy - y0);
}

const SIDE = 160;

export function picture(map: HeatMap): HTMLCanvasElement {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = SIDE;
  const context = canvas.getContext("2d")!;
  const image = context.createImageData(SIDE, SIDE);
  const strongest = Math.max(...map.values, 0);
  for (let row = 0; row < SIDE; row++) {
    for (let column = 0; column < SIDE; column++) {
      const value = strongest > 0 ? Math.max(0, sample(map, (column + 0.5) / SIDE, (row + 0.5) / SIDE)) / strongest : 0;
      image.data.set([...colour(value), 255 * value], 4 * (row * SIDE + column));
    }
  }
  context.putImageData(image, 0, 0);
  return canvas;
}

export class Overlay {
  private source: HTMLCanvasElement | null = null;
  private box: HeatMap["box"] = [0, 0, 1, 1];
  opacity = 0.6;

  constructor(
    private readonly pane: Pane,
    private readonly canvas: HTMLCanvasElement,
  ) {}

  get shown(): boolean {
    return this.source !== null;
  }

  show(map: HeatMap | null): void {
    this.source = map && picture(map);
    if (map) this.box = map.box;
    this.draw();
  }

  draw(): void {
    const { clientWidth, clientHeight } = this.canvas;
    const ratio = window.devicePixelRatio;
    // Without a map it takes no memory: over two 4K screens it would be 66 MB.
    const [across, down] = this.source ? [Math.round(clientWidth * ratio), Math.round(clientHeight * ratio)] : [1, 1];
    if (this.canvas.width !== across) this.canvas.width = across;
    if (this.canvas.height !== down) this.canvas.height = down;
    const context = this.canvas.getContext("2d")!;
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, across, down);
    if (!this.source) return;
    const [x, y, width, height] = this.box;
    const [left, top] = this.pane.toScreen(x, y);
    const [right, topRight] = this.pane.toScreen(x + width, y);
    const [leftBottom, bottom] = this.pane.toScreen(x, y + height);
    context.globalAlpha = this.opacity;
    context.imageSmoothingQuality = "high";
    // Affine, so that the map follows a flip or a rotation as well as zoom and pan.
    context.setTransform(
      (ratio * (right - left)) / SIDE, (ratio * (topRight - top)) / SIDE,
      (ratio * (leftBottom - left)) / SIDE, (ratio * (bottom - top)) / SIDE,
      ratio * left, ratio * top,
    ); // prettier-ignore
    context.drawImage(this.source, 0, 0);
  }
}
