/** The picture side of the study page: images, panes, priors, windows, tools and the heatmap, by key and by button. */
import { _, number, word } from "./language";
import { colour, type HeatMap } from "./heatmap";
import { fetchFrame } from "./frame";
import { on, run } from "./keys";
import type { Pane } from "./pane";
import type { Cell, Viewer } from "./viewer";

interface Prior {
  other: string;
  who: string[];
  images: { image: string; view: string | null }[];
}

/** One viewer for all studies: its graphics are dear to start. Its code is large, so the page is at work before it is here. */
let viewer: Viewer | null = null;
let starting: Promise<Viewer> | null = null;

const find = <T extends HTMLElement>(selector: string) => document.querySelector<T>(selector);
const all = <T extends HTMLElement>(selector: string) => [...document.querySelectorAll<T>(selector)];
const pressed = (selector: string, on: boolean) => {
  for (const button of all(selector)) button.setAttribute("aria-pressed", String(on));
};

export class Picture {
  private readonly page = document.body;
  /** Of the study that is read, the one in front. */
  image = "";
  private begun: Promise<void> | null = null;
  private beside = false;
  private prior = -1;
  /** Which image of each prior is shown. */
  private readonly turned = new Map<number, number>();
  private heat = false;
  private chosen: { model: string; finding: string } | null = null;
  private opacity = 60;
  private readonly maps = new Map<string, Promise<HeatMap | null>>();
  private readonly priors = all("[data-prior]").map((button) => JSON.parse(button.dataset.prior!) as Prior);

  constructor() {
    drawScale();
    const pane = (change: (pane: Pane) => unknown) => () => viewer?.each(change);
    const own = (change: (pane: Pane) => unknown) => () => {
      const active = viewer?.active;
      if (active?.frame) change(active);
    };
    on({
      "viewer.heatmap": () => this.heatmap(),
      "viewer.opacity-up": () => this.stronger(10),
      "viewer.opacity-down": () => this.stronger(-10),
      "viewer.window-original": pane((p) => p.choose(0)),
      "viewer.window-lungs": pane((p) => p.preset("lungs")),
      "viewer.window-mediastinum": pane((p) => p.preset("mediastinum")),
      "viewer.window-full": pane((p) => p.preset("full")),
      "viewer.window-next": pane((p) => p.choose(p.tone + 1)),
      "viewer.invert": () => {
        const inverted = !viewer?.active?.inverted;
        viewer?.each((p) => p.invert(inverted));
      },
      "viewer.reset": pane((p) => p.reset()),
      "viewer.zoom-in": pane((p) => p.zoomBy(1.25)),
      "viewer.zoom-out": pane((p) => p.zoomBy(0.8)),
      "viewer.zoom-fit": pane((p) => p.fitTo(false)),
      "viewer.zoom-one": own((p) => p.fitTo(true)),
      "viewer.rotate-right": own((p) => p.rotate(true)),
      "viewer.rotate-left": own((p) => p.rotate(false)),
      "viewer.flip-sides": own((p) => p.flip(true)),
      "viewer.flip-upside": own((p) => p.flip(false)),
      "viewer.magnifier": () => viewer?.lens.toggle(),
      "viewer.measure": () => viewer?.tools.measure(!viewer.tools.measuring),
      "viewer.move": () => viewer?.tools.move(!viewer.tools.moving),
      "viewer.measure-clear": () => viewer?.tools.clear(viewer.panes),
      "viewer.image-previous": () => this.step(-1),
      "viewer.image-next": () => this.step(1),
      "viewer.beside": () => this.lay(() => (this.beside = !this.beside)),
      "viewer.prior": () => this.lay(() => (this.prior = this.prior < 0 && this.priors.length ? 0 : -1)),
      "viewer.prior-older": () => this.lay(() => (this.prior = this.priors.length ? (this.prior + 1) % this.priors.length : -1)),
      "viewer.pane-next": () => viewer?.next(),
      "viewer.link": () => viewer?.link(!viewer.linked),
      "viewer.full-screen": () => (document.fullscreenElement ? document.exitFullscreen() : document.documentElement.requestFullscreen()),
    });
    all("[data-prior]").forEach((button, index) =>
      button.addEventListener("click", () => void this.lay(() => (this.prior = this.prior === index ? -1 : index))),
    );
    this.page.addEventListener("pointerdown", ({ target }) => {
      if ((target as HTMLElement).closest("#stage")) find("details.rarer")?.removeAttribute("open");
    });
    document.onfullscreenchange = () => this.status();
    // What a key or a click changed shows at once, also where nothing is drawn anew.
    for (const kind of ["keyup", "click"]) this.page.addEventListener(kind, () => this.status());
    find<HTMLInputElement>("#opacity")?.addEventListener("input", (event) => {
      this.opacity = Number((event.target as HTMLInputElement).value);
      this.veil();
    });
  }

