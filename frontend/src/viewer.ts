/** The panes of a study page: cornerstone3D, its tools, which pane the keys speak to, and what the panes share. */
import { Enums, RenderingEngine, getRenderingCapabilities, init as initCore, setUseCPURendering } from "@cornerstonejs/core";
import { init as initTools } from "@cornerstonejs/tools";
import { Overlay } from "./heatmap";
import { _ } from "./language";
import { Lens } from "./lens";
import { Pane } from "./pane";
import { register } from "./source";
import { Tools } from "./tools";
import { Touch } from "./touch";

/** What one pane is to show: an image, and the line above it that says whose it is. */
export interface Cell {
  image: string;
  who: string[];
  /** Of another study than the one that is read: what must be said before all else, e.g. "PRIOR 2025-03-01". */
  other?: string;
}

export const MOST = 4;

interface Slot {
  pane: Pane;
  overlay: Overlay;
  cell: Cell;
}

export class Viewer {
  private readonly engine: RenderingEngine;
  readonly tools: Tools;
  readonly lens: Lens;
  private slots: Slot[] = [];
  private at = 0;
  private count = 0;
  linked = true;
  private following = false;
  /** A line more above a picture makes it smaller though the stage is as large as before: each picture is watched. */
  private readonly sizes = new ResizeObserver(() => this.resize());
  /** After each drawing of any pane. */
  onDrawn: () => void = () => undefined;
  /** After two quick taps on a picture. */
  onDoubleTap: () => void = () => undefined;

  private constructor(
    private readonly stage: HTMLElement,
    private readonly pattern: HTMLElement,
  ) {
    this.engine = new RenderingEngine("wetread");
    this.tools = new Tools(() => this.panes);
    this.lens = new Lens(() => this.panes);
    stage.addEventListener("contextmenu", (event) => event.preventDefault());
    stage.addEventListener("pointerdown", (event) => {
      const at = this.slots.findIndex(({ pane }) => pane.root.contains(event.target as Node));
      if (at >= 0) this.activate(at);
      if (event.isPrimary) this.tools.begin();
    }, { capture: true }); // prettier-ignore
  }

  /** Start over a stage whose first pane is in the page already. */
  static start(stage: HTMLElement): Viewer {
    // One WebGL context draws all panes: each more costs a start, and textures of its own.
    initCore({ rendering: { webGlContextCount: 1 } } as Parameters<typeof initCore>[0]);
    initTools();
    // Without WebGL (a remote desktop, an old driver), or with one that cannot smooth 16 bits, the CPU draws instead.
    const { webgl2, norm16Linear, floatLinear } = getRenderingCapabilities();
    if (!webgl2 || !(norm16Linear || floatLinear)) setUseCPURendering(true);
    register();
    return new Viewer(stage, stage.querySelector<HTMLElement>(".pane")!);
  }

  /** Start a study: nothing of the one before stays but how the reader likes to work. */
  begin(): void {
    this.tools.measure(false);
    this.tools.move(false);
    this.tools.clear(this.panes);
    this.lens.off();
    this.at = 0;
  }

  get panes(): Pane[] {
    return this.slots.map(({ pane }) => pane);
  }

  get active(): Pane | null {
    return this.slots[this.at]?.pane ?? null;
  }

  get cells(): Cell[] {
    return this.slots.map(({ cell }) => cell);
  }

  overlayOf(pane: Pane): Overlay | undefined {
    return this.slots.find((slot) => slot.pane === pane)?.overlay;
  }

  get activeCell(): Cell | null {
    return this.slots[this.at]?.cell ?? null;
  }

  /** Show these images side by side. A pane that shows its image already keeps window and place. */
  async lay(cells: Cell[]): Promise<void> {
    const wanted = cells.slice(0, MOST);
    while (this.slots.length > wanted.length) this.remove(this.slots.pop()!);
    while (this.slots.length < wanted.length) this.add(wanted[this.slots.length]!);
    this.at = Math.min(this.at, this.slots.length - 1);
    this.stage.dataset.panes = String(this.slots.length);
    this.resize();
    await Promise.all(
      this.slots.map(async (slot, index) => {
        const cell = (slot.cell = wanted[index]!);
        if (slot.pane.image === cell.image && slot.pane.frame) {
          this.name(slot);
          return;
        }
        // Never one patient's picture under another's name: it goes before the name comes.
        slot.pane.root.classList.add("coming");
        slot.overlay.show(null);
        this.name(slot);
        const shown = await slot.pane.show(cell.image);
        if (slot.cell !== cell) return; // another was wanted meanwhile
        this.name(slot); // its side is known only now
        slot.pane.root.classList.toggle("coming", !shown);
      }),
    );
    this.activate(this.at);
  }

