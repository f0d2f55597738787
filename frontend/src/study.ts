/** The study page: original first, findings by key, heatmap on H, sign on Enter, next on n or Tab. */
import { Overlay, colour, type HeatMap } from "./heatmap";
import { send, start, taken } from "./page";
import { Viewer, fetchFrame, presets } from "./viewer";

type Answer = "agree" | "disagree" | "unsure";

const page = document.body;
const study = page.dataset.study!;
const find = <T extends HTMLElement>(selector: string) => document.querySelector<T>(selector);
const all = <T extends HTMLElement>(selector: string) => [...document.querySelectorAll<T>(selector)];

function say(words: string): void {
  find("#message")!.textContent = words;
}

// ------------------------------------------------------------------ picture

let viewer: Viewer | null = null;
let overlay: Overlay | null = null;
let heat = false;
const maps = new Map<string, Promise<HeatMap | null>>();

function status(): void {
  if (!viewer) return;
  const { center, width } = viewer.level;
  find("#level")!.textContent = `W ${width}  L ${center}  zoom ${viewer.zoom.toFixed(2)}×${viewer.inverted ? "\nINVERTED: bone is dark" : ""}`;
  press("invert", viewer.inverted);
}

function press(action: string, on: boolean): void {
  for (const button of all(`[data-action="${action}"]`)) button.setAttribute("aria-pressed", String(on));
}

async function show(image: string): Promise<void> {
  if (!viewer) return;
  const failure = find("#failure")!;
  failure.hidden = true;
  page.dataset.shown = "";
  overlay?.show(null);
  try {
    await viewer.show(image);
  } catch (error) {
    failure.textContent = `The image cannot be shown: ${(error as Error).message}`;
    failure.hidden = false;
    return;
  }
  for (const button of all("[data-image]")) button.setAttribute("aria-pressed", String(button.dataset.image === image));
  page.dataset.shown = image;
  preset("original");
  await paint();
}

function preset(name: keyof ReturnType<typeof presets>): void {
  viewer?.window(name);
  for (const button of all("[data-window]")) button.setAttribute("aria-pressed", String(button.dataset.window === name));
}

function reset(): void {
  viewer?.reset();
  preset("original");
}

async function nextImage(step: number): Promise<void> {
  const images = all("[data-image]").map((button) => button.dataset.image!);
  if (images.length < 2 || !viewer) return;
  await show(images[(images.indexOf(viewer.image) + step + images.length) % images.length]!);
}

// ------------------------------------------------------------------ heatmap

async function fetchMap(image: string, model: string, finding: string): Promise<HeatMap | null> {
  const query = new URLSearchParams({ model, finding });
  const response = await fetch(`/api/v1/images/${encodeURIComponent(image)}/heatmap?${query}`, { credentials: "same-origin" });
  return response.ok ? ((await response.json()) as HeatMap) : null;
}

/** Draw the chosen finding's map, or none; say so when this image has none. */
async function paint(): Promise<void> {
  const legend = find("#legend")!;
  press("heatmap", heat);
  const finding = selected();
  if (!heat || !viewer || !finding) {
    legend.hidden = true;
    overlay?.show(null);
    return;
  }
  const { model, finding: name } = finding.dataset as { model: string; finding: string };
  const key = JSON.stringify([viewer.image, model, name]);
  if (!maps.has(key)) maps.set(key, fetchMap(viewer.image, model, name));
  const map = await maps.get(key)!;
  if (!heat || selected() !== finding) return;
  overlay?.show(map);
  legend.hidden = false;
  find("#legend-finding")!.textContent = name;
  find("#legend-none")!.hidden = map !== null;
  find("#legend-scale")!.hidden = find("#legend-words")!.hidden = map === null;
}

function drawScale(): void {
  const canvas = find<HTMLCanvasElement>("#scale")!;
  const context = canvas.getContext("2d")!;
  for (let x = 0; x < canvas.width; x++) {
    context.fillStyle = `rgb(${colour(x / (canvas.width - 1)).map(Math.round).join(" ")})`;
    context.fillRect(x, 0, 1, canvas.height);
  }
}

// ------------------------------------------------------------------ findings

const findings = all(".finding");
const editable = () => page.dataset.signed !== "true" && page.dataset.review === "true";

function selected(): HTMLElement | null {
  return findings.find((finding) => finding.getAttribute("aria-selected") === "true") ?? null;
}

function select(finding: HTMLElement | undefined): void {
  if (!finding) return;
  for (const other of findings) other.setAttribute("aria-selected", String(other === finding));
  finding.scrollIntoView({ block: "nearest" });
  void paint();
}

function step(by: number): void {
  const chosen = selected();
  select(findings[Math.min(findings.length - 1, Math.max(0, (chosen ? findings.indexOf(chosen) : -1) + by))]);
}

