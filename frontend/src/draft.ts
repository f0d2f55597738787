/**
 * The draft: kept in this browser at each change and on the server soon after. A lost connection, a restart of the
 * server or a login that ran out loses no word: it is tried again until the server has it. What the server has from
 * elsewhere is never written over: both are shown, and the reader keeps one.
 */
import * as kept from "./kept";
import type { Content } from "./kept";
import { _ } from "./language";
import { clock, Refusal, send } from "./page";

interface Of {
  page: HTMLElement;
  editable: () => boolean;
  content: () => Content;
  put: (content: Content) => void;
  say: (words: string) => void;
  leaving: AbortSignal;
}

interface Saved extends Content {
  review: string;
  reader: string;
  state: string;
  revision: number;
}

/** From which draft a choice goes on; whether it is the unsaved one that the page shows; whether the study is signed. */
interface Next {
  revision: number;
  shown: boolean;
  locked: boolean;
}

const SOON_MS = 600;
const LONGEST_MS = 10_000;

/** A name for this page; `crypto.randomUUID` is not there without TLS. */
const name = () => [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");

export class Draft {
  private revision: number;
  private readonly writer = name();
  private changes = 0;
  /** The server does not have it all. */
  unsaved = false;
  private timer = 0;
  private tries = 0;
  private saving: Promise<void> = Promise.resolve();
  /** The reader has to choose between two versions first. */
  private torn = false;

  constructor(private readonly of: Of) {
    this.revision = Number(of.page.dataset.revision ?? 0);
    window.addEventListener("online", () => this.unsaved && this.save(), { signal: of.leaving });
    of.page.querySelector("#versions")?.addEventListener("click", (event) => {
      const choice = (event.target as HTMLElement).closest<HTMLElement>("[data-version]")?.dataset.version;
      if (choice) this.choose(choice === "other");
    });
  }

  private get url(): string {
    return `/api/v1/studies/${this.of.page.dataset.study!}/reviews`;
  }

  /** What every request about this draft says of it. */
  get version(): object {
    const { parent } = this.of.page.dataset;
    return { revision: this.revision, writer: this.writer, ...(parent ? { parent } : {}) };
  }

  // ---------------------------------------------------------------- saving

  /** Something changed: keep it here at once, and on the server soon. */
  changed(): void {
    this.changes += 1;
    this.unsaved = true;
    this.keep();
    clearTimeout(this.timer);
    this.timer = window.setTimeout(() => this.save(), SOON_MS);
  }

  private keep(): void {
    const { page } = this.of;
    const { revision, writer } = this;
    const there = { content: this.of.content(), revision, writer, parent: page.dataset.parent ?? "", at: new Date().toISOString() };
    if (!kept.write(page, there)) this.tell(_("Only on the server: this browser keeps nothing"));
  }

  /** Save now, one request at a time. */
  save(): void {
    clearTimeout(this.timer);
    this.timer = 0;
    this.saving = this.saving.then(() => this.push());
  }

  /** Wait until what was typed so far is with the server, or cannot get there now; tell whether it is. */
  async settle(): Promise<boolean> {
    if (this.timer || this.unsaved) this.save();
    await this.saving;
    return !this.unsaved;
  }

  private async push(): Promise<void> {
    const { content, editable, leaving } = this.of;
    if (!editable() || this.torn || !this.unsaved) return;
    const { changes } = this;
    try {
      const saved = (await send(this.url, { ...content(), state: "draft", ...this.version })) as Saved;
      this.revision = saved.revision;
      this.tries = 0;
      if (changes !== this.changes) return this.keep(); // typed meanwhile: the next one is on its way
      this.forget();
      this.tell(_("Saved"));
    } catch (error) {
      if (error instanceof Refusal && error.status === 409 && "revision" in ((error.answer as object | null) ?? {})) {
        await this.compare();
      } else if (this.passing(error) && !leaving.aborted) {
        clearTimeout(this.timer);
        this.timer = window.setTimeout(() => this.save(), Math.min(1000 * 2 ** this.tries++, LONGEST_MS));
      }
    }
  }

  /** Say why something is not saved; return whether that may pass by itself. */
  passing(error: unknown): boolean {
    if (error instanceof Refusal && error.status === 401) {
      this.warn(`${_("Not saved: you are logged out. Your words are kept here.")} `);
      const way = document.createElement("a");
      way.href = location.pathname;
      way.textContent = _("Log in again");
      this.line.append(way);
      return true; // somebody may log in in another tab
    }
    if (error instanceof Refusal && error.status < 500 && error.status !== 408 && error.status !== 429) {
      this.warn(_("Not saved: %(reason)s. Your words are kept in this browser.", { reason: error.message }));
      return false;
    }
    this.warn(_("Not saved: connection lost, trying again"));
    return true;
  }

  private get line(): HTMLElement {
    return this.of.page.querySelector<HTMLElement>("#kept")!;
  }

  private tell(words: string, alarm = false): void {
    if (this.line.textContent !== words) this.line.textContent = words;
    this.line.classList.toggle("alarm", alarm);
  }

  /** Tell that something is not saved. */
  private warn(words: string): void {
    this.tell(words, true);
  }

  /** The server has it all, signed or as an own call: nothing is to be kept here any more. */
  done(words: string): void {
    clearTimeout(this.timer);
    this.timer = 0;
    this.forget();
    this.tell(words);
  }

  /** The server has it all; what another tab typed meanwhile stays. */
  private forget(): void {
    this.unsaved = false;
    if (kept.read(this.of.page)?.writer === this.writer) kept.remove(this.of.page);
  }

  // ---------------------------------------------------------------- two versions

  /** Bring back what was typed here and did not reach the server. */
  restore(): void {
    const { page, content, put, editable, say } = this.of;
    const words = kept.read(page);
    if (!words) return;
    if (kept.same(words.content, content())) return kept.remove(page);
    // Also what the page before has saved, without learning that it had, is what these words go on from.
    const own = (words.revision === this.revision || words.writer === page.dataset.writer) && words.parent === (page.dataset.parent ?? "");
    if (own && editable()) {
      put(words.content);
      say(_("What you typed before, and what was not saved then, is here again."));
      this.changed();
      return;
    }
    const when = clock(new Date(words.at));
    const locked = page.dataset.signed === "true";
    this.show(
      locked
        ? _("Typed by you at %(when)s and not saved; the study is signed by now", { when })
        : _("Typed by you at %(when)s and not saved; what you see above was saved later", { when }),
      words.content,
      [_("Take what I typed"), locked ? _("Throw it away") : _("Keep what was saved")],
      { revision: this.revision, shown: false, locked },
    );
  }

  /** The server has a newer draft than the one that this page went on from: show both. */
  private async compare(): Promise<void> {
    this.torn = true;
    const { study } = this.of.page.dataset;
    try {
      const { reviews } = (await send(`/api/v1/studies/${study!}`, null, "GET")) as { reviews: Saved[] };
      const newer = reviews.filter(({ state, reader }) => state === "draft" && reader === this.of.page.dataset.reader).at(-1);
      if (!newer) throw new Error(_("it is gone by now; reload the page"));
      this.warn(_("Not saved: you saved something else elsewhere"));
      this.show(_("Saved by you elsewhere, meanwhile"), newer, [_("Take that"), _("Keep what I have here")], {
        revision: newer.revision, shown: true, locked: false,
      }); // prettier-ignore
    } catch (error) {
      this.torn = false;
      if (this.passing(error)) this.timer = window.setTimeout(() => this.save(), LONGEST_MS);
    }
  }

  private other: { content: Content; next: Next } | null = null;

  private show(title: string, content: Content, words: [string, string], next: Next): void {
    this.torn = true;
    this.other = { content, next };
    const box = this.of.page.querySelector<HTMLElement>("#versions")!;
    box.querySelector("h2")!.textContent = title;
    box.querySelector("ul")!.replaceChildren(
      ...kept.lines(content).map((line) => {
        const item = document.createElement("li");
        item.textContent = line;
        return item;
      }),
    );
    box.querySelectorAll("button").forEach((button, index) => (button.textContent = words[index]!));
    box.hidden = false;
    box.scrollIntoView({ block: "nearest" });
  }

  private choose(other: boolean): void {
    const { page, put, say } = this.of;
    if (!this.other) return;
    const { content, next } = this.other;
    page.querySelector<HTMLElement>("#versions")!.hidden = true;
    this.torn = false;
    this.other = null;
    this.revision = next.revision;
    if (next.locked && other) {
      kept.remove(page);
      page.dispatchEvent(new CustomEvent<Content>("addendum", { detail: content }));
      return;
    }
    const mine = other !== next.shown; // whether what was not saved is kept
    if (other) put(content);
    if (mine) this.changed();
    else {
      clearTimeout(this.timer);
      this.unsaved = false;
      kept.remove(page);
      say("");
      this.tell(_("Saved"));
    }
  }
}
