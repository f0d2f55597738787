/** A magnifier on the pointer: the values of the file under it, by the pane's window, larger than on screen. */
import type { Pane } from "./pane";

const SIDE = 240; // CSS px
const FACTOR = 2.5;

export class Lens {
  on = false;
  private readonly canvas = document.createElement("canvas");
  private readonly piece = document.createElement("canvas");

  constructor(private readonly panes: () => Pane[]) {
    this.canvas.className = "lens";
    this.canvas.setAttribute("aria-hidden", "true");
  }

  add(pane: Pane): void {
    for (const kind of ["pointerdown", "pointermove"] as const) pane.root.addEventListener(kind, (event) => this.draw(pane, event));
    pane.root.addEventListener("pointerleave", () => this.canvas.remove());
  }

  toggle(): void {
    this.on = !this.on;
    if (!this.on) this.canvas.remove();
  }

  off(): void {
    this.on = false;
    this.canvas.remove();
  }

  private draw(pane: Pane, event: PointerEvent): void {
    const { frame, element } = pane;
    if (!this.on || !frame || !this.panes().includes(pane)) return;
    const box = element.getBoundingClientRect();
    const [left, top] = [event.clientX - box.left, event.clientY - box.top];
    const ratio = window.devicePixelRatio;
    this.canvas.width = this.canvas.height = SIDE * ratio;
    this.canvas.style.left = `${left - SIDE / 2}px`;
    // Above a finger, which would lie on it; below where there is no room.
    const aside = event.pointerType !== "touch" ? 0 : top > 0.8 * SIDE ? -0.7 * SIDE : 0.7 * SIDE;
    this.canvas.style.top = `${top - SIDE / 2 + aside}px`;
    if (this.canvas.parentElement !== element) element.append(this.canvas);

    // How a step of one image pixel to the right and down lies on screen.
    const origin = pane.toScreen(0, 0);
    const across = pane.toScreen(1 / frame.columns, 0);
    const down = pane.toScreen(0, 1 / frame.rows);
    const [x, y] = pane.toImage(left, top);
    const [column, row] = [x * frame.columns, y * frame.rows];
    const scale = Math.hypot(across[0] - origin[0], across[1] - origin[1]);
    const reach = Math.ceil((0.75 * SIDE) / Math.max(1e-6, scale * FACTOR)) + 1;
    const [x0, x1] = [Math.max(0, Math.floor(column - reach)), Math.min(frame.columns, Math.ceil(column + reach))];
    const [y0, y1] = [Math.max(0, Math.floor(row - reach)), Math.min(frame.rows, Math.ceil(row + reach))];
    const context = this.canvas.getContext("2d")!;
    context.fillStyle = "black";
    context.fillRect(0, 0, this.canvas.width, this.canvas.height);
    if (x1 <= x0 || y1 <= y0) return;

    this.piece.width = x1 - x0;
    this.piece.height = y1 - y0;
    const picture = new ImageData(x1 - x0, y1 - y0);
    const words = new Uint32Array(picture.data.buffer);
    const { lower, upper } = pane.range;
    const table = frame.tones[pane.tone]?.table;
    for (let r = y0, i = 0; r < y1; r++) {
      for (let c = x0; c < x1; c++, i++) {
        const value = frame.pixels[r * frame.columns + c]!;
        const grey = Math.min(255, Math.max(0, Math.round((255 * ((table ? table[value]! : value) - lower)) / (upper - lower))));
        words[i] = 0xff000000 | ((pane.inverted ? 255 - grey : grey) * 0x010101);
      }
    }
    this.piece.getContext("2d")!.putImageData(picture, 0, 0);
    const zoom = FACTOR * ratio;
    const [ax, ay, dx, dy] = [
      (across[0] - origin[0]) * zoom, (across[1] - origin[1]) * zoom,
      (down[0] - origin[0]) * zoom, (down[1] - origin[1]) * zoom,
    ]; // prettier-ignore
    const middle = (SIDE * ratio) / 2;
    context.setTransform(ax, ay, dx, dy, middle - ax * (column - x0) - dx * (row - y0), middle - ay * (column - x0) - dy * (row - y0));
    context.imageSmoothingEnabled = scale * FACTOR < 4;
    context.imageSmoothingQuality = "high";
    context.drawImage(this.piece, 0, 0);
    context.setTransform(1, 0, 0, 1, 0, 0);
  }
}