  /** The images of the study that can be shown, as the page has them now. */
  get images(): string[] {
    return all<HTMLButtonElement>("[data-image]:enabled").map((button) => button.dataset.image!);
  }

  /** Bring an image of the study to the front. */
  async show(image: string): Promise<void> {
    this.page.dataset.shown = "";
    void fetchFrame(image).catch(() => undefined); // while the viewer comes; the pane says what went wrong
    await (this.begun ??= this.begin());
    if (!this.page.isConnected) return; // left meanwhile
    await this.lay(() => (this.image = image));
    this.page.dataset.shown = image;
  }

  /** Start the viewer with the first image: a study may have none until one arrives. */
  private async begin(): Promise<void> {
    try {
      starting ??= import("./viewer").then((code) => code.Viewer.start(find("#stage")!));
      const started = await starting;
      if (!this.page.isConnected) return;
      viewer = started;
      viewer.begin();
      viewer.onDoubleTap = () => run("viewer.reset");
      viewer.onDrawn = () => {
        this.status();
        // What is on screen now, for whoever waits for it.
        if (viewer?.panes[0]?.image === this.image) this.page.dataset.drawn = this.image;
      };
    } catch (error) {
      this.begun = starting = null; // to be tried again with the next picture
      const failure = find("#failure")!;
      failure.textContent = _("The viewer cannot start: %(reason)s", { reason: (error as Error).message });
      failure.hidden = false;
    }
  }

  /** Say which finding the heatmap is of. */
  choose(finding: { model: string; finding: string } | null): void {
    this.chosen = finding;
    void this.paint();
  }

  // ---------------------------------------------------------------- panes

  private cells(): Cell[] {
    const who = JSON.parse(this.page.dataset.who ?? "[]") as string[];
    const images = this.beside ? this.images : [this.image];
    const cells: Cell[] = images.map((image) => ({ image, who }));
    const prior = this.priors[this.prior];
    if (prior?.images.length) {
      const view = this.priorView(prior);
      const at = this.turned.get(this.prior) ?? Math.max(0, prior.images.findIndex((image) => image.view === view));
      cells.splice(3);
      cells.push({ image: prior.images[at]!.image, who: prior.who, other: prior.other });
    }
    return cells;
  }

  /** The view of the image in front: a prior is compared in the same. */
  private priorView(prior: Prior): string | null {
    const view = find(`[data-image="${CSS.escape(this.image)}"]`)?.dataset.view ?? null;
    return prior.images.some((image) => image.view === view) ? view : null;
  }

  private async lay(change: () => unknown): Promise<void> {
    if (!viewer) return;
    change();
    await viewer.lay(this.cells());
    if (this.prior >= 0 && viewer.linked) viewer.link(true);
    await this.paint();
    this.status();
  }

  /** The next image of the study, or of the prior when its pane is the active one. */
  private async step(by: number): Promise<void> {
    const prior = this.priors[this.prior];
    if (prior && viewer?.activeCell?.other) {
      const now = prior.images.findIndex(({ image }) => image === viewer!.activeCell!.image);
      await this.lay(() => this.turned.set(this.prior, (now + by + prior.images.length) % prior.images.length));
      return;
    }
    const { images } = this;
    if (images.length > 1) await this.show(images[(images.indexOf(this.image) + by + images.length) % images.length]!);
  }

  // ---------------------------------------------------------------- words and buttons

