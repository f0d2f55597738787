/** Critical findings on the study page: the strip stays until somebody was told, "c" writes down who, when and how. */
import { hint, on } from "./keys";
import { _, word } from "./language";
import { local, send, tick } from "./page";

/** Is told to the document when a critical finding of any study changed. */
export const CRITICAL = "critical-changed";

interface Done {
  kind: string;
  actor: string;
  recipient: string;
  how: string;
  at: string;
}

interface Known {
  alert: { stage: string | null; finding: string; acknowledged_at: string | null } | null;
  communications: Done[];
}

const find = <T extends HTMLElement>(selector: string) => document.querySelector<T>(selector);
const chosen = (name: string) => find<HTMLInputElement>(`[name="${name}"]:checked`)?.value ?? "";

/** The time as a field of the browser's own zone has it. */
function field(at: Date): string {
  return new Date(at.getTime() - at.getTimezoneOffset() * 60_000).toISOString().slice(0, 16);
}

/** Answer "c" and keep the strip right until the page is left. */
export function communication(signal: AbortSignal): void {
  const study = document.body.dataset.study!;
  const url = `/api/v1/studies/${study}/communications`;
  const dialog = find<HTMLDialogElement>("#communication");

  async function refresh(): Promise<void> {
    const response = await fetch(`/studies/${study}/critical`, { credentials: "same-origin", signal }).catch(() => null);
    if (!response?.ok || signal.aborted) return;
    const page = new DOMParser().parseFromString(await response.text(), "text/html");
    const [now, then] = [page.querySelector("#critical"), find("#critical")];
    if (!now || !then || signal.aborted) return;
    then.replaceWith(document.adoptNode(now));
    hint(now);
    tick(now);
  }

  async function open(): Promise<void> {
    if (!dialog || dialog.open || document.body.dataset.review !== "true") return;
    const known = await fetch(url, { credentials: "same-origin", signal })
      .then((answer) => (answer.ok ? (answer.json() as Promise<Known>) : null))
      .catch(() => null);
    if (signal.aborted || dialog.open) return;
    const alert = known?.alert;
    find("#communication-about")!.textContent = alert
      ? `${word(alert.finding, "finding") || _("Critical finding")}: ${alert.stage === "tell" ? _("signed, and nobody was told yet") : alert.acknowledged_at ? _("acknowledged, not signed yet") : _("not acknowledged yet")}.`
      : _("No critical finding of this study is open. What you record is kept with it.");
    find<HTMLButtonElement>("#told-acknowledge")!.disabled = !alert || alert.acknowledged_at !== null;
    find("#communication-done")!.replaceChildren(
      ...(known?.communications ?? []).map((done) => {
        const line = document.createElement("li");
        const who = [done.recipient, word(done.how, "how")].filter(Boolean).join(", ");
        line.textContent = `${local(new Date(done.at))} ${word(done.kind, "deed")}${who ? `: ${who}` : ""} (${done.actor})`;
        return line;
      }),
    );
    find("#communication-error")!.hidden = true;
    find<HTMLInputElement>("#told-at")!.value = field(new Date());
    dialog.showModal();
  }

  /** Nothing typed is lost when the server says no: the dialog stays open. */
  async function record(kind: string): Promise<void> {
    const told = kind === "communicated";
    const at = new Date(find<HTMLInputElement>("#told-at")!.value);
    // The field has minutes: the minute that has just begun is now.
    const now = Math.abs(Date.now() - at.getTime()) < 60_000;
    const note = find<HTMLTextAreaElement>("#told-note")!;
    const recipient = find<HTMLInputElement>("#told-recipient")!;
    const more = { recipient: recipient.value, how: chosen("told-how"), read_back: chosen("told-back") === "yes", at: now ? null : at.toISOString() };
    try {
      await send(url, { kind, ...(kind === "acknowledged" ? {} : { note: note.value }), ...(told ? more : {}) });
    } catch (error) {
      const place = find("#communication-error")!;
      place.textContent = (error as Error).message;
      place.hidden = false;
      return;
    }
    note.value = recipient.value = "";
    for (const back of document.querySelectorAll<HTMLInputElement>('[name="told-back"]')) back.checked = false;
    dialog!.close();
    await refresh();
  }

  dialog?.querySelector("form")?.addEventListener("submit", (event) => {
    const kind = (event.submitter as HTMLButtonElement | null)?.value ?? "";
    if (!kind) return; // cancel closes it
    event.preventDefault();
    void record(kind);
  });
  document.addEventListener("click", (event) => (event.target as HTMLElement).closest("[data-communicate]") && void open(), { signal });
  on({ "study.communicate": open });
  // What is signed here, and what others do elsewhere; see `CRITICAL`.
  const signed = new MutationObserver(() => void refresh());
  signed.observe(document.body, { attributes: true, attributeFilter: ["data-signed"] });
  document.addEventListener(CRITICAL, () => void refresh(), { signal });
  signal.addEventListener("abort", () => signed.disconnect());
}
