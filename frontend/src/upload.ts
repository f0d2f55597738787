/**
 * Adding studies: files, folders, zips and addresses, each in a request of its own, so that each has its own progress and
 * answer and one refusal does not hold up the rest.
 *
 * A lost connection stops nothing for good: what was under way is sent again once the server answers. To send the same
 * bytes twice is harmless, the server says that it has them. Files cannot outlive their page; leaving it is asked about.
 */

import { _, told } from "./language";

const AT_ONCE = 3;
/** Waits before it is tried again, in s; the last one is repeated. */
const WAITS = [1, 2, 4, 8, 15];
const PARTED = "wetread-uploads";
/** Lines of what was received that are kept; trouble is kept for ever. */
const KEPT = 300;
/** Answers that do not mean no: too busy, restarting, a proxy without its server. */
const LATER = new Set([0, 408, 429, 502, 503, 504]);

type State = "waiting" | "sending" | "received" | "partly" | "refused" | "failed" | "cancelled";
const WORDS: Record<State, string> = {
  waiting: _("waiting"), sending: _("sending …"), received: _("received"), partly: _("in part"), refused: _("refused"), failed: _("not received"),
  cancelled: _("cancelled"),
}; // prettier-ignore
const ENDED = new Set<State>(["received", "partly", "refused", "failed", "cancelled"]);

interface Answer {
  studies?: { study: string; new?: boolean }[];
  images?: { file: string; new?: boolean; quarantined?: boolean }[];
  refused?: { file: string; detail: string }[];
  skipped?: string[];
}

/** One request to come: a file, or the address of one. */
class Item {
  state: State = "waiting";
  tries = 0;
  request: XMLHttpRequest | null = null;
  readonly line = document.createElement("li");
  private readonly words = document.createElement("span");
  private readonly bar = document.createElement("progress");
  private readonly stop = document.createElement("button");

  constructor(
    readonly name: string,
    readonly form: () => FormData,
    leave: (item: Item) => void,
  ) {
    this.stop.type = "button";
    this.stop.textContent = "×";
    this.stop.setAttribute("aria-label", _("cancel %(name)s", { name }));
    this.stop.addEventListener("click", () => leave(this));
    this.bar.max = 1;
    this.bar.setAttribute("aria-label", name);
    this.line.append(this.words, this.bar, this.stop);
    this.tell("waiting");
  }

  /** Say how far it is; the bar is there while it is sent. */
  tell(state: State, words = "", part?: number): void {
    this.state = state;
    this.line.dataset.state = state;
    const shown = `${this.name}: ${words || WORDS[state]}`;
    if (this.words.textContent !== shown) this.words.textContent = shown;
    this.bar.hidden = state !== "sending";
    if (part === undefined) this.bar.removeAttribute("value");
    else this.bar.value = part;
    this.stop.hidden = ENDED.has(state);
  }

  /** Say what became of it, with ways to its studies and the refusals of what was in it. */
  end(state: State, words: string, answer: Answer = {}): void {
    this.tell(state, words);
    const [first, ...more] = answer.studies ?? [];
    if (first) {
      const link = this.link(first.study, `${this.name}: ${words}`);
      this.words.replaceChildren(link);
      this.line.append(...more.slice(0, 9).flatMap(({ study }, number) => [" ", this.link(study, String(number + 2))]));
    }
    for (const refusal of answer.refused ?? []) {
      const line = document.createElement("p");
      line.textContent = _("%(what)s: refused: %(reason)s", { what: refusal.file, reason: told(refusal.detail) });
      this.line.append(line);
    }
  }

  /** Begin anew: what was said before no longer holds. */
  again(): void {
    this.tries = 0;
    this.line.replaceChildren(this.words, this.bar, this.stop);
    this.tell("waiting");
  }

  private link(study: string, words: string): HTMLAnchorElement {
    const link = document.createElement("a");
    link.href = `/studies/${encodeURIComponent(study)}`;
    link.textContent = words;
    return link;
  }
}

class Uploads {
  private readonly items: Item[] = [];
  private paused = 0; // the timer that ends a pause
  private lost = 0; // times in a row that the server did not answer
  private drawing = 0;
  private before = "";

  constructor(
    private readonly list: HTMLElement,
    private readonly summary: HTMLElement,
    private readonly stop: HTMLButtonElement,
    private readonly retry: HTMLButtonElement,
    private readonly clear: HTMLButtonElement,
    private readonly received: () => void,
  ) {
    stop.addEventListener("click", () => {
      // Those that wait first: else each that is cancelled would let the next one go.
      for (const item of this.items) if (item.state === "waiting") item.end("cancelled", _("cancelled"));
      for (const item of this.items) this.leave(item);
    });
    retry.addEventListener("click", () => this.again());
    clear.addEventListener("click", () => this.sweep((item) => ENDED.has(item.state)));
    window.addEventListener("online", () => this.resume());
    window.addEventListener("beforeunload", (event) => {
      if (this.items.some((item) => !ENDED.has(item.state))) event.preventDefault();
    });
    window.addEventListener("pagehide", () => this.part());
    this.recall();
  }

