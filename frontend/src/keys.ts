/**
 * Every action that has a key, in one table: what it is called, its keys as delivered, and where it holds. Whatever answers
 * keys says so with `on`; the list on "?" and the hints on buttons are written from here, with the reader's own keys.
 */

import { _ } from "./language";

export type Scope = "everywhere" | "worklist" | "study" | "viewer";

export interface Action {
  id: string;
  /** As `keyOf` names them, the one that buttons show first. */
  keys: readonly string[];
  label: string;
  scope: Scope;
}

export const ACTIONS = [
  { id: "help", keys: ["?"], label: _("this list"), scope: "everywhere" },

  { id: "worklist.next", keys: ["j", "ArrowDown"], label: _("next row"), scope: "worklist" },
  { id: "worklist.previous", keys: ["k", "ArrowUp"], label: _("row before"), scope: "worklist" },
  { id: "worklist.first", keys: ["Home"], label: _("first row"), scope: "worklist" },
  { id: "worklist.last", keys: ["End"], label: _("last row"), scope: "worklist" },
  { id: "worklist.open", keys: ["Enter"], label: _("open the study"), scope: "worklist" },
  { id: "worklist.leave", keys: ["Escape"], label: _("leave the row"), scope: "worklist" },
  { id: "worklist.search", keys: ["/"], label: _("search for a patient; Esc leaves the field"), scope: "worklist" },
  { id: "worklist.claim", keys: ["c"], label: _("claim the study, or release it"), scope: "worklist" },
  { id: "worklist.hand-over", keys: ["o"], label: _("hand the study over to another reader"), scope: "worklist" },

  { id: "study.finding-next", keys: ["j", "ArrowDown"], label: _("next finding"), scope: "study" },
  { id: "study.finding-previous", keys: ["k", "ArrowUp"], label: _("finding before"), scope: "study" },
  { id: "study.agree", keys: ["a"], label: _("agree; again takes it back"), scope: "study" },
  { id: "study.disagree", keys: ["d"], label: _("disagree"), scope: "study" },
  { id: "study.unsure", keys: ["u"], label: _("unsure"), scope: "study" },
  { id: "study.right", keys: ["y"], label: _("the model was right"), scope: "study" },
  { id: "study.wrong", keys: ["x"], label: _("the model was wrong"), scope: "study" },
  { id: "study.normal", keys: ["0"], label: _("the study is normal"), scope: "study" },
  { id: "study.add", keys: ["f"], label: _("add a finding"), scope: "study" },
  { id: "study.note", keys: ["m"], label: _("write a note; Esc leaves the field"), scope: "study" },
  { id: "study.communicate", keys: ["c"], label: _("critical finding: acknowledge it, or record who was told"), scope: "study" },
  { id: "study.refuse", keys: ["Shift+x"], label: _("refuse an image: another patient's, no chest, not readable"), scope: "study" },
  { id: "study.sign", keys: ["Enter"], label: _("sign; once it is signed, next study"), scope: "study" },
  { id: "study.undo", keys: ["z"], label: _("undo the last answer; after signing, take the signature back"), scope: "study" },
  { id: "study.addendum", keys: ["t"], label: _("addendum to a signed study"), scope: "study" },
  { id: "study.next", keys: ["n", "Tab"], label: _("next study (Shift Tab goes into the page)"), scope: "study" },
  { id: "study.worklist", keys: ["w"], label: _("worklist"), scope: "study" },
  { id: "study.refresh", keys: ["g"], label: _("show what is new"), scope: "study" },
  { id: "study.cancel", keys: ["Escape"], label: _("go back, leave a field"), scope: "study" },

  { id: "viewer.heatmap", keys: ["h"], label: _("heatmap of the chosen finding"), scope: "viewer" },
  { id: "viewer.opacity-up", keys: ["o"], label: _("heatmap stronger"), scope: "viewer" },
  { id: "viewer.opacity-down", keys: ["Shift+o"], label: _("heatmap weaker"), scope: "viewer" },
  { id: "viewer.window-original", keys: ["1"], label: _("window: as the sender meant it"), scope: "viewer" },
  { id: "viewer.window-lungs", keys: ["2"], label: _("window: lungs"), scope: "viewer" },
  { id: "viewer.window-mediastinum", keys: ["3"], label: _("window: mediastinum"), scope: "viewer" },
  { id: "viewer.window-full", keys: ["4"], label: _("window: every value of the file"), scope: "viewer" },
  { id: "viewer.window-next", keys: ["5"], label: _("the sender's next window"), scope: "viewer" },
  { id: "viewer.invert", keys: ["i"], label: _("invert"), scope: "viewer" },
  { id: "viewer.reset", keys: ["r"], label: _("reset: whole image, the sender's window and polarity"), scope: "viewer" },
  { id: "viewer.zoom-in", keys: ["+", "="], label: _("zoom in"), scope: "viewer" },
  { id: "viewer.zoom-out", keys: ["-"], label: _("zoom out"), scope: "viewer" },
  { id: "viewer.zoom-fit", keys: ["q"], label: _("whole image"), scope: "viewer" },
  { id: "viewer.zoom-one", keys: ["Shift+q"], label: _("one pixel of the image to one of the screen"), scope: "viewer" },
  { id: "viewer.rotate-right", keys: ["."], label: _("turn right"), scope: "viewer" },
  { id: "viewer.rotate-left", keys: [","], label: _("turn left"), scope: "viewer" },
  { id: "viewer.flip-sides", keys: ["s"], label: _("flip side to side"), scope: "viewer" },
  { id: "viewer.flip-upside", keys: ["Shift+s"], label: _("flip upside down"), scope: "viewer" },
  { id: "viewer.magnifier", keys: ["l"], label: _("magnifier on the pointer, on and off"), scope: "viewer" },
  { id: "viewer.measure", keys: ["/"], label: _("measure a length by dragging, on and off"), scope: "viewer" },
  { id: "viewer.move", keys: ["Shift+m"], label: _("move the picture by dragging, on and off"), scope: "viewer" },
  { id: "viewer.measure-clear", keys: ["Shift+c"], label: _("take all measurements away"), scope: "viewer" },
  { id: "viewer.image-previous", keys: ["["], label: _("image before"), scope: "viewer" },
  { id: "viewer.image-next", keys: ["]"], label: _("next image"), scope: "viewer" },
  { id: "viewer.beside", keys: ["b"], label: _("all images of the study side by side"), scope: "viewer" },
  { id: "viewer.prior", keys: ["p"], label: _("prior study beside, on and off"), scope: "viewer" },
  { id: "viewer.prior-older", keys: ["Shift+p"], label: _("an older prior study"), scope: "viewer" },
  { id: "viewer.pane-next", keys: ["e"], label: _("next pane"), scope: "viewer" },
  { id: "viewer.link", keys: ["v"], label: _("link window and zoom of the panes, on and off"), scope: "viewer" },
  { id: "viewer.full-screen", keys: ["Shift+f"], label: _("full screen, on and off"), scope: "viewer" },
] as const satisfies readonly Action[];

