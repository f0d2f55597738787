/** While a study is worked on it is claimed, so that no two read it; a claim runs out, hence the repetition. */
import { _ } from "./language";
import { Refusal, send } from "./page";

export class Claim {
  private holding = false;
  private held = 0;

  constructor(
    private readonly page: HTMLElement,
    private readonly editable: () => boolean,
    private readonly say: (words: string) => void,
    leaving: AbortSignal,
  ) {
    // Only a hand or a key renews the claim: a study that lies open on a screen nobody sits at is free again.
    const life = Number(page.dataset.claim ?? 15) * 60_000;
    const alive = () => void (Date.now() - this.held > life / 3 && this.hold());
    for (const kind of ["pointermove", "pointerdown", "keydown", "wheel"]) page.addEventListener(kind, alive, { passive: true, signal: leaving });
  }

  private get url(): string {
    return `/api/v1/studies/${this.page.dataset.study!}/claim`;
  }

  async hold(): Promise<void> {
    // An addendum is to a signed study, which nobody holds.
    if (!this.editable() || this.page.dataset.parent || document.hidden) return;
    this.held = Date.now();
    try {
      await send(this.url, null);
      this.holding = true;
    } catch (error) {
      // A connection that is lost comes back, and so does a reader who was logged out.
      if (!(error instanceof Refusal) || error.status >= 500 || error.status === 401 || error.status === 429) return;
      this.page.dataset.review = "false";
      this.say(_("%(reason)s. You can look; answers are not kept.", { reason: error.message }));
    }
  }

  /** Give it back; the request outlives the page. */
  release(): void {
    if (this.holding && this.page.dataset.signed !== "true") void send(this.url, null, "DELETE").catch(() => null);
  }
}
