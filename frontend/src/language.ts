/**
 * The reader's language, keyed by the English words: `_("Saved")`, `ngettext("%(num)s image", "%(num)s images", count)`.
 * The words come with the page as a script made from the server's catalogue (see web/language.py); without it, English.
 * Values for `%(name)s` are named: `_("handed over to %(reader)s", { reader })`.
 */

interface Catalogue {
  plural: (count: number) => number;
  decimal: string;
  /** English, or context and English with \x04 between → the reader's language; of plurals all forms. */
  words: Record<string, string | string[]>;
  /** Sentences that the server's deeper parts say in English. */
  sentences: [string, string][];
  /** What a name in such a sentence may stand for, as a regular expression. */
  kinds: Record<string, string>;
}

type Values = Record<string, string | number>;

const catalogue = (globalThis as { wetread?: Catalogue }).wetread;

function fill(words: string, values: Values): string {
  return words.replace(/%(?:\((\w+)\)s|%)/g, (_, name?: string) => (name ? String(values[name] ?? "") : "%"));
}

function known(english: string): string {
  const found = catalogue?.words[english];
  return typeof found === "string" ? found : english;
}

/** A text in the reader's language. */
export function _(english: string, values: Values = {}): string {
  return fill(known(english), values);
}

/** The form of a text that goes with a count, which is `%(num)s` in it. */
export function ngettext(one: string, many: string, count: number, values: Values = {}): string {
  const forms = catalogue?.words[one];
  const form = Array.isArray(forms) ? forms[catalogue!.plural(count)]! : count === 1 ? one : many;
  return fill(form, { num: count, ...values });
}

/** A text as it is said in a context. */
export function pgettext(context: string, english: string, values: Values = {}): string {
  const found = catalogue?.words[`${context}\x04${english}`];
  return fill(typeof found === "string" ? found : english, values);
}

/** A word that is stored in English (a finding, a call, an answer); what is nobody's but the reader's own stays. */
export function word(english: string, kind: string): string {
  const found = catalogue?.words[`${kind}\x04${english}`];
  return typeof found === "string" ? found : english;
}

/** A number, written with a point, as the reader's language writes it. */
export function number(text: string): string {
  return catalogue ? text.replace(".", catalogue.decimal) : text;
}

let sentences: { pattern: RegExp; names: string[]; told: string }[] | null = null;

/** The server's English sentence in the reader's language, or as it is. */
export function told(english: string): string {
  if (!catalogue) return english;
  sentences ??= catalogue.sentences.map(([sentence, told]) => {
    const parts = sentence.split(/%\((\w+)\)s/);
    const names = parts.filter((_, place) => place % 2);
    const made = parts.map((part, place) => (place % 2 ? `(${catalogue.kinds[kind(part)] ?? ".+?"})` : part.replace("%%", "%").replace(/[.*+?^${}()|[\]\\/-]/g, "\\$&")));
    return { pattern: new RegExp(`^(?:${made.join("")})$`, "s"), names, told };
  });
  for (const { pattern, names, told } of sentences) {
    const found = pattern.exec(english);
    if (found) return fill(told, Object.fromEntries(names.map((name, place) => [name, part(kind(name), found[place + 1]!)])));
  }
  return english;
}

const kind = (name: string) => name.replace(/\d+$/, "");

function part(kind: string, value: string): string {
  if (kind === "list") return value.split(", ").map(told).join(", ");
  return kind === "rest" ? told(value) : word(value, kind);
}

/** The language's name for the browser: how it writes numbers. */
export const locale = document.documentElement.lang || "en";