  /** The page goes: leave behind how many were received and how many not, by number only, names may be patients'. */
  private part(): void {
    const left = this.items.filter((item) => !ENDED.has(item.state)).length;
    const done = this.items.filter((item) => item.state === "received" || item.state === "partly").length;
    if (left) sessionStorage.setItem(PARTED, JSON.stringify([done, left]));
  }

  /** Say what became of those of the page before. */
  private recall(): void {
    const parted = sessionStorage.getItem(PARTED);
    sessionStorage.removeItem(PARTED);
    if (!parted) return;
    const [done, left] = JSON.parse(parted) as [number, number];
    this.summary.textContent = _(
      "The page was left while files were sent: %(done)s were received and are kept, %(left)s may be missing. Add them again; what is here already is known.",
      { done, left },
    );
  }

  add(entries: readonly (readonly [string, () => FormData])[]): void {
    const made = entries.map(([name, form]) => new Item(name, form, (item) => this.leave(item)));
    this.items.push(...made);
    this.list.append(...made.map((item) => item.line));
    made[0]?.line.scrollIntoView({ block: "nearest" });
    this.next();
  }

  /** Begin as many as may run at once. */
  private next(): void {
    this.draw();
    if (this.paused) return;
    let running = this.items.filter((item) => item.state === "sending").length;
    // After a silence one goes ahead to see whether the server is back.
    const most = this.lost ? 1 : AT_ONCE;
    for (const item of this.items) {
      if (running >= most) return;
      if (item.state !== "waiting") continue;
      running++;
      this.send(item);
    }
  }

  private send(item: Item): void {
    const request = new XMLHttpRequest();
    item.request = request;
    item.tries++;
    item.tell("sending", _("sending …"), 0);
    request.open("POST", "/api/v1/studies");
    request.setRequestHeader("X-CSRF-Token", document.querySelector<HTMLMetaElement>('meta[name="csrf-token"]')?.content ?? "");
    request.setRequestHeader("Accept", "application/json");
    request.upload.addEventListener("progress", (event) => {
      if (item.request === request && event.lengthComputable) item.tell("sending", _("sending …"), event.loaded / event.total);
    });
    request.upload.addEventListener("load", () => item.request === request && item.tell("sending", _("sent, being stored …")));
    request.addEventListener("loadend", () => item.request === request && this.answered(item, request));
    request.send(item.form());
  }

  private answered(item: Item, request: XMLHttpRequest): void {
    item.request = null;
    const { status } = request;
    const answer = parse(request.responseText);
    if (LATER.has(status)) {
      item.tell("waiting", status ? _("the server is busy; sent again by itself") : _("connection lost; sent again by itself"));
      return this.pause(Number(request.getResponseHeader("Retry-After")));
    }
    this.lost = 0;
    if (status === 201) this.taken(item, answer as Answer);
    else if (status === 401) {
      // Files cannot go along to the login page: whoever logs in elsewhere comes back and goes on.
      item.end("failed", _("not received: you are logged out; log in in another tab, then try again"));
    } else {
      const { detail } = answer as { detail?: string };
      // What the server refuses of a file is about the file; without room, or on an error of its own, it may go later.
      const reason = told(detail ?? "") || _("the server answered %(status)s", { status });
      item.end(status < 500 ? "refused" : "failed", status < 500 ? _("refused: %(reason)s", { reason }) : _("not received: %(reason)s", { reason }));
    }
    this.next();
  }

  private taken(item: Item, answer: Answer): void {
    const [count, refused, skipped] = [answer.images?.length ?? 0, answer.refused?.length ?? 0, answer.skipped?.length ?? 0];
    const known = count > 0 && answer.images!.every((image) => image.new === false);
    let words = known ? _("received before") : _("received");
    if (count + refused + skipped > 1) {
      words = [
        known ? _("%(count)s received before", { count }) : _("%(count)s received", { count }),
        refused && _("%(count)s refused", { count: refused }),
        skipped && _("%(count)s skipped", { count: skipped }),
      ]
        .filter(Boolean)
        .join(", ");
    }
    if (answer.images?.some((image) => image.quarantined)) words += `, ${_("some kept apart")}`;
    item.end(refused ? (count ? "partly" : "refused") : "received", words, answer);
    this.received();
    const fine = this.items.filter((one) => one.state === "received");
    if (fine.length > KEPT) this.hide(fine[fine.length - KEPT - 1]!);
  }

  /** Take the line of one that is done away; it still counts. */
  private hide(item: Item): void {
    item.line.remove();
  }

  private pause(asked: number): void {
    const wait = Math.max(WAITS[Math.min(this.lost, WAITS.length - 1)]!, Number.isFinite(asked) ? Math.min(asked, 60) : 0);
    this.lost++;
    this.paused ||= window.setTimeout(() => this.resume(), wait * 1000);
    this.draw();
  }

