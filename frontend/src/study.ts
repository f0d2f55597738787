/** The study page: original first, findings by key, heatmap on H, sign on Enter, next on n or Tab. */
import { on, run, type ActionId } from "./keys";
import { Refusal, send, start } from "./page";
import { Picture } from "./picture";

type Answer = "agree" | "disagree" | "unsure";

const page = document.body;
const study = page.dataset.study!;
const find = <T extends HTMLElement>(selector: string) => document.querySelector<T>(selector);
const all = <T extends HTMLElement>(selector: string) => [...document.querySelectorAll<T>(selector)];

function say(words: string): void {
  find("#message")!.textContent = words;
}

// ------------------------------------------------------------------ picture

const picture = new Picture();

function press(action: string, on: boolean): void {
  for (const button of all(`[data-action="${action}"]`)) button.setAttribute("aria-pressed", String(on));
}

/** Images that the reader had before them: those of the page as it was opened, and each that was shown since. */
const seen = new Set(all<HTMLButtonElement>("[data-image]:enabled").map((button) => button.dataset.image!));

async function show(image: string): Promise<void> {
  try {
    await picture.show(image);
  } finally {
    seen.add(image); // also when it cannot be drawn: then the page says so
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
  picture.choose(finding.dataset as { model: string; finding: string });
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
    seen: [...seen],
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
  armed = refused = false;
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
let refused = false; // for an image that arrived unseen; the page says so until the reader goes on
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
    armed = false;
    save(); // what was typed last is kept all the same
    await saving;
    const problem = error instanceof Refusal && error.status === 409 ? (error.answer as { images?: string[] } | null) : null;
    if (problem?.images?.length) await bring(problem.images);
    else say(`Not signed: ${(error as Error).message}`);
    return;
  }
  refused = false;
  page.dataset.signed = "true";
  for (const control of all<HTMLButtonElement>(".panel button:not([data-always]), .panel textarea")) control.disabled = true;
  find("#kept")!.textContent = "signed";
  say("Signed. Tab or n opens the next study.");
}

/** Put what arrived unseen beside the other images and show the first of it; all that was typed and answered stays. */
async function bring(unseen: string[]): Promise<void> {
  refused = true;
  for (const image of unseen) {
    const there = find<HTMLButtonElement>(`[data-image="${CSS.escape(image)}"]`);
    const button = there ?? document.createElement("button");
    button.disabled = false;
    if (there) continue;
    const others = all("[data-image]");
    button.type = "button";
    button.dataset.image = image;
    button.title = "arrived after this page was opened";
    button.textContent = `${others.length + 1} new`;
    if (others.length) others.at(-1)!.after(button);
    else find(".tools")!.prepend(button);
  }
  const count = unseen.length === 1 ? "An image" : `${unseen.length} images`;
  say(`Not signed: ${count} arrived that you had not seen. Look ([ and ] change the image), then sign again; g shows what the model says.`);
  await show(unseen[0]!);
}

function next(): void {
  if (timer) save();
  void saving.then(() => find<HTMLAnchorElement>("#next")!.click());
}

// ------------------------------------------------------------------ keys and buttons

const ACTIONS: Record<string, () => unknown> = {
  right: () => judge("right"),
  wrong: () => judge("wrong"),
  normal: callNormal,
  sign,
};

on({
  "study.finding-next": () => step(1),
  "study.finding-previous": () => step(-1),
  "study.agree": () => answer(selected(), "agree"),
  "study.disagree": () => answer(selected(), "disagree"),
  "study.unsure": () => answer(selected(), "unsure"),
  "study.right": ACTIONS.right!,
  "study.wrong": ACTIONS.wrong!,
  "study.normal": callNormal,
  "study.note": () => find<HTMLTextAreaElement>("#note")?.focus(),
  "study.add": () => find<HTMLInputElement>("#another")?.focus(),
  "study.next": next,
  "study.sign": sign,
  "study.worklist": () => find<HTMLAnchorElement>("#back")!.click(),
  "study.refresh": () => {
    if (timer) save();
    void saving.then(() => location.reload());
  },
  "study.cancel": () => {
    armed = false;
    say("");
  },
});

document.addEventListener("click", (event) => {
  const target = event.target as HTMLElement;
  const button = target.closest<HTMLButtonElement>("button");
  const finding = target.closest<HTMLElement>(".finding");
  if (finding) select(finding);
  if (!button || button.disabled) return;
  const { action, image, answerWord } = button.dataset;
  if (action && !run(action as ActionId)) void ACTIONS[action]?.();
  if (image) void show(image);
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
    if ((JSON.parse(event.data) as { study?: string }).study === study && !refused) say("There is something new about this study: g shows it.");
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
select(ranked ?? findings[0]);
if (picture.images.length) void show(picture.images[0]!).then(() => picture.ahead());