export type ActionId = (typeof ACTIONS)[number]["id"];

/** What the pointer does, for the list on "?". */
export const GESTURES: readonly { how: string; label: string; scope: Scope }[] = [
  { how: _("drag"), label: _("window: sideways width, up and down level"), scope: "viewer" },
  { how: _("wheel, right drag"), label: _("zoom"), scope: "viewer" },
  { how: _("middle or Shift drag"), label: _("pan"), scope: "viewer" },
  { how: _("one finger"), label: _("window; or move, measure or magnifier, whichever is on"), scope: "viewer" },
  { how: _("two fingers"), label: _("zoom and pan"), scope: "viewer" },
  { how: _("double tap"), label: _("reset"), scope: "viewer" },
];

/** What the list on "?" calls the scopes; also their order. */
const HEADINGS: Record<Scope, string> = { worklist: _("Worklist"), study: _("Reading"), viewer: _("Picture"), everywhere: _("Everywhere") };

export type Keys = Record<string, readonly string[]>;

/** As changed since this page was loaded. */
let changed: Keys | null = null;

/** The reader's own keys: action → keys. The page brings them as JSON in `data-keys`; what names no action is ignored. */
function chosen(): Keys {
  if (changed) return changed;
  try {
    return (JSON.parse(document.body.dataset.keys ?? "{}") ?? {}) as Keys;
  } catch {
    return {};
  }
}

/** Answer to these keys from now on; none for those that come with Wetread. */
export function rebind(keys: Keys): void {
  changed = keys;
  hint();
}

