/**
 * From one study to the next without loading everything anew: the viewer stays, with its graphics, and the next study's
 * picture is here before it is asked for. The page itself is fetched when it is wanted, so that nothing in it is stale.
 */
import { fetchFrame } from "./frame";
import { forget } from "./keys";

/** What runs a study page, from its opening until `leaving` is aborted. */
type Open = (leaving: AbortSignal) => void;

let run: Open = () => undefined;
let life = new AbortController();

/** Run this page's study, and each that follows it. */
export function turns(open: Open): void {
  run = open;
  run(life.signal);
  // Back and forward load the page of their address.
  window.addEventListener("popstate", () => location.reload());
}

const PICTURE = "[data-image]:not([disabled])";
const after = (way: "next" | "ahead") => `/studies/${way}?after=${encodeURIComponent(document.body.dataset.study ?? "")}`;

async function get(url: string): Promise<{ page: Document; url: string } | null> {
  const response = await fetch(url, { credentials: "same-origin" });
  if (!response.ok || !new URL(response.url).pathname.startsWith("/studies/")) return null;
  const page = new DOMParser().parseFromString(await response.text(), "text/html");
  return page.body.dataset.study ? { page, url: response.url } : null;
}

/** Fetch the first picture of the study that would be next now; of the patient nothing is told before it is opened. */
export async function ahead(): Promise<void> {
  try {
    const response = await fetch(after("ahead"), { credentials: "same-origin" });
    const { image } = (await response.json()) as { image: string | null };
    if (image) await fetchFrame(image, true);
  } catch {
    // then it is fetched when it is wanted
  }
}

/** Go to the next study that waits; when there is none, or anything is unusual, as the browser does. */
export async function turn(): Promise<void> {
  const { signal } = life;
  const next = await get(after("next")).catch(() => null);
  if (signal.aborted) return; // gone meanwhile
  const stage = document.querySelector("#stage");
  const other = next?.page.querySelector("#stage");
  const script = (page: Document) => [...page.querySelectorAll("script[src]")].map((one) => one.getAttribute("src")).join(" ");
  const reader = ({ body: { dataset } }: Document) => JSON.stringify([dataset.site, dataset.reader]);
  // Another release of the front end, another reader (then nothing stays that the one before had), or a study without
  // pictures is loaded whole.
  if (!next || !stage || !other || !next.page.querySelector(PICTURE) || script(next.page) !== script(document) || reader(next.page) !== reader(document)) {
    location.assign(after("next"));
    return;
  }
  life.abort();
  life = new AbortController();
  forget();
  const body = document.adoptNode(next.page.body);
  const label = other.querySelector(".viewport")?.getAttribute("aria-label") ?? "";
  for (const viewport of stage.querySelectorAll(".viewport")) viewport.setAttribute("aria-label", label);
  other.replaceWith(stage);
  document.title = next.page.title;
  document.body.replaceWith(body);
  history.pushState(null, "", next.url);
  run(life.signal);
}
