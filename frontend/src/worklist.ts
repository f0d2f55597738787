/** The worklist: refreshes itself, never moves the row under the pointer or the focus, and takes files. */
import htmx from "htmx.org";
import { on } from "./keys";
import { _ } from "./language";
import { ownZone, SEARCH, send, start, tick } from "./page";
import { takeFiles } from "./upload";

const KINDS = ["instance.stored", "instance.quarantined", "study.reopened", "study.analysed", "study.refused", "study.claimed", "study.released", "study.handed_over", "study.overdue",
  "instance.corrected", "instance.rejected", "instance.restored", "study.corrected", "study.merged",
  "review.saved", "review.signed", "ai.switched", "critical.raised", "critical.acknowledged", "critical.communicated", "critical.escalated", "critical.closed", "model.promoted",
  "delivery.failed", "delivery.sent"]; // prettier-ignore

const body = () => document.querySelector<HTMLTableSectionElement>("#rows")!;
const rows = () => [...body().querySelectorAll<HTMLTableRowElement>("tr[data-study]")];

/** The row that a hand or an eye is on: its place is kept until both have left. */
function held(): HTMLTableRowElement | null {
  return document.activeElement?.closest<HTMLTableRowElement>("#rows tr[data-study]") ?? body().querySelector("tr[data-study]:hover");
}

/** The row whose place was kept although the list is another meanwhile. */
let kept: HTMLTableRowElement | null = null;

/** How far the list was pushed up so that the kept row did not move, where scrolling did not do: rows differ in height. In CSS pixels. */
let pushed = 0;

/** Where a row stands on the page, whether or not the list is pushed: what is pushed counts by itself. */
function depth(row: HTMLElement): number {
  let top = 0;
  for (let part: Element | null = row; part instanceof HTMLElement; part = part.offsetParent) top += part.offsetTop;
  return top;
}

/** The held row and where it stood before an answer came: notices above the list come and go with the same answer. */
let stood: { row: HTMLTableRowElement; top: number } | null = null;

/** Scroll, and push where that is not enough, so that a row that went down by `drift` stays under the eye. */
function steady(drift: number): void {
  const wanted = pushed + drift;
  const before = window.scrollY;
  body().style.translate = "";
  window.scrollTo(window.scrollX, before + wanted);
  pushed = wanted - (window.scrollY - before);
  body().style.translate = pushed ? `0 ${-pushed}px` : "";
}

/** Bring the rows into the server's order; the held one keeps its place, and stays, dimmed, when it left the list. */
function arrange(fresh: HTMLTableRowElement[]): void {
  const present = new Map(rows().map((row) => [row.dataset.study!, row]));
  const places = new Map(rows().map((row) => [row, row.getBoundingClientRect().top]));
  const keep = held();
  const place = keep ? rows().indexOf(keep) : -1;
  const top = keep ? (stood?.row === keep ? stood.top : depth(keep)) : 0;
  const focused = keep?.contains(document.activeElement) ? (document.activeElement as HTMLElement) : null;
  const order = fresh.map((row) => {
    const old = present.get(row.dataset.study!);
    if (!old) return row;
    if (old.innerHTML !== row.innerHTML) old.innerHTML = row.innerHTML;
    old.className = row.className;
    return old;
  });
  if (keep) {
    keep.classList.toggle("gone", !order.includes(keep));
    const others = order.filter((row) => row !== keep);
    const own = order.indexOf(keep);
    order.splice(0, order.length, ...others.slice(0, place), keep, ...others.slice(place));
    kept = order.indexOf(keep) === own ? null : keep;
  } else {
    kept = null;
  }
  // Moving an element takes the focus from it, so the held row stays where it is and the others move around it.
  for (const child of [...body().children]) if (child !== keep && !order.includes(child as HTMLTableRowElement)) child.remove();
  if (keep) {
    const at = order.indexOf(keep);
    keep.before(...order.slice(0, at));
    keep.after(...order.slice(at + 1));
  } else {
    body().append(...order);
  }
  if (keep) {
    steady(depth(keep) - top);
    if (stood) stood.top = depth(keep);
  } else {
    pushed = 0;
    body().style.translate = "";
  }
  if (pushed) kept = keep;
  if (focused && !focused.isConnected) keep?.focus();
  if (matchMedia("(prefers-reduced-motion: reduce)").matches) return;
  for (const [row, before] of places) {
    const moved = row.isConnected && row !== keep ? before - row.getBoundingClientRect().top : 0;
    if (moved) row.animate([{ transform: `translateY(${moved}px)` }, { transform: "none" }], { duration: 240, easing: "ease-out" });
  }
}

