/** What both pages share: requests to our own API, times, and the help on "?". */
import { on } from "./keys";
import { _, told } from "./language";
import { rebindable } from "./rebind";

/** The server said no; `answer` is its problem+json, or null. */
export class Refusal extends Error {
  constructor(
    message: string,
    readonly status: number,
    readonly answer: unknown,
  ) {
    super(message);
  }
}

/** Send JSON or a form to our own API; the session's cookie says who, the token in the page that it was meant. */
export async function send(url: string, body: object | FormData | null, method = "POST"): Promise<unknown> {
  const form = body instanceof FormData;
  const token = document.querySelector<HTMLMetaElement>('meta[name="csrf-token"]')?.content ?? "";
  let response: Response;
  try {
    response = await fetch(url, {
      method,
      credentials: "same-origin",
      keepalive: !form,
      headers: { "X-CSRF-Token": token, ...(form || body === null ? {} : { "Content-Type": "application/json" }) },
      body: form ? body : body === null ? null : JSON.stringify(body),
    });
  } catch {
    throw new Error(_("the server cannot be reached; check the network and try again"));
  }
  const answer: unknown = await response.json().catch(() => null);
  if (!response.ok) throw new Refusal(told(detail(answer)) || _("the server answered %(status)s", { status: response.status }), response.status, answer);
  return answer;
}

/** The reason in a problem+json answer (RFC 9457). */
export function detail(answer: unknown): string {
  if (!answer || typeof answer !== "object") return "";
  const { detail, title } = answer as { detail?: unknown; title?: unknown };
  return typeof detail === "string" ? detail : typeof title === "string" ? title : "";
}

/** Since when, as hours and minutes (0:07), with days before them once it is more than one. */
export function elapsed(since: Date, now: Date): string {
  const minutes = Math.max(0, Math.floor((now.getTime() - since.getTime()) / 60_000));
  const [days, rest] = [Math.floor(minutes / 1440), minutes % 1440];
  const time = `${Math.floor(rest / 60)}:${String(rest % 60).padStart(2, "0")}`;
  return days ? _("%(days)s d %(time)s", { days, time }) : time;
}

/** How long until `due`: 0:07, and +0:12 when it has been over for so long. */
export function left(due: Date, now: Date): string {
  return due <= now ? `+${elapsed(due, now)}` : elapsed(now, due);
}

/** Under what the tab keeps what was searched for. */
export const SEARCH = "wetread-search";

/** The browser's time zone. */
export const ownZone = () => Intl.DateTimeFormat().resolvedOptions().timeZone;

/** A moment in the reader's zone, by a pattern of YYYY, MM, DD, hh, mm and ss. */
function written(moment: Date, pattern: string): string {
  const timeZone = document.documentElement.dataset.zone || ownZone();
  const [year, month, day, hour, minute, second] = moment.toLocaleString("sv-SE", { timeZone, dateStyle: "short", timeStyle: "medium" }).split(/[- :]/);
  const parts: Record<string, string | undefined> = { YYYY: year, MM: month, DD: day, hh: hour, mm: minute, ss: second };
  return pattern.replace(/YYYY|MM|DD|hh|mm|ss/g, (part) => parts[part] ?? "");
}

/** Its time of day: 14:05. */
export const clock = (moment: Date) => written(moment, _("hh:mm"));

/** A moment in the reader's zone as the server writes it: 2026-01-31 14:05, or to the second with its offset. */
export function local(moment: Date, exact = false): string {
  const timeZone = document.documentElement.dataset.zone || ownZone();
  const words = written(moment, exact ? _("YYYY-MM-DD hh:mm:ss") : _("YYYY-MM-DD hh:mm"));
  if (!exact) return words;
  const name = new Intl.DateTimeFormat("en", { timeZone, timeZoneName: "longOffset" }).formatToParts(moment);
  return `${words} ${name.find(({ type }) => type === "timeZoneName")!.value.replace("GMT", "UTC")}`;
}

/** Keep relative times right, and give the exact one on hover. Others are in the reader's zone already, when the server knows it. */
export function tick(root: ParentNode = document): void {
  const known = Boolean(document.documentElement.dataset.zone);
  for (const time of root.querySelectorAll<HTMLTimeElement>("time[datetime]")) {
    const since = new Date(time.dateTime);
    if (Number.isNaN(since.getTime())) continue;
    if (!known || !time.title) time.title = local(since, true);
    const words = time.classList.contains("left") ? left(since, new Date()) : time.classList.contains("wait") ? elapsed(since, new Date()) : known ? time.textContent : local(since);
    if (time.textContent !== words) time.textContent = words;
  }
}

let ticking = 0;

/** Begin a page, also one that took another's place. */
export function start(): void {
  tick();
  ticking ||= window.setInterval(tick, 10_000);
  const help = document.querySelector<HTMLDialogElement>("dialog#keys");
  const show = help && rebindable(help);
  const open = () => {
    if (!help || help.open) return;
    show?.();
    help.showModal();
  };
  for (const button of document.querySelectorAll("[data-opens=keys]")) button.addEventListener("click", open);
  on({ help: open });
}
