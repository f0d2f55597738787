/** What every page does: it tells the server the browser's zone, keeps times right, and logs out. */
import { clear, unsaved } from "./kept";
import { ngettext } from "./language";
import { ownZone, SEARCH, send, tick } from "./page";

// So that the server tells times in the reader's zone from the next page on; it holds nothing else.
document.cookie = `wetread_zone=${encodeURIComponent(ownZone())}; path=/; max-age=31536000; SameSite=Strict${location.protocol === "https:" ? "; Secure" : ""}`;

tick();

// A theme that is chosen holds in all open tabs at once.
const look = new BroadcastChannel("wetread-look");
if (location.pathname === "/settings") look.postMessage(document.documentElement.className);
look.onmessage = ({ data }: MessageEvent<string>) => {
  if (!["dark", "light", "system"].includes(data) || document.documentElement.className === data) return;
  document.documentElement.className = data;
  document.querySelector<HTMLMetaElement>('meta[name="color-scheme"]')!.content = data === "system" ? "light dark" : data;
};

document.addEventListener("click", (event) => {
  if (!(event.target as HTMLElement).closest("#logout")) return;
  const count = unsaved();
  const question = ngettext(
    "What you typed in a study is not saved on the server yet. Log out and lose it?",
    "What you typed in %(num)s studies is not saved on the server yet. Log out and lose it?",
    count,
  );
  if (count && !confirm(question)) return;
  sessionStorage.removeItem(SEARCH);
  clear();
  document.dispatchEvent(new Event("logout")); // nothing is asked for any more: it would only be refused
  void send("/logout", null).finally(() => location.assign("/login"));
});