  private add(cell: Cell): void {
    const first = this.count++ === 0;
    const root = first ? this.pattern : (this.pattern.cloneNode(true) as HTMLElement);
    if (!first) {
      for (const element of root.querySelectorAll("[id]")) element.removeAttribute("id");
      root.querySelector(".viewport")!.replaceChildren();
      this.stage.append(root);
    }
    const pane = new Pane(root, this.engine, `radiograph-${this.count}`);
    const overlay = new Overlay(pane, root.querySelector<HTMLCanvasElement>(".overlay")!);
    this.slots.push({ pane, overlay, cell });
    this.tools.add(pane);
    this.lens.add(pane);
    const { tools, lens } = this;
    new Touch(pane, {
      finger: () => (tools.measuring || lens.on ? "nothing" : tools.moving ? "move" : "window"),
      second: () => tools.abandon(pane),
      doubleTap: () => tools.measuring || this.onDoubleTap(),
    });
    const { element } = pane;
    this.sizes.observe(element);
    element.addEventListener(Enums.Events.IMAGE_RENDERED, () => {
      overlay.draw();
      this.onDrawn();
    });
    element.addEventListener(Enums.Events.VOI_MODIFIED, () => this.follow(pane, (other) => (other.relative = pane.relative)));
    element.addEventListener(Enums.Events.CAMERA_MODIFIED, () => {
      if (this.following) return;
      pane.keep();
      this.follow(pane, (other) => (other.place = pane.place));
    });
  }

  private remove({ pane }: Slot): void {
    this.tools.remove(pane);
    this.sizes.unobserve(pane.element);
    pane.close();
    if (pane.root !== this.pattern) pane.root.remove();
  }

  /** What one pane does, the others do, while they are linked. */
  private follow(source: Pane, change: (other: Pane) => void): void {
    if (!this.linked || this.following || source !== this.active || !source.frame) return;
    this.following = true;
    try {
      for (const other of this.panes) if (other !== source && other.frame) change(other);
    } finally {
      this.following = false;
    }
  }

  /** Do something to the active pane, and to the others when they are linked. */
  each(change: (pane: Pane) => unknown): void {
    const { active } = this;
    if (!active?.frame) return;
    const others = this.linked ? this.panes.filter((pane) => pane !== active && pane.frame) : [];
    this.following = true;
    try {
      for (const pane of [active, ...others]) change(pane);
    } finally {
      this.following = false;
    }
  }

  /** Bring the others to the active pane's window and place. */
  link(on: boolean): void {
    this.linked = on;
    const { active } = this;
    if (!on || !active?.frame) return;
    this.follow(active, (other) => {
      other.relative = active.relative;
      other.place = active.place;
      other.invert(active.inverted);
    });
  }

  activate(at: number): void {
    if (!this.slots.length) return;
    this.at = (at + this.slots.length) % this.slots.length;
    this.slots.forEach(({ pane }, index) => pane.root.classList.toggle("active", index === this.at && this.slots.length > 1));
    this.onDrawn();
  }

  next(): void {
    this.activate(this.at + 1);
  }

  /** The line above a pane: whose picture it is, of when, which view, which side. It never scrolls. */
  private name({ pane, cell }: Slot): void {
    const bar = pane.root.querySelector<HTMLElement>(".bar")!;
    bar.classList.toggle("other", cell.other !== undefined);
    const { view, laterality } = pane.image === cell.image && pane.frame ? pane.frame : { view: undefined, laterality: undefined };
    const words = [...cell.who];
    if (view !== undefined) words.push(view === "LATERAL" ? _("lateral") : (view ?? _("view unknown")));
    if (laterality !== undefined) words.push(laterality && laterality !== "U" ? _("side %(side)s", { side: laterality }) : _("side not stated"));
    bar.replaceChildren();
    if (cell.other) {
      const mark = document.createElement("strong");
      mark.textContent = cell.other;
      bar.append(mark);
    }
    for (const word of words) {
      const part = document.createElement("span");
      part.textContent = word;
      bar.append(part);
    }
  }

  private resize(): void {
    this.following = true;
    try {
      this.engine.resize(true, false);
      for (const pane of this.panes) pane.settle();
    } finally {
      this.following = false;
    }
  }
}