/** What answers keys on one page: a key means one thing there. */
export const PAGES: readonly (readonly Scope[])[] = [["everywhere", "worklist"], ["everywhere", "study", "viewer"]];

/** The keys of an action as they are now. */
export function keysOf(id: ActionId): readonly string[] {
  return chosen()[id] ?? ACTIONS.find((action) => action.id === id)!.keys;
}

/** One name for a key: "i", "Shift+i", "+", "ArrowDown". Shift counts with letters and named keys only: signs differ by layout. */
export function keyOf(event: KeyboardEvent): string {
  const sign = event.key.length === 1;
  const key = sign ? event.key.toLowerCase() : event.key;
  const counts = !sign || event.key.toLowerCase() !== event.key.toUpperCase();
  return event.shiftKey && counts ? `Shift+${key}` : key;
}

const SHOWN: Record<string, string> = { ArrowDown: "↓", ArrowUp: "↑", ArrowLeft: "←", ArrowRight: "→", Escape: "Esc", "-": "−", " ": _("Space") };

/** How a key is written on a button and in the list. */
export function written(key: string): string {
  const [last, ...held] = key === "+" ? ["+"] : key.split("+").reverse();
  return [...held.reverse(), SHOWN[last!] ?? last].join(" ");
}

/** Whether a key belongs to what has the focus (a field, a button for Enter) and not to the page. */
export function taken(event: KeyboardEvent): boolean {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return true;
  if (document.querySelector("dialog[open]")) return true;
  const target = event.target as HTMLElement;
  // Tab is ours only while nothing has the focus; else it walks through the page's controls.
  if (event.key === "Tab") return target !== document.body || event.shiftKey;
  if (target.closest("textarea, select, input:not([type=range]):not([type=checkbox]):not([type=file])")) return true;
  if (target.matches("input[type=range]")) return event.key.startsWith("Arrow");
  return (event.key === "Enter" || event.key === " ") && target.closest("button, a, summary, label, input") !== null;
}

const answers = new Map<ActionId, () => unknown>();

/** Answer actions: by their keys from now on, and by `run`. A later answer to the same action replaces the earlier one. */
export function on(more: Partial<Record<ActionId, () => unknown>>): void {
  for (const [id, answer] of Object.entries(more)) answers.set(id as ActionId, answer);
  hint();
}

/** Answer nothing any more: the page that did is left. */
export function forget(): void {
  answers.clear();
}

/** Do an action as its key would; false when nothing on this page answers it. */
export function run(id: ActionId): boolean {
  const answer = answers.get(id);
  if (answer) void answer();
  return answer !== undefined;
}

/** Write the keys as they are now on all that shows them: `<kbd data-key="viewer.invert">`. */
export function hint(root: ParentNode = document): void {
  for (const place of root.querySelectorAll<HTMLElement>("[data-key]")) {
    const action = ACTIONS.find(({ id }) => id === place.dataset.key);
    if (action) place.textContent = written(keysOf(action.id)[0] ?? "");
  }
}

/** Fill the list on "?" with what this page answers. */
export function list(target: HTMLElement, more: (id: ActionId) => Node[] = () => []): void {
  const line = (keys: readonly string[], label: string, after: Node[] = []) => {
    const [term, words] = [document.createElement("dt"), document.createElement("dd")];
    for (const key of keys) {
      const shown = document.createElement("kbd");
      shown.textContent = key;
      term.append(shown, " ");
    }
    words.append(label, ...after);
    return [term, words];
  };
  target.replaceChildren();
  for (const [scope, heading] of Object.entries(HEADINGS)) {
    const actions = ACTIONS.filter((action) => action.scope === scope && answers.has(action.id));
    if (!actions.length) continue;
    const title = document.createElement("dt");
    title.className = "heading";
    title.textContent = heading;
    target.append(title, ...actions.flatMap((action) => line(keysOf(action.id).map(written), action.label, more(action.id))));
    target.append(...GESTURES.filter((gesture) => gesture.scope === scope).flatMap(({ how, label }) => line([how], label)));
  }
}

document.addEventListener("keydown", (event) => {
  const target = event.target as HTMLElement;
  if (event.key === "Escape" && target.matches("textarea, input")) target.blur();
  if (taken(event)) return;
  const key = keyOf(event);
  for (const id of answers.keys()) {
    if (!keysOf(id).includes(key)) continue;
    event.preventDefault();
    run(id);
    return;
  }
});