htmx.defineExtension("keyed-rows", {
  isInlineSwap: (style) => style === "keyed",
  handleSwap(style, _target, node) {
    const fragment = node as DocumentFragment;
    if (style !== "keyed") return false;
    arrange([...fragment.querySelectorAll<HTMLTableRowElement>("tr[data-study]")]);
    const empty = fragment.querySelector("tr.none");
    body().querySelector("tr.none")?.remove();
    if (empty && !rows().length) body().append(empty);
    tick(body());
    return true;
  },
});

// ------------------------------------------------------------------ live

document.addEventListener("htmx:beforeSwap", () => {
  const row = held();
  stood = row && { row, top: depth(row) };
});
document.addEventListener("htmx:afterSwap", () => {
  if (stood?.row.isConnected) steady(depth(stood.row) - stood.top);
  if (stood && pushed) kept = stood.row;
  stood = null;
});

// What says the same stays, so that a screen reader does not read an alarm out again with each refresh.
document.addEventListener("htmx:oobBeforeSwap", (event) => {
  const { detail } = event as CustomEvent<{ target: Element; fragment: Element; shouldSwap: boolean }>;
  const fresh = detail.fragment.querySelector("#notices") ?? detail.fragment;
  const said = (part: Element) => part.innerHTML.replace(/<time[^>]*>[^<]*<\/time>/g, ""); // times go on by themselves
  if (detail.target.id === "notices" && said(fresh) === said(detail.target)) detail.shouldSwap = false;
});

let timer = 0;
let over = false;
function refresh(): void {
  // Events come in bursts (a study has several); one request serves them all.
  timer ||= window.setTimeout(() => {
    timer = 0;
    if (!over) htmx.trigger(document.body, "worklist-changed", {});
  }, 150);
}

/** Once hand and eye have left the row whose place was kept, the list takes its order. */
function release(): void {
  if (kept && held() !== kept) refresh();
}
document.addEventListener("mouseover", release);
document.addEventListener("focusin", release);
document.addEventListener("focusout", () => setTimeout(release));

function follow(): void {
  const state = document.querySelector<HTMLElement>("#live")!;
  document.body.addEventListener("htmx:responseError", (event) => {
    const { status } = (event as CustomEvent<{ xhr: XMLHttpRequest }>).detail.xhr;
    if (status === 401) location.assign("/login");
    else state.textContent = _("the list may be old: the server answered %(status)s", { status });
  });
  const events = new EventSource(`/events?after=${document.body.dataset.after ?? 0}`);
  events.onopen = () => {
    state.textContent = _("live");
    refresh();
  };
  events.onerror = () => (state.textContent = _("connection lost, trying again …"));
  events.onmessage = refresh;
  for (const kind of KINDS) events.addEventListener(kind, refresh);
  window.addEventListener("pagehide", () => events.close());
  document.addEventListener("logout", () => {
    over = true;
    events.close();
  });
  window.addEventListener("pageshow", (event) => event.persisted && location.reload());
}

// ------------------------------------------------------------------ keys and pointer

function open(row: HTMLTableRowElement | null | undefined): void {
  row?.querySelector<HTMLAnchorElement>("a")?.click();
}

function move(step: number): void {
  const all = rows();
  const at = all.findIndex((row) => row.contains(document.activeElement));
  const row = all[at < 0 && isFinite(step) ? (step > 0 ? 0 : all.length - 1) : Math.min(all.length - 1, Math.max(0, at + step))];
  row?.focus();
  row?.scrollIntoView({ block: "nearest" });
}

on({
  "worklist.next": () => move(1),
  "worklist.previous": () => move(-1),
  "worklist.first": () => move(-Infinity),
  "worklist.last": () => move(Infinity),
  "worklist.open": () => open(document.activeElement?.closest<HTMLTableRowElement>("#rows tr[data-study]")),
  "worklist.leave": () => (document.activeElement as HTMLElement | null)?.blur(),
});

/** The row that keys speak of: the one in focus, or else under the pointer. */
const current = () => held();

on({
  "worklist.search": () => document.querySelector<HTMLInputElement>("#search")?.select(),
  "worklist.claim": () => {
    const button = current()?.querySelector<HTMLButtonElement>("[data-do=claim], [data-do=release]");
    if (button) void act(button);
  },
  "worklist.hand-over": () => {
    const button = current()?.querySelector<HTMLButtonElement>("[data-do=hand-over]");
    if (button) void act(button);
  },
});

