/** What every page does: it tells the server the browser's zone, keeps times right, and logs out. */
import { clear, unsaved } from "./kept";
import { ownZone, SEARCH, send, tick } from "./page";

// So that the server tells times in the reader's zone from the next page on; it holds nothing else.
document.cookie = `wetread_zone=${encodeURIComponent(ownZone())}; path=/; max-age=31536000; SameSite=Strict${location.protocol === "https:" ? "; Secure" : ""}`;

tick();

document.addEventListener("click", (event) => {
  if (!(event.target as HTMLElement).closest("#logout")) return;
  const count = unsaved();
  const studies = count === 1 ? "a study" : `${count} studies`;
  if (count && !confirm(`What you typed in ${studies} is not saved on the server yet. Log out and lose it?`)) return;
  sessionStorage.removeItem(SEARCH);
  clear();
  void send("/logout", null).finally(() => location.assign("/login"));
});
