/** The reader's own keys, chosen in the list on "?": press the key that an action shall have. Kept on the server. */
import { ACTIONS, PAGES, keyOf, keysOf, list, rebind, written, type ActionId, type Keys } from "./keys";
import { _ } from "./language";
import { send } from "./page";

const HELD = ["Shift", "Control", "Alt", "Meta", "AltGraph", "CapsLock"];

/** What else on the same page has this key. */
function other(id: ActionId, key: string): string | null {
  const own = ACTIONS.find((action) => action.id === id)!;
  const here = PAGES.filter((scopes) => scopes.includes(own.scope)).flat();
  const found = ACTIONS.find((action) => action.id !== id && here.includes(action.scope) && keysOf(action.id).includes(key));
  return found?.label ?? null;
}

/** Make the list on "?" one in which keys can be changed; what is returned fills it. */
export function rebindable(dialog: HTMLDialogElement): () => void {
  const target = dialog.querySelector("dl")!;
  const said = document.createElement("p");
  said.setAttribute("role", "status");
  const reset = document.createElement("button");
  reset.type = "button";
  reset.textContent = _("All keys as they came");
  let waiting: { id: ActionId; button: HTMLButtonElement } | null = null;

  function show(): void {
    waiting = null;
    list(target, (id) => {
      const button = document.createElement("button");
      button.type = "button";
      button.className = "rebind";
      button.dataset.rebind = id;
      button.textContent = _("change");
      button.setAttribute("aria-label", _("change the key of: %(action)s", { action: ACTIONS.find((action) => action.id === id)!.label }));
      return [button];
    });
  }

  async function keep(keys: Keys): Promise<void> {
    const all = Object.fromEntries(ACTIONS.map(({ id }) => [id, keys[id] ?? keysOf(id)]));
    await send("/api/v1/keys", { keys: all }, "PUT");
    rebind(all);
  }

  async function take(key: string, id: ActionId): Promise<void> {
    const taken = other(id, key);
    if (taken) {
      said.textContent = _("%(key)s is taken: %(action)s. Press another key, or Esc.", { key: written(key), action: taken });
      return;
    }
    try {
      await keep({ [id]: [key] });
      said.textContent = _("%(key)s from now on.", { key: written(key) });
    } catch (error) {
      said.textContent = _("Not changed: %(reason)s", { reason: (error as Error).message });
    }
    show();
    target.querySelector<HTMLElement>(`[data-rebind="${id}"]`)?.focus();
  }

  dialog.addEventListener("click", (event) => {
    const button = (event.target as HTMLElement).closest<HTMLButtonElement>("[data-rebind]");
    if (!button) return;
    if (waiting) waiting.button.textContent = _("change");
    waiting = { id: button.dataset.rebind as ActionId, button };
    button.textContent = _("press a key …");
    said.textContent = _("Esc leaves it as it is.");
  });
  dialog.addEventListener("keydown", (event) => {
    if (!waiting || HELD.includes(event.key) || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    event.stopPropagation();
    const { id, button } = waiting;
    if (event.key === "Escape") {
      waiting = null;
      button.textContent = _("change");
      said.textContent = "";
    } else void take(keyOf(event), id);
  });
  // Esc while a key is waited for leaves the key, not the list.
  dialog.addEventListener("cancel", (event) => waiting && event.preventDefault());
  reset.addEventListener("click", async () => {
    try {
      await send("/api/v1/keys", null, "DELETE");
      rebind({});
      said.textContent = _("All keys are as they came.");
    } catch (error) {
      said.textContent = _("Not changed: %(reason)s", { reason: (error as Error).message });
    }
    show();
  });
  const form = dialog.querySelector("form")!;
  form.before(said);
  form.prepend(reset, " ");
  return () => {
    said.textContent = "";
    show();
  };
}
