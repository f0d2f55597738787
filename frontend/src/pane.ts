/** One radiograph on screen: its window, its place and how it is turned. */
import { _ } from "./language";
import { Enums, getShouldUseCPURendering, type RenderingEngine, type Types } from "@cornerstonejs/core";
import { fetchFrame, preset, shown, type Frame, type Preset, type Range, type Tone } from "./frame";
import { idOf, uncopied } from "./source";

/** Where a picture lies: how much larger than whole, and what point of it (as fractions) is in the middle. */
export interface Place {
  zoom: number;
  x: number;
  y: number;
}

type Vector = [number, number];

/** What cornerstone draws by without WebGL. Its own camera cannot turn there, so the pane lays the picture itself. */
interface Drawn {
  canvas: HTMLCanvasElement;
  viewport: { rotation: number; hflip: boolean; vflip: boolean; scale: number; translation: { x: number; y: number } };
}

const bounded = (zoom: number) => Math.min(40, Math.max(0.1, zoom));

const OPPOSITE: Record<string, string> = { L: "R", R: "L", A: "P", P: "A", H: "F", F: "H" };

export class Pane {
  readonly viewport: Types.IStackViewport;
  readonly element: HTMLDivElement;
  frame: Frame | null = null;
  image = "";
  /** Which of the sender's windows; −1 for values of a file that has only tables. */
  tone = 0;
  inverted = false;
  private wanted = "";
  private closed = false;
  private busy: Promise<void> = Promise.resolve();
  /** What is to the right and above on screen, in image coordinates (x rightwards, y downwards). */
  private right: Vector = [1, 0];
  private up: Vector = [0, -1];

  constructor(
    readonly root: HTMLElement,
    readonly engine: RenderingEngine,
    readonly id: string,
  ) {
    this.element = root.querySelector<HTMLDivElement>(".viewport")!;
    engine.enableElement({ viewportId: id, type: Enums.ViewportType.STACK, element: this.element, defaultOptions: { background: [0, 0, 0] } });
    this.viewport = engine.getViewport(id) as Types.IStackViewport;
    uncopied(this.viewport);
  }

  /** World units from a picture's edge to where its coordinates begin: the middle of the first pixel, on the CPU the edge. */
  private get edge(): Vector {
    const [rowSpacing, columnSpacing] = this.frame?.spacing ?? [1, 1];
    return getShouldUseCPURendering() ? [0, 0] : [columnSpacing / 2, rowSpacing / 2];
  }

  /** Show an image whole, by the sender's window and in the polarity of a radiograph: bone bright, air dark; tell whether it is shown. */
  async show(image: string): Promise<boolean> {
    this.wanted = image;
    // One after the other, so that a slow image never comes over one that was wanted later.
    const turn = this.busy.then(() => (this.wanted === image ? this.load(image) : undefined));
    this.busy = turn.catch(() => undefined);
    await turn;
    return this.image === image;
  }

  private async load(image: string): Promise<void> {
    this.say("");
    shown.delete(this.image);
    try {
      const frame = await fetchFrame(image);
      if (this.closed) return;
      this.frame = frame;
      shown.add(image);
      this.image = image;
      this.tone = 0;
      await this.viewport.setStack([this.drawnId()]);
      this.reset();
    } catch (error) {
      if (this.closed) return;
      this.frame = null;
      this.image = "";
      this.say(_("The image cannot be shown: %(reason)s", { reason: (error as Error).message }));
    }
  }

  /** Say in place of the picture why there is none. */
  say(words: string): void {
    const place = this.root.querySelector<HTMLElement>(".failure");
    if (place) {
      place.textContent = words;
      place.hidden = !words;
    }
  }

  /** Give the graphics back. What is still on its way then finds no frame, and touches nothing. */
  close(): void {
    this.closed = true;
    shown.delete(this.image);
    this.frame = null;
    this.image = this.wanted = "";
    this.engine.disableElement(this.id);
  }

  // ---------------------------------------------------------------- window

  /** The sender's window in force, or all values when the window is none of the sender's. */
  get meaning(): Tone {
    const { tones } = this.frame!;
    return tones[this.tone] ?? { name: "", lower: 0, upper: tones[0]!.upper, table: null };
  }

  private drawnId(): string {
    return idOf(this.image, this.frame?.tones[this.tone]?.table ? this.tone : -1);
  }

  /** The sender's window as the values that are drawn: of a table's greys all. */
  private meant(): Range {
    const tone = this.meaning;
    return tone.table ? { lower: 0, upper: 65535 } : { lower: tone.lower, upper: tone.upper };
  }

  get range(): Range {
    return this.viewport.getProperties().voiRange ?? { lower: 0, upper: 1 };
  }

  set range(voiRange: Range) {
    if (this.closed) return;
    this.viewport.setProperties({ voiRange, invert: this.inverted });
    this.viewport.render();
  }

