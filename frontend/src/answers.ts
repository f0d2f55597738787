/** The reader's answers on the page of one study: what they are, how they look, and the way back. */
import type { Answer, Content } from "./kept";
import { _, word as said } from "./language";

interface Of {
  page: HTMLElement;
  editable: () => boolean;
  /** Something was answered, typed or taken back. */
  changed: () => void;
  chosen: (finding: { model: string; finding: string }) => void;
  say: (words: string) => void;
}

/** Where the model is unsure there is nothing to agree with: the reader says whether it is there. */
const THERE: Record<string, string> = { agree: "present", disagree: "absent" };

export class Answers {
  private readonly findings: HTMLElement[];
  private verdict: Content["model_verdict"];
  private normal: boolean;
  /** What was there before each answer; what is typed, the browser itself undoes. */
  private readonly before: Content[] = [];

  constructor(private readonly of: Of) {
    const { page } = of;
    this.findings = this.all(".finding");
    this.verdict = (page.dataset.verdict || null) as Content["model_verdict"];
    this.normal = page.dataset.normal === "true";
    this.select(this.findings.find(({ dataset }) => dataset.finding === page.dataset.ranked) ?? this.findings[0]);
  }

  private all(selector: string): HTMLElement[] {
    return [...this.of.page.querySelectorAll<HTMLElement>(selector)];
  }

  private get note(): HTMLTextAreaElement | null {
    return this.of.page.querySelector<HTMLTextAreaElement>("#note");
  }

  // ---------------------------------------------------------------- choosing

  get selected(): HTMLElement | null {
    return this.findings.find((finding) => finding.getAttribute("aria-selected") === "true") ?? null;
  }

  select(finding: HTMLElement | undefined): void {
    if (!finding) return;
    for (const other of this.findings) other.setAttribute("aria-selected", String(other === finding));
    finding.scrollIntoView({ block: "nearest" });
    this.of.chosen(finding.dataset as { model: string; finding: string });
  }

  step(by: number): void {
    const chosen = this.selected;
    const at = (chosen ? this.findings.indexOf(chosen) : -1) + by;
    this.select(this.findings[Math.min(this.findings.length - 1, Math.max(0, at))]);
  }

  // ---------------------------------------------------------------- answering

  /** Change something as the reader wants it, so that it can be undone. */
  private change(how: () => boolean): void {
    if (!this.of.editable()) return;
    const before = this.content();
    if (!how()) return;
    this.before.push(before);
    this.of.changed();
  }

  /** Record the reader's own word on a finding; the same word again takes it back. */
  answer(finding: HTMLElement | null, word: Answer): void {
    if (!finding) return;
    this.change(() => {
      this.mark(finding.dataset.finding!, finding.dataset.answer === word ? "" : word);
      return true;
    });
  }

  judge(word: "right" | "wrong"): void {
    this.change(() => this.put({ ...this.content(), model_verdict: this.verdict === word ? null : word }));
  }

  callNormal(): void {
    this.change(() => this.put({ ...this.content(), normal: !this.normal }));
  }

  /** What the reader sees and no model named. A finding that a model did name is answered there instead. */
  add(words: string): void {
    const typed = words.trim().toLowerCase();
    if (!typed) return;
    // Whatever language it is typed in, what is kept is its English name.
    const means = (name: string | undefined) => name !== undefined && [name, said(name, "finding")].some((one) => one.toLowerCase() === typed);
    const finding = this.all("#known option").find(({ dataset }) => means(dataset.finding))?.dataset.finding ?? words.trim();
    const is = (name: string | undefined) => means(name) || name?.toLowerCase() === finding.toLowerCase();
    const named = this.findings.find((other) => is(other.dataset.finding));
    if (named) {
      this.select(named);
      this.of.say(_("%(finding)s is in the list above: answer it there.", { finding: said(named.dataset.finding!, "finding") }));
      return;
    }
    this.change(() => {
      if (this.all("[data-added]").some((item) => is(item.dataset.added))) return false;
      this.list(finding);
      return true;
    });
  }

  remove(item: HTMLElement): void {
    this.change(() => {
      item.remove();
      return true;
    });
  }

  /** Take the last answer back; false when there is none. */
  undo(): boolean {
    if (!this.of.editable()) return false;
    const before = this.before.pop();
    if (!before) return false;
    this.put({ ...before, note: this.content().note });
    this.of.changed();
    return true;
  }

  /** What was answered so far is signed: no undo leads behind it. */
  settled(): void {
    this.before.length = 0;
  }

  // ---------------------------------------------------------------- content

  /** Whether there is a single word of the reader, other than the note. */
  get touched(): boolean {
    const { findings, model_verdict, normal } = this.content();
    return findings.length > 0 || model_verdict !== null || normal;
  }

  get added(): string[] {
    return this.all("[data-added]").map((item) => item.dataset.added!);
  }

  content(): Content {
    const answers = new Map<string, Answer>();
    for (const { dataset } of this.findings) if (dataset.answer) answers.set(dataset.finding!, dataset.answer as Answer);
    for (const finding of this.added) if (!answers.has(finding)) answers.set(finding, "added");
    return {
      findings: [...answers].map(([finding, answer]) => ({ finding, answer })),
      model_verdict: this.verdict,
      normal: this.normal,
      note: this.note?.value ?? "",
    };
  }

  /** Show these answers in place of those that are shown. */
  put(content: Content): true {
    const given = new Map(content.findings.map(({ finding, answer }) => [finding, answer]));
    for (const name of new Set(this.findings.map(({ dataset }) => dataset.finding!))) {
      const answer = given.get(name);
      this.mark(name, answer && answer !== "added" ? answer : "");
      if (answer !== "added") given.delete(name);
    }
    this.of.page.querySelector("#added")?.replaceChildren();
    // Also an answer to a model that says nothing any more is not lost.
    for (const finding of given.keys()) this.list(finding);
    this.verdict = content.model_verdict;
    this.normal = content.normal;
    this.press("right", this.verdict === "right");
    this.press("wrong", this.verdict === "wrong");
    this.press("normal", this.normal);
    if (this.note && this.note.value !== content.note) this.note.value = content.note;
    return true;
  }

  /** Two models may speak of one finding; the reader's word on it is one. */
  private mark(finding: string, word: Answer | ""): void {
    for (const same of this.findings.filter(({ dataset }) => dataset.finding === finding)) {
      same.dataset.answer = word;
      const words: Record<string, string> = same.dataset.call === "unsure" ? THERE : {};
      same.querySelector(".answer")!.textContent = said(words[word] ?? word, "answer");
      for (const button of same.querySelectorAll<HTMLElement>("[data-answer-word]")) {
        button.setAttribute("aria-pressed", String(button.dataset.answerWord === word));
      }
    }
  }

  private list(finding: string): void {
    const item = document.createElement("li");
    item.dataset.added = finding;
    const button = document.createElement("button");
    button.type = "button";
    button.dataset.remove = "";
    button.textContent = "×";
    button.setAttribute("aria-label", _("take back %(finding)s", { finding: said(finding, "finding") }));
    item.append(button, ` ${said(finding, "finding")}`);
    this.of.page.querySelector("#added")?.append(item);
  }

  private press(action: string, on: boolean): void {
    for (const button of this.all(`[data-action="${action}"]`)) button.setAttribute("aria-pressed", String(on));
  }
}