/** Record the reader's own word on a finding; the same word again takes it back. */
function answer(finding: HTMLElement | null, word: Answer): void {
  if (!finding || !editable()) return;
  const next = finding.dataset.answer === word ? "" : word;
  // Two models may speak of one finding; the reader's word on it is one.
  for (const same of findings.filter((other) => other.dataset.finding === finding.dataset.finding)) {
    same.dataset.answer = next;
    same.querySelector(".answer")!.textContent = next;
    for (const button of same.querySelectorAll<HTMLElement>("[data-answer-word]")) {
      button.setAttribute("aria-pressed", String(button.dataset.answerWord === next));
    }
  }
  changed();
}

let verdict = page.dataset.verdict ?? "";
function judge(word: string): void {
  if (!editable()) return;
  verdict = verdict === word ? "" : word;
  press("right", verdict === "right");
  press("wrong", verdict === "wrong");
  changed();
}

let normal = page.dataset.normal === "true";
function callNormal(): void {
  if (!editable()) return;
  normal = !normal;
  press("normal", normal);
  changed();
}

function review(state: "draft" | "signed"): object {
  const answers = new Map(findings.filter((f) => f.dataset.answer).map((f) => [f.dataset.finding!, f.dataset.answer!]));
  for (const item of all("[data-added]")) answers.set(item.dataset.added!, "added");
  return {
    state,
    findings: [...answers].map(([finding, answer]) => ({ finding, answer })),
    model_verdict: verdict || null,
    normal,
    note: find<HTMLTextAreaElement>("#note")?.value ?? "",
  };
}

/** What the reader sees and no model named. A finding that a model did name is answered there instead. */
function add(words: string): void {
  const finding = words.trim();
  if (!finding || !editable()) return;
  const named = findings.find((other) => other.dataset.finding!.toLowerCase() === finding.toLowerCase());
  if (named) {
    select(named);
    say(`${named.dataset.finding} is in the list above: answer it there.`);
    return;
  }
  if (all("[data-added]").some((item) => item.dataset.added!.toLowerCase() === finding.toLowerCase())) return;
  const item = document.createElement("li");
  item.dataset.added = finding;
  const button = document.createElement("button");
  button.type = "button";
  button.dataset.remove = "";
  button.textContent = "×";
  button.setAttribute("aria-label", `take back ${finding}`);
  item.append(button, ` ${finding}`);
  find("#added")!.append(item);
  changed();
}

/** Answers are kept as a draft soon after each change, one request at a time, so that a closed tab loses nothing. */
let timer = 0;
let saving: Promise<void> = Promise.resolve();
function changed(): void {
  armed = false;
  say("");
  clearTimeout(timer);
  timer = window.setTimeout(save, 600);
}

function save(): void {
  clearTimeout(timer);
  timer = 0;
  saving = saving.then(async () => {
    if (!editable()) return;
    try {
      await send(`/api/v1/studies/${study}/reviews`, review("draft"));
      find("#kept")!.textContent = "draft kept";
    } catch (error) {
      say(`Draft not kept: ${(error as Error).message}`);
    }
  });
}

/** Sign; a reading without a single word of the reader needs a second Enter, so that no stray key signs a study. */
let armed = false;
async function sign(): Promise<void> {
  if (!editable()) return;
  const touched = findings.some((finding) => finding.dataset.answer) || verdict !== "" || normal || find("[data-added]") !== null;
  if (!touched && !armed) {
    armed = true;
    say("Nothing answered yet. Press Enter again to sign without an answer, Esc to go back.");
    return;
  }
  clearTimeout(timer);
  await saving;
  try {
    await send(`/api/v1/studies/${study}/reviews`, review("signed"));
  } catch (error) {
    say(`Not signed: ${(error as Error).message}`);
    return;
  }
  page.dataset.signed = "true";
  for (const control of all<HTMLButtonElement>(".panel button:not([data-always]), .panel textarea")) control.disabled = true;
  find("#kept")!.textContent = "signed";
  say("Signed. Tab or n opens the next study.");
}

function next(): void {
  if (timer) save();
  void saving.then(() => find<HTMLAnchorElement>("#next")!.click());
}

// ------------------------------------------------------------------ keys and buttons

const ACTIONS: Record<string, () => unknown> = {
  invert: () => viewer?.invert(),
  reset,
  "zoom-in": () => viewer?.zoomBy(1.25),
  "zoom-out": () => viewer?.zoomBy(0.8),
  heatmap: () => {
    heat = !heat;
    if (!selected()) select(findings[0]);
    return paint();
  },
  right: () => judge("right"),
  wrong: () => judge("wrong"),
  normal: callNormal,
  sign,
};