  /** One of the sender's windows. */
  async choose(tone: number): Promise<void> {
    if (!this.frame) return;
    await this.draw(() => (this.tone = ((tone % this.frame!.tones.length) + this.frame!.tones.length) % this.frame!.tones.length));
    if (this.frame) this.range = this.meant();
  }

  /** A window by what a reader looks for; it is one of values, not of a table's greys. */
  async preset(name: Preset): Promise<void> {
    if (!this.frame) return;
    const range = preset(this.frame, name);
    const values = this.frame.tones.findIndex(({ table }) => !table);
    await this.draw(() => (this.tone = values));
    this.range = range;
  }

  /** Change which values are drawn, and leave the picture where it is. */
  private async draw(change: () => void): Promise<void> {
    const before = this.drawnId();
    change();
    if (this.drawnId() === before) return;
    const [place, [right, up]] = [this.place, [this.right, this.up] as const];
    await this.viewport.setStack([this.drawnId()]);
    this.turn(right, up, place);
  }

  /** The window relative to the sender's: 0 to 1 is just that. Two images of other devices are compared by this. */
  get relative(): Range {
    const [now, meant] = [this.range, this.meant()];
    const of = (value: number) => (value - meant.lower) / (meant.upper - meant.lower);
    return { lower: of(now.lower), upper: of(now.upper) };
  }

  set relative({ lower, upper }: Range) {
    if (!this.frame) return;
    const meant = this.meant();
    const of = (fraction: number) => meant.lower + fraction * (meant.upper - meant.lower);
    this.range = { lower: of(lower), upper: of(upper) };
  }

  /** The window as DICOM writes it, in the file's own units. */
  get level(): { center: number; width: number } {
    const { lower, upper } = this.range;
    const own = this.frame && !this.frame.tones[this.tone]?.table;
    const { slope, intercept } = own ? this.frame! : { slope: 1, intercept: 0 };
    return {
      center: Math.round(((lower + upper) / 2) * slope + intercept + 0.5),
      width: Math.round((upper - lower) * Math.abs(slope) + 1),
    };
  }

  /** Widen the window by dragging right, raise its level by dragging down; CSS px. */
  drag(across: number, down: number): void {
    if (!this.frame) return;
    const [meant, { lower, upper }] = [this.meant(), this.range];
    const speed = (meant.upper - meant.lower) / 512;
    const width = Math.max(1, upper - lower + across * speed);
    const center = (lower + upper) / 2 + down * speed;
    this.range = { lower: center - width / 2, upper: center + width / 2 };
  }

  invert(on = !this.inverted): void {
    this.inverted = on;
    this.viewport.setProperties({ invert: on });
    this.viewport.render();
  }

  // ---------------------------------------------------------------- place

  private get size(): Vector {
    const [rowSpacing, columnSpacing] = this.frame?.spacing ?? [1, 1];
    return [(this.frame?.columns ?? 1) * columnSpacing, (this.frame?.rows ?? 1) * rowSpacing];
  }

  /** Half of the height that is seen when the picture just fits, in world units. */
  private get fit(): number {
    const [width, height] = this.size;
    const lying = this.up[0] !== 0;
    const { clientWidth, clientHeight } = this.element;
    const [across, down] = lying ? [height, width] : [width, height];
    return Math.max(down, (across * clientHeight) / Math.max(1, clientWidth)) / 2;
  }

  get zoom(): number {
    return this.fit / (this.viewport.getCamera().parallelScale ?? this.fit);
  }

  get place(): Place {
    const [[width, height], [left, top]] = [this.size, this.edge];
    const [x, y] = this.viewport.getCamera().focalPoint ?? [0, 0, 0];
    return { zoom: this.zoom, x: (x + left) / width, y: (y + top) / height };
  }

  /** Where the picture was put last; a pane that changes its size keeps to it. */
  private kept: Place = { zoom: 1, x: 0.5, y: 0.5 };

  /** Remember where the reader has moved the picture. */
  keep(): void {
    this.kept = this.place;
  }

  /** Put the picture where it was, after the pane has changed its size. */
  settle(): void {
    if (this.frame) this.place = this.kept;
  }

  set place(place: Place) {
    this.turn(this.right, this.up, place);
  }

  /** Lay the picture so that these directions of it point right and up, at this place. */
  private turn(right: Vector, up: Vector, { zoom, x, y }: Place): void {
    if (!this.frame) return;
    [this.right, this.up] = [right, up];
    this.kept = { zoom: bounded(zoom), x, y };
    const [[width, height], [left, top]] = [this.size, this.edge];
    const focalPoint: Types.Point3 = [x * width - left, y * height - top, 0];
    // From the picture to the eye: right × up; behind the picture it is seen mirrored.
    const normal = right[0] * up[1] - right[1] * up[0];
    const distance = Math.hypot(width, height);
    if (getShouldUseCPURendering()) this.layByHand();
    else this.viewport.setCamera({
      viewUp: [up[0], up[1], 0],
      viewPlaneNormal: [0, 0, normal],
      focalPoint,
      position: [focalPoint[0], focalPoint[1], normal * distance],
      parallelScale: this.fit / this.kept.zoom,
    });
    this.viewport.render();
    this.side();
  }

