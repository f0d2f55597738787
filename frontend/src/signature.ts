/** Signing, taking the signature back, adding to it, and the own call of a study that is read blind. */
import type { Answers } from "./answers";
import type { Draft } from "./draft";
import type { Content } from "./kept";
import { _ } from "./language";
import { detail, Refusal, send } from "./page";

interface Of {
  page: HTMLElement;
  answers: Answers;
  draft: Draft;
  seen: Set<string>;
  say: (words: string) => void;
  /** Show images that arrived unseen. */
  bring: (images: string[]) => Promise<void>;
  next: () => void;
  signed: () => void;
}

/** The signature before, which can still be taken back from the next study. */
const LAST = "wetread-signed";

export class Signature {
  /** A reading without a single word of the reader needs a second Enter, so that no stray key signs a study. */
  armed = false;
  private busy = false;

  constructor(private readonly of: Of) {
    const { page, say } = of;
    page.addEventListener("addendum", (event) => this.addendum((event as CustomEvent<Content>).detail));
    const last = this.last();
    if (last && last.study !== page.dataset.study && !page.querySelector("#message")!.textContent) {
      say(_("The study before is signed; undo (z) takes that back for a moment."));
    }
  }

  private get locked(): boolean {
    return this.of.page.dataset.signed === "true";
  }

  async sign(): Promise<void> {
    const { page, next } = this.of;
    if (this.busy) return;
    if (this.locked) return next();
    if (page.dataset.review !== "true") return;
    this.busy = true;
    try {
      await (page.dataset.blind === "true" ? this.ownCall() : this.seal());
    } finally {
      this.busy = false;
    }
  }

  private async seal(): Promise<void> {
    const { page, answers, draft, seen, say, bring } = this.of;
    const note = page.dataset.parent ? answers.content().note : "";
    if (!answers.touched && !note && !this.armed) {
      this.armed = true;
      return say(_("Nothing answered yet. Press Enter again to sign without an answer, Esc to go back."));
    }
    let review: { review: string };
    try {
      await draft.settle();
      const body = { ...answers.content(), state: "signed", seen: [...seen], ...draft.version };
      review = (await send(`/api/v1/studies/${page.dataset.study!}/reviews`, body)) as { review: string };
    } catch (error) {
      this.armed = false;
      draft.changed(); // what was typed last is kept all the same
      const problem = error instanceof Refusal && error.status === 409 ? (error.answer as { images?: string[] } | null) : null;
      if (problem?.images?.length) await bring(problem.images);
      else if (error instanceof Refusal && /signed already/.test(detail(error.answer)) && (await this.isOurs())) location.reload();
      else say(_("Not signed: %(reason)s", { reason: (error as Error).message }));
      return;
    }
    page.dataset.newest = review.review;
    page.dataset.parent = "";
    answers.settled();
    this.lock(true);
    draft.done(_("signed"));
    const seconds = Number(page.dataset.undo ?? 0);
    const until = Date.now() + seconds * 1000;
    page.dataset.undoUntil = new Date(until).toISOString();
    sessionStorage.setItem(LAST, JSON.stringify({ study: page.dataset.study, until }));
    const back = seconds ? _("For %(seconds)s s, undo (z) takes it back.", { seconds }) : "";
    say([_("Signed."), back, _("Enter, Tab or n opens the next study.")].filter(Boolean).join(" "));
    this.of.signed();
  }

  /** Whether a signature arrived though its answer did not. */
  private async isOurs(): Promise<boolean> {
    const { study, reader } = this.of.page.dataset;
    const found = (await send(`/api/v1/studies/${study!}`, null, "GET").catch(() => null)) as { review?: { reader: string } | null } | null;
    if (found?.review?.reader !== reader) return false;
    this.of.draft.done(_("signed"));
    return true;
  }

  private lock(on: boolean): void {
    const { page } = this.of;
    page.dataset.signed = String(on);
    for (const control of page.querySelectorAll<HTMLButtonElement>(".panel button:not([data-always]), .panel textarea, .panel input")) control.disabled = on;
    page.querySelector<HTMLElement>('[data-action="study.addendum"]')!.hidden = !on;
  }

  // ---------------------------------------------------------------- own call

  /** What the reader sees, before the model's word is shown. */
  private async ownCall(): Promise<void> {
    const { page, answers, draft, say } = this.of;
    const { normal } = answers.content();
    if (!normal && !answers.added.length && !this.armed) {
      this.armed = true;
      return say(_("Say first what you see: 0 normal, f a finding. Press Enter again for: not normal, and no finding to name."));
    }
    try {
      if (!(await draft.settle())) return;
      await send(`/api/v1/studies/${page.dataset.study!}/own-call`, { normal, findings: answers.added });
    } catch (error) {
      this.armed = false;
      return say(_("Not recorded: %(reason)s", { reason: (error as Error).message }));
    }
    location.reload();
  }

  // ---------------------------------------------------------------- afterwards

  /** Add to a signed study: from what was said before, with a note of its own. */
  addendum(from?: Content): void {
    const { page, answers, draft, say } = this.of;
    const { newest, review } = page.dataset;
    if (!this.locked || !newest || review !== "true") return;
    page.dataset.parent = newest;
    this.lock(false);
    answers.put(from ?? { ...answers.content(), note: "" });
    if (from) draft.changed();
    say(_("Addendum: change what is to be changed, say why, and sign. What was signed stays as it was."));
    page.querySelector<HTMLTextAreaElement>("#note")?.focus();
  }

  /** Take the last answer back, else the signature; true when there was one. */
  async undo(): Promise<void> {
    const { page, answers, say } = this.of;
    if (answers.undo()) return;
    const { study, undoUntil } = page.dataset;
    if (this.locked && undoUntil && Date.parse(undoUntil) > Date.now()) return this.takeBack(study!);
    const last = this.last();
    if (last) return this.takeBack(last.study);
    say(this.locked ? _("Signed too long ago to take it back; t writes an addendum.") : _("Nothing to undo."));
  }

  private last(): { study: string; until: number } | null {
    const last = JSON.parse(sessionStorage.getItem(LAST) ?? "null") as { study: string; until: number } | null;
    return last && last.until > Date.now() ? last : null;
  }

  private async takeBack(study: string): Promise<void> {
    try {
      await send(`/api/v1/studies/${study}/signature`, null, "DELETE");
    } catch (error) {
      return this.of.say(_("Not taken back: %(reason)s", { reason: (error as Error).message }));
    }
    sessionStorage.removeItem(LAST);
    location.assign(`/studies/${study}`);
  }
}
