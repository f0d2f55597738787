/** Words that the server does not have yet, kept in this browser: by study and reader, until the server has them. */

import { _, word } from "./language";

export type Answer = "agree" | "disagree" | "unsure" | "added";

export interface Content {
  findings: { finding: string; answer: Answer }[];
  model_verdict: "right" | "wrong" | null;
  normal: boolean;
  note: string;
}

export interface Kept {
  content: Content;
  /** The draft of the server that they go on from, 0 for none, and the page that wrote them. */
  revision: number;
  writer: string;
  /** The review that they are an addendum to, if they are. */
  parent: string;
  at: string;
}

const PREFIX = "wetread.words:";

const place = ({ site, reader, study }: DOMStringMap) => `${PREFIX}${JSON.stringify([site, reader, study])}`;

export function read(page: HTMLElement): Kept | null {
  try {
    return JSON.parse(localStorage.getItem(place(page.dataset)) ?? "null") as Kept | null;
  } catch {
    return null;
  }
}

/** Whether they are kept: a browser may refuse to. */
export function write(page: HTMLElement, kept: Kept): boolean {
  try {
    localStorage.setItem(place(page.dataset), JSON.stringify(kept));
    return true;
  } catch {
    return false;
  }
}

export function remove(page: HTMLElement): void {
  try {
    localStorage.removeItem(place(page.dataset));
  } catch {
    // there was nothing then
  }
}

function places(): string[] {
  try {
    return Object.keys(localStorage).filter((name) => name.startsWith(PREFIX));
  } catch {
    return [];
  }
}

/** In how many studies there are words that the server does not have. */
export const unsaved = (): number => places().length;

/** Forget them all: the next at this browser may be somebody else. */
export function clear(): void {
  for (const name of places()) localStorage.removeItem(name);
}

export const same = (a: Content, b: Content): boolean => {
  const plain = (content: Content) =>
    JSON.stringify([content.findings.map(({ finding, answer }) => [finding, answer]).sort(), content.model_verdict, content.normal, content.note]);
  return plain(a) === plain(b);
};

/** What is in it, in lines to look at. */
export function lines(content: Content): string[] {
  return [
    content.normal ? _("normal") : "",
    ...content.findings.map(({ finding, answer }) => `${word(finding, "finding")}: ${word(answer, "answer")}`),
    content.model_verdict ? (content.model_verdict === "right" ? _("the model was right") : _("the model was wrong")) : "",
    content.note,
  ].filter(Boolean);
}