  /** As `turn`, for the CPU: rotation and mirroring, then what of the picture is in the middle of the canvas. */
  private layByHand(): void {
    const { frame, right, up, kept } = this;
    const { canvas, viewport } = (this.viewport as unknown as { _cpuFallbackEnabledElement: Drawn })._cpuFallbackEnabledElement;
    const [width, height] = [this.element.clientWidth, this.element.clientHeight].map((side) => Math.round(side * window.devicePixelRatio));
    if (canvas.width !== width || canvas.height !== height) [canvas.width, canvas.height] = [width!, height!];
    const mirrored = this.mirrored;
    const [x, y] = [(kept.x - 0.5) * frame!.columns, (kept.y - 0.5) * frame!.rows];
    Object.assign(viewport, {
      rotation: (Math.atan2(mirrored ? up[0] : -up[0], mirrored ? -right[0] : right[0]) * 180) / Math.PI,
      hflip: mirrored,
      vflip: false,
      scale: (canvas.height * kept.zoom * Math.min(...(frame!.spacing ?? [1, 1]))) / (2 * this.fit),
      translation: { x: -(right[0] * x + right[1] * y), y: up[0] * x + up[1] * y },
    });
    this.viewport.setCamera({}); // takes what is there
  }

  /** Turn by a quarter: what was above is then to the right (or left). */
  rotate(clockwise: boolean): void {
    const { right, up, place } = this;
    const minus = ([x, y]: Vector): Vector => [-x, -y];
    if (clockwise) this.turn(up, minus(right), place);
    else this.turn(minus(up), right, place);
  }

  /** Mirror as it is seen: side to side, or upside down. */
  flip(sides: boolean): void {
    const { right, up, place } = this;
    this.turn(sides ? [-right[0], -right[1]] : right, sides ? up : [-up[0], -up[1]], place);
  }

  get mirrored(): boolean {
    return this.right[0] * this.up[1] - this.right[1] * this.up[0] > 0;
  }

  get turned(): boolean {
    return this.mirrored || this.up[1] !== -1;
  }

  /** Whole image, upright, the sender's first window, and the polarity of a radiograph. */
  reset(): void {
    if (!this.frame) return;
    this.inverted = false;
    this.turn([1, 0], [0, -1], { zoom: 1, x: 0.5, y: 0.5 });
    void this.choose(0);
  }

  zoomBy(factor: number): void {
    this.place = { ...this.place, zoom: this.zoom * factor };
  }

  /** Zoom by a factor, and bring what is seen at one point of the element to another; CSS px. */
  carry(from: Vector, to: Vector, factor = 1): void {
    if (!this.frame) return;
    const { x, y, zoom: before } = this.place;
    const zoom = bounded(before * factor);
    const [[fromX, fromY], [toX, toY]] = [this.toImage(...from), this.toImage(...to)];
    this.place = { zoom, x: fromX - ((toX - x) * before) / zoom, y: fromY - ((toY - y) * before) / zoom };
  }

  /** The whole picture, or with `pixels` one pixel of it to each of the screen. */
  fitTo(pixels: boolean): void {
    const [, columnSpacing] = this.frame?.spacing ?? [1, 1];
    const scale = (this.element.clientHeight * window.devicePixelRatio * columnSpacing) / 2;
    this.place = pixels ? { ...this.place, zoom: this.fit / scale } : { zoom: 1, x: 0.5, y: 0.5 };
  }

  /** Position on screen, in CSS px within the element, of a point given as fractions of the image's width and height. */
  toScreen(x: number, y: number): Vector {
    const [[width, height], [left, top]] = [this.size, this.edge];
    return this.viewport.worldToCanvas([x * width - left, y * height - top, 0]) as Vector;
  }

  /** The fractions of the image's width and height at a position on screen. */
  toImage(left: number, top: number): Vector {
    const [[width, height], [edgeX, edgeY]] = [this.size, this.edge];
    const [x, y] = this.viewport.canvasToWorld([left, top]);
    return [(x + edgeX) / width, (y + edgeY) / height];
  }

  // ---------------------------------------------------------------- sides

  /** Which side of the patient is where, by the file's header; nothing when it does not say. */
  private side(): void {
    const letters = (direction: Vector): string => {
      const orientation = this.frame?.orientation;
      if (!orientation) return "";
      const along = direction[0] !== 0 ? orientation[0] : orientation[1];
      const forward = direction[0] + direction[1] > 0;
      return forward ? along : [...along].map((letter) => OPPOSITE[letter] ?? "").join("");
    };
    for (const [name, direction] of [["left", [-this.right[0], -this.right[1]]], ["right", this.right]] as const) {
      const place = this.root.querySelector<HTMLElement>(`.side-${name}`);
      if (place) place.textContent = letters(direction as Vector);
    }
  }
}