const KEYS: Record<string, () => unknown> = {
  i: ACTIONS.invert!,
  r: reset,
  "+": ACTIONS["zoom-in"]!,
  "=": ACTIONS["zoom-in"]!,
  "-": ACTIONS["zoom-out"]!,
  "1": () => preset("original"),
  "2": () => preset("lungs"),
  "3": () => preset("mediastinum"),
  h: ACTIONS.heatmap!,
  j: () => step(1),
  ArrowDown: () => step(1),
  k: () => step(-1),
  ArrowUp: () => step(-1),
  "[": () => nextImage(-1),
  "]": () => nextImage(1),
  a: () => answer(selected(), "agree"),
  d: () => answer(selected(), "disagree"),
  u: () => answer(selected(), "unsure"),
  y: ACTIONS.right!,
  x: ACTIONS.wrong!,
  "0": callNormal,
  m: () => find<HTMLTextAreaElement>("#note")?.focus(),
  f: () => find<HTMLInputElement>("#another")?.focus(),
  n: next,
  Enter: sign,
  w: () => find<HTMLAnchorElement>("#back")!.click(),
  g: () => {
    if (timer) save();
    void saving.then(() => location.reload());
  },
  Escape: () => {
    armed = false;
    say("");
  },
};

document.addEventListener("keydown", (event) => {
  const target = event.target as HTMLElement;
  if (event.key === "Escape" && target.matches("textarea, input")) target.blur();
  if (taken(event)) return;
  // Tab is next only while nothing has the focus; Shift+Tab always goes into the page's controls.
  const freeTab = event.key === "Tab" && !event.shiftKey && target === document.body;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const action = freeTab ? next : KEYS[key];
  if (!action) return;
  event.preventDefault();
  void action();
});

document.addEventListener("click", (event) => {
  const target = event.target as HTMLElement;
  const button = target.closest<HTMLButtonElement>("button");
  const finding = target.closest<HTMLElement>(".finding");
  if (finding) select(finding);
  if (!button || button.disabled) return;
  const { action, image, window: name, answerWord } = button.dataset;
  if (action) void ACTIONS[action]?.();
  if (image) void show(image);
  if (name) preset(name as keyof ReturnType<typeof presets>);
  if (answerWord) answer(finding, answerWord as Answer);
  if (button.dataset.remove !== undefined) {
    button.closest("li")!.remove();
    changed();
  }
  // Keys speak to the page again after a click.
  button.blur();
});

find("#note")?.addEventListener("input", changed);
find("#add-finding")?.addEventListener("submit", (event) => {
  event.preventDefault();
  const field = find<HTMLInputElement>("#another")!;
  add(field.value);
  field.value = "";
  field.blur();
});
find<HTMLInputElement>("#opacity")?.addEventListener("input", (event) => {
  if (!overlay) return;
  overlay.opacity = Number((event.target as HTMLInputElement).value) / 100;
  overlay.draw();
});

// ------------------------------------------------------------------ claim

/** While the study is open it is claimed, so that no two read it; a claim runs out, hence the repetition. */
let holding = false;
async function hold(): Promise<void> {
  if (!editable() || document.hidden) return;
  try {
    await send(`/api/v1/studies/${study}/claim`, null);
    holding = true;
  } catch (error) {
    page.dataset.review = "false";
    say(`${(error as Error).message}. You can look; answers are not kept.`);
  }
}

window.addEventListener("pagehide", () => {
  if (timer) save();
  // A request that outlives the page; what was answered stays as a draft.
  if (holding && page.dataset.signed !== "true") void send(`/api/v1/studies/${study}/claim`, null, "DELETE").catch(() => null);
});

/** What arrives while the study is open is told, and shown when the reader asks for it: the page never changes under the eye. */
function follow(): void {
  const events = new EventSource(`/events?after=${page.dataset.after ?? 0}`);
  const tell = (event: MessageEvent<string>) => {
    if ((JSON.parse(event.data) as { study?: string }).study === study) say("There is something new about this study: g shows it.");
  };
  const kinds = ["instance.stored", "instance.corrected", "instance.rejected", "instance.restored", "instance.quarantined",
    "study.corrected", "study.merged", "study.analysed", "study.refused"]; // prettier-ignore
  for (const kind of kinds) events.addEventListener(kind, tell);
  window.addEventListener("pagehide", () => events.close());
}

const ranked = findings.find((finding) => finding.dataset.finding === page.dataset.ranked);

start();
void hold();
follow();
setInterval(hold, 5 * 60_000);
drawScale();
select(ranked ?? findings[0]);
const images = all("[data-image]").map((button) => button.dataset.image!);
if (images.length) {
  try {
    viewer = Viewer.start(find<HTMLDivElement>("#viewport")!);
    overlay = new Overlay(viewer, find<HTMLCanvasElement>("#overlay")!);
    viewer.onRendered(status);
    void show(images[0]!).then(() => Promise.all(images.slice(1).map((image) => fetchFrame(image).catch(() => null))));
  } catch (error) {
    find("#failure")!.textContent = `The viewer cannot start: ${(error as Error).message}`;
    find("#failure")!.hidden = false;
  }
}