  private status(): void {
    const pane = viewer?.active;
    if (!viewer || !pane?.frame) return;
    const { center, width } = pane.level;
    const tone = pane.meaning;
    const words = [
      _("W %(width)s  L %(center)s  zoom %(zoom)s×", { width, center, zoom: number(pane.zoom.toFixed(2)) }),
      [
        tone.name || (tone.table ? _("the sender's table") : ""),
        pane.frame.tones.length > 1 && pane.tone >= 0 ? _("window %(number)s of %(count)s", { number: pane.tone + 1, count: pane.frame.tones.length }) : "",
        viewer.tools.measuring ? _("measuring") : "",
        viewer.tools.moving ? _("moving") : "",
        viewer.panes.length > 1 ? (viewer.linked ? _("panes linked") : _("panes not linked")) : "",
      ]
        .filter(Boolean)
        .join(" · "),
      [pane.mirrored ? _("FLIPPED") : "", pane.turned && !pane.mirrored ? _("TURNED") : "", pane.inverted ? _("INVERTED: bone is dark") : ""].filter(Boolean).join(" · "),
    ];
    const level = find("#level")!;
    const text = words.filter(Boolean).join("\n");
    if (level.textContent !== text) level.textContent = text;
    pressed('[data-action="viewer.invert"]', pane.inverted);
    pressed('[data-action="viewer.measure"]', viewer.tools.measuring);
    pressed('[data-action="viewer.move"]', viewer.tools.moving);
    pressed('[data-action="viewer.magnifier"]', viewer.lens.on);
    pressed('[data-action="viewer.beside"]', this.beside);
    pressed('[data-action="viewer.link"]', viewer.linked);
    pressed('[data-action="viewer.prior"]', this.prior >= 0);
    pressed('[data-action="viewer.full-screen"]', document.fullscreenElement !== null);
    pressed('[data-action="viewer.heatmap"]', this.heat);
    for (const button of all("[data-image]")) {
      button.setAttribute("aria-pressed", String(viewer.cells.some((cell) => !cell.other && cell.image === button.dataset.image)));
    }
    all("[data-prior]").forEach((button, index) => button.setAttribute("aria-pressed", String(index === this.prior)));
  }

  // ---------------------------------------------------------------- heatmap

  private heatmap(): void {
    this.heat = !this.heat;
    void this.paint();
  }

  private stronger(by: number): void {
    this.opacity = Math.min(100, Math.max(0, this.opacity + by));
    find<HTMLInputElement>("#opacity")!.value = String(this.opacity);
    this.veil();
  }

  private veil(): void {
    for (const pane of viewer?.panes ?? []) {
      const overlay = viewer!.overlayOf(pane)!;
      overlay.opacity = this.opacity / 100;
      overlay.draw();
    }
  }

  private map(image: string, model: string, finding: string): Promise<HeatMap | null> {
    const key = JSON.stringify([image, model, finding]);
    if (!this.maps.has(key)) {
      const maps = find(`[data-image="${CSS.escape(image)}"]`)?.dataset.maps;
      const made = !maps || (JSON.parse(maps) as string[]).includes(model);
      this.maps.set(key, made ? fetchMap(image, model, finding) : Promise.resolve(null));
    }
    return this.maps.get(key)!;
  }

  /** Draw the chosen finding's map on each image of the study, or none; say so when there is none. */
  private async paint(): Promise<void> {
    const { chosen } = this;
    pressed('[data-action="viewer.heatmap"]', this.heat);
    const legend = find("#legend")!;
    if (!viewer) return;
    const { panes: all, cells } = viewer;
    if (!this.heat || !chosen) {
      legend.hidden = true;
      for (const pane of all) viewer.overlayOf(pane)!.show(null);
      return;
    }
    const panes = all.map((pane, index) => ({ pane, cell: cells[index]! }));
    const maps = await Promise.all(panes.map(({ cell }) => (cell.other ? null : this.map(cell.image, chosen.model, chosen.finding))));
    if (!this.heat || this.chosen !== chosen || !this.page.isConnected) return;
    let drawn = false;
    panes.forEach(({ pane, cell }, index) => {
      const overlay = viewer?.overlayOf(pane);
      if (!overlay || pane.image !== cell.image) return;
      overlay.opacity = this.opacity / 100;
      overlay.show(maps[index] ?? null);
      drawn ||= Boolean(maps[index]);
    });
    legend.hidden = false;
    find("#legend-finding")!.textContent = word(chosen.finding, "finding");
    find("#legend-none")!.hidden = drawn;
    find("#legend-scale")!.hidden = find("#legend-words")!.hidden = !drawn;
  }

  /** Have the other images of the study here before they are asked for. */
  async ahead(): Promise<void> {
    for (const image of this.images) await fetchFrame(image).catch(() => null);
  }
}

async function fetchMap(image: string, model: string, finding: string): Promise<HeatMap | null> {
  const query = new URLSearchParams({ model, finding });
  const response = await fetch(`/api/v1/images/${encodeURIComponent(image)}/heatmap?${query}`, { credentials: "same-origin" });
  return response.ok ? ((await response.json()) as HeatMap) : null;
}

function drawScale(): void {
  const canvas = find<HTMLCanvasElement>("#scale");
  const context = canvas?.getContext("2d");
  if (!canvas || !context) return;
  for (let x = 0; x < canvas.width; x++) {
    context.fillStyle = `rgb(${colour(x / (canvas.width - 1)).map(Math.round).join(" ")})`;
    context.fillRect(x, 0, 1, canvas.height);
  }
}