document.addEventListener("click", (event) => {
  const target = event.target as HTMLElement;
  const button = target.closest<HTMLButtonElement>("#rows [data-do]");
  if (button) void act(button);
  else if (!target.closest("a, button") && !getSelection()?.toString()) open(target.closest<HTMLTableRowElement>("#rows tr[data-study]"));
});

// ------------------------------------------------------------------ who reads what

async function act(button: HTMLButtonElement): Promise<void> {
  const row = button.closest<HTMLTableRowElement>("tr[data-study]")!;
  const study = `/api/v1/studies/${encodeURIComponent(row.dataset.study!)}`;
  try {
    if (button.dataset.do === "hand-over") await handOver(row, study);
    else await send(`${study}/claim`, null, button.dataset.do === "claim" ? "POST" : "DELETE");
  } catch (error) {
    say((error as Error).message);
  }
  refresh();
}

/** Say what became of something where the state of the page is told; a screen reader reads it out. */
function say(words: string): void {
  document.querySelector<HTMLElement>("#live")!.textContent = words;
}

/** Show a dialog and wait until it is closed; what its button stands for, "" when it was left. */
function ask(dialog: HTMLDialogElement): Promise<string> {
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((done) => dialog.addEventListener("close", () => done(dialog.returnValue), { once: true }));
}

async function handOver(row: HTMLTableRowElement, study: string): Promise<void> {
  const dialog = document.querySelector<HTMLDialogElement>("dialog#hand-over")!;
  const select = dialog.querySelector("select")!;
  const readers = (await send("/api/v1/readers", null, "GET")) as string[];
  if (!readers.length) return say(_("nobody else reads here"));
  select.replaceChildren(...readers.map((name) => new Option(name)));
  dialog.querySelector("#hand-over-whom")!.textContent = row.querySelector(".patient")!.textContent;
  if ((await ask(dialog)) !== "give") return;
  await send(`${study}/hand-over`, { to: select.value });
  say(_("handed over to %(reader)s", { reader: select.value }));
}

// ------------------------------------------------------------------ searching, filtering

/** What is searched for goes in a header: an address with a patient's name would be logged and remembered. */
function search(): void {
  const field = document.querySelector<HTMLInputElement>("#search");
  if (!field) return; // whose role sees no patients searches for none
  document.body.addEventListener("htmx:configRequest", (event) => {
    const { headers } = (event as CustomEvent<{ headers: Record<string, string> }>).detail;
    if (field.value.trim()) headers["Wetread-Search"] = encodeURIComponent(field.value.trim());
  });
  let pause = 0;
  field.addEventListener("input", () => {
    // For this tab only, so that coming back from a study finds the same list; gone with the tab or the session.
    sessionStorage.setItem(SEARCH, field.value);
    clearTimeout(pause);
    pause = window.setTimeout(() => {
      const first = new URL(location.href);
      first.searchParams.delete("from");
      history.replaceState(null, "", first);
      body().setAttribute("hx-get", `${first.pathname}${first.search}`);
      htmx.process(body());
      refresh();
    }, 200);
  });
  field.value = sessionStorage.getItem(SEARCH) ?? "";
  if (field.value) refresh();
}

function filter(): void {
  const form = document.querySelector<HTMLFormElement>("#narrow")!;
  if (!document.documentElement.dataset.zone) document.querySelector<HTMLInputElement>("#zone")!.value ||= ownZone();
  form.addEventListener("submit", () => {
    // What is empty says nothing and need not stand in the address.
    for (const field of form.querySelectorAll<HTMLInputElement | HTMLSelectElement>("input, select")) field.disabled = !field.value;
  });
  window.addEventListener("pageshow", () => form.querySelectorAll("input, select").forEach((field) => field.removeAttribute("disabled")));
  document.querySelector("#keep")?.addEventListener("click", () => void keep());
  for (const button of document.querySelectorAll<HTMLButtonElement>("[data-forget]")) {
    button.addEventListener("click", () => {
      void send(`/api/v1/filters/${encodeURIComponent(button.dataset.forget!)}`, null, "DELETE").then(() => button.closest("li")!.remove());
    });
  }
}

async function keep(): Promise<void> {
  const name = document.querySelector<HTMLInputElement>("#filter-name")!;
  if ((await ask(document.querySelector<HTMLDialogElement>("dialog#keep-filter")!)) !== "keep") return;
  const query = Object.fromEntries([...new URL(location.href).searchParams].filter(([key, value]) => key !== "from" && value));
  try {
    await send(`/api/v1/filters/${encodeURIComponent(name.value.trim())}`, { query }, "PUT");
    location.reload();
  } catch (error) {
    say((error as Error).message);
  }
}

start();
takeFiles(refresh);
search();
filter();
follow();
