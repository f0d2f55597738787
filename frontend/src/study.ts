/** The study page: original first, findings by key, heatmap on H, sign on Enter, next on n or Tab. */
import { Answers } from "./answers";
import { Claim } from "./claim";
import { communication, CRITICAL } from "./communication";
import { Draft } from "./draft";
import type { Answer } from "./kept";
import { on, run, type ActionId } from "./keys";
import { _, ngettext } from "./language";
import { start } from "./page";
import { Picture } from "./picture";
import { refusing } from "./refusing";
import { Signature } from "./signature";
import { ahead, turn, turns } from "./turn";

/** What happens to a study elsewhere that its reader is told of. */
const KINDS = ["instance.stored", "instance.corrected", "instance.rejected", "instance.restored", "instance.quarantined",
  "study.corrected", "study.merged", "study.analysed", "study.refused"]; // prettier-ignore

/** Run the page of one study until it is left. */
function open(leaving: AbortSignal): void {
  const page = document.body;
  const study = page.dataset.study!;
  const find = <T extends HTMLElement>(selector: string) => page.querySelector<T>(selector);
  const all = <T extends HTMLElement>(selector: string) => [...page.querySelectorAll<T>(selector)];
  const say = (words: string) => void (find("#message")!.textContent = words);
  const editable = () => page.dataset.signed !== "true" && page.dataset.review === "true";

  const picture = new Picture();
  /** Images that the reader had before them: those of the page as it was opened, and each that was shown since. */
  const seen = new Set(all<HTMLButtonElement>("[data-image]:enabled").map((button) => button.dataset.image!));

  async function show(image: string): Promise<void> {
    try {
      await picture.show(image);
    } finally {
      seen.add(image); // also when it cannot be drawn: then the page says so
    }
  }

  // ------------------------------------------------------------------ the review

  let refused = false; // for an image that arrived unseen; the page says so until the reader goes on
  function changed(): void {
    signature.armed = refused = false;
    say("");
    draft.changed();
  }

  const answers = new Answers({ page, editable, changed, say, chosen: (finding) => picture.choose(finding) });
  const draft = new Draft({ page, editable, say, leaving, content: () => answers.content(), put: (content) => answers.put(content) });
  const signed = () => void ahead();
  const signature = new Signature({ page, answers, draft, seen, say, bring, next, signed });
  const claim = new Claim(page, editable, say, leaving);
  const refresh = () => void draft.settle().then(() => location.reload());
  refusing(() => picture.image, refresh);
  communication(leaving);

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
      button.title = _("arrived after this page was opened");
      button.textContent = _("%(number)s new", { number: others.length + 1 });
      if (others.length) others.at(-1)!.after(button);
      else find(".tools")!.prepend(button);
    }
    const came = ngettext("Not signed: An image arrived that you had not seen.", "Not signed: %(num)s images arrived that you had not seen.", unseen.length);
    say(`${came} ${_("Look ([ and ] change the image), then sign again; g shows what the model says.")}`);
    await show(unseen[0]!);
  }

  function next(): void {
    void draft.settle().then(turn);
  }

  // ------------------------------------------------------------------ keys and buttons

  const ACTIONS: Record<string, () => unknown> = {
    right: () => answers.judge("right"),
    wrong: () => answers.judge("wrong"),
    normal: () => answers.callNormal(),
    sign: () => signature.sign(),
  };

  on({
    "study.finding-next": () => answers.step(1),
    "study.finding-previous": () => answers.step(-1),
    "study.agree": () => answers.answer(answers.selected, "agree"),
    "study.disagree": () => answers.answer(answers.selected, "disagree"),
    "study.unsure": () => answers.answer(answers.selected, "unsure"),
    "study.right": ACTIONS.right!,
    "study.wrong": ACTIONS.wrong!,
    "study.normal": ACTIONS.normal!,
    "study.note": () => find<HTMLTextAreaElement>("#note")?.focus(),
    "study.add": () => find<HTMLInputElement>("#another")?.focus(),
    "study.next": next,
    "study.sign": ACTIONS.sign!,
    "study.undo": () => signature.undo(),
    "study.addendum": () => signature.addendum(),
    "study.worklist": () => find<HTMLAnchorElement>("#back")!.click(),
    "study.refresh": refresh,
    "study.cancel": () => {
      signature.armed = false;
      say("");
    },
  });

  page.addEventListener("click", (event) => {
    const target = event.target as HTMLElement;
    const button = target.closest<HTMLButtonElement>("button");
    const finding = target.closest<HTMLElement>(".finding");
    if (finding) answers.select(finding);
    if (!button || button.disabled || button.closest("dialog")) return;
    const { action, image, answerWord, remove } = button.dataset;
    if (action && !run(action as ActionId)) void ACTIONS[action]?.();
    if (image) void show(image);
    if (answerWord) answers.answer(finding, answerWord as Answer);
    if (remove !== undefined) answers.remove(button.closest("li")!);
    // Keys speak to the page again after a click.
    button.blur();
  });

  find("#note")?.addEventListener("input", changed);
  find("#add-finding")?.addEventListener("submit", (event) => {
    event.preventDefault();
    const field = find<HTMLInputElement>("#another")!;
    answers.add(field.value);
    field.value = "";
    field.blur();
  });

  // ------------------------------------------------------------------ coming and going

  function leave(): void {
    // What was answered stays: as a draft, and in this browser until the server has it.
    if (draft.unsaved) draft.save();
    claim.release();
  }
  window.addEventListener("pagehide", leave, { signal: leaving });
  leaving.addEventListener("abort", leave);

  /** What arrives while the study is open is told, and shown when the reader asks for it: the page never changes under the eye. */
  function follow(): void {
    const events = new EventSource(`/events?after=${page.dataset.after ?? 0}`);
    const tell = (event: MessageEvent<string>) => {
      if ((JSON.parse(event.data) as { study?: string }).study === study && !refused) say(_("There is something new about this study: g shows it."));
    };
    for (const kind of KINDS) events.addEventListener(kind, tell);
    for (const deed of ["raised", "acknowledged", "communicated", "escalated", "closed"])
      events.addEventListener(`critical.${deed}`, () => document.dispatchEvent(new Event(CRITICAL)));
    events.addEventListener("review.withdrawn", () => document.dispatchEvent(new Event(CRITICAL)));
    window.addEventListener("pagehide", () => events.close(), { signal: leaving });
    leaving.addEventListener("abort", () => events.close());
  }

  start();
  void claim.hold();
  follow();
  draft.restore();
  if (picture.images.length) void show(picture.images[0]!).then(() => picture.ahead()).then(() => (leaving.aborted ? undefined : ahead()));
}

turns(open);