  private resume(): void {
    clearTimeout(this.paused);
    this.paused = 0;
    this.next();
  }

  private leave(item: Item): void {
    if (ENDED.has(item.state)) return;
    const request = item.request;
    item.request = null;
    request?.abort();
    // What was on its way may have arrived all the same.
    item.end("cancelled", request ? _("cancelled; it may have arrived") : _("cancelled"));
    this.next();
  }

  private again(): void {
    for (const item of this.items) if (item.state === "failed" || item.state === "cancelled") item.again();
    this.lost = 0;
    this.resume();
  }

  private sweep(which: (item: Item) => boolean): void {
    for (const item of this.items.filter(which)) item.line.remove();
    this.items.splice(0, this.items.length, ...this.items.filter((item) => !which(item)));
    this.draw();
  }

  /** Tell how it stands, at most once a frame; a screen reader is told now and then. */
  private draw(): void {
    this.drawing ||= requestAnimationFrame(() => {
      this.drawing = 0;
      const count = (...states: State[]) => this.items.filter((item) => states.includes(item.state)).length;
      const [left, done] = [count("waiting", "sending"), count("received", "partly")];
      const parts = [_("%(done)s of %(all)s received", { done, all: this.items.length })];
      for (const state of ["partly", "refused", "failed", "cancelled"] as const) if (count(state)) parts.push(`${count(state)} ${WORDS[state]}`);
      if (this.paused) parts.push(_("no connection: goes on by itself"));
      else if (left) parts.push(_("%(count)s to go", { count: left }));
      const words = this.items.length ? parts.join(", ") : "";
      if (words !== this.before) this.summary.textContent = this.before = words;
      this.stop.hidden = !left;
      this.retry.hidden = !count("failed", "cancelled");
      this.clear.hidden = !this.items.some((item) => ENDED.has(item.state));
    });
  }
}

function parse(text: string): unknown {
  try {
    return JSON.parse(text) ?? {};
  } catch {
    return {};
  }
}

function ofFile(file: File, name: string): [string, () => FormData] {
  return [
    name,
    () => {
      const form = new FormData();
      form.append("files", file, file.name);
      return form;
    },
  ];
}

/** Give the files of what was dropped, those in folders too. What was dropped is gone once this returns: ask it at once. */
async function dropped(data: DataTransfer): Promise<[string, () => FormData][]> {
  const entries = [...data.items].map((item) => item.webkitGetAsEntry?.() ?? null);
  if (!entries.some((entry) => entry?.isDirectory)) return [...data.files].map((file) => ofFile(file, file.name));
  const found: [string, () => FormData][] = [];
  const walk = async (entry: FileSystemEntry): Promise<void> => {
    if (entry.isFile) {
      const file = await new Promise<File>((done, no) => (entry as FileSystemFileEntry).file(done, no));
      found.push(ofFile(file, entry.fullPath.replace(/^\//, "")));
      return;
    }
    const reader = (entry as FileSystemDirectoryEntry).createReader();
    for (;;) {
      // A reader gives at most a hundred at a time.
      const some = await new Promise<FileSystemEntry[]>((done, no) => reader.readEntries(done, no));
      if (!some.length) return;
      for (const inner of some) await walk(inner);
    }
  };
  for (const entry of entries) if (entry) await walk(entry);
  return found;
}

/** Take files, folders and addresses on this page, where there is a place for them; `received` is called after each. */
export function takeFiles(received: () => void): void {
  const at = <T extends HTMLElement>(id: string) => document.getElementById(id) as T;
  const [picker, area] = [at<HTMLInputElement>("files"), at("drop")];
  if (!picker || !area) return;
  const uploads = new Uploads(at("added"), at("adding"), at("adding-stop"), at("adding-retry"), at("adding-clear"), received);
  picker.addEventListener("change", () => {
    uploads.add([...(picker.files ?? [])].map((file) => ofFile(file, file.name)));
    picker.value = "";
  });
  at("fetch").addEventListener("submit", (event) => {
    event.preventDefault();
    const field = at<HTMLInputElement>("url");
    const address = field.value;
    const form = () => {
      const made = new FormData();
      made.append("url", address);
      return made;
    };
    uploads.add([[address, form]]);
    field.value = "";
  });
  const carriesFiles = (event: DragEvent) => event.dataTransfer?.types.includes("Files") ?? false;
  document.addEventListener("dragover", (event) => {
    if (!carriesFiles(event)) return;
    event.preventDefault();
    area.hidden = false;
  });
  area.addEventListener("dragleave", () => (area.hidden = true));
  document.addEventListener("drop", (event) => {
    if (!carriesFiles(event)) return;
    event.preventDefault();
    area.hidden = true;
    void dropped(event.dataTransfer!).then((found) => uploads.add(found));
  });
}
