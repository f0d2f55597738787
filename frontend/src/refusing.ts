/** Images that should not count (of another patient, no chest, not readable): refused with a reason, and taken back. */
import { on } from "./keys";
import { send } from "./page";

const find = <T extends HTMLElement>(selector: string) => document.querySelector<T>(selector);
const all = <T extends HTMLElement>(selector: string) => [...document.querySelectorAll<T>(selector)];
const url = (image: string) => `/api/v1/images/${encodeURIComponent(image)}/rejection`;

/** Answer "Shift x"; `front` is the image that is looked at, `changed` shows the study as it is then. */
export function refusing(front: () => string, changed: () => void): void {
  const dialog = find<HTMLDialogElement>("#refusing");
  if (!dialog) return; // who does not read refuses nothing
  const words = find<HTMLInputElement>("#refused-words")!;
  const why = () => find<HTMLInputElement>('[name="refused-why"]:checked');
  let done = false;

  function open(): void {
    if (dialog!.open) return;
    const lines = all<HTMLButtonElement>("[data-image]:enabled").map((button) => {
      const [line, box] = [document.createElement("label"), document.createElement("input")];
      line.className = "choice";
      box.type = "checkbox";
      box.value = button.dataset.image!;
      box.checked = box.value === front();
      line.append(box, ` ${button.textContent}`);
      return line;
    });
    find("#refused-images")!.replaceChildren(...lines);
    find<HTMLButtonElement>('#refusing [value="refuse"]')!.disabled = !lines.length;
    check();
    say("");
    dialog!.showModal();
    (why() ?? find('[name="refused-why"]'))!.focus();
  }

  function say(text: string): void {
    const place = find("#refused-error")!;
    place.textContent = text;
    place.hidden = !text;
  }

  /** What is typed stays when the server says no: the dialog is open then, and holds the images that are still shown. */
  async function deed(what: () => Promise<void>): Promise<void> {
    try {
      await what();
      dialog!.close();
    } catch (error) {
      say((error as Error).message);
    }
  }

  async function refuse(): Promise<void> {
    const { value, dataset } = why()!;
    const body = { code: dataset.code, reason: [value, words.value.trim()].filter(Boolean).join(": ") };
    for (const box of all<HTMLInputElement>("#refused-images :checked")) {
      await send(url(box.value), body);
      done = true;
      box.closest("label")!.remove();
    }
  }

  // One image at least, and words where the list has none.
  function check(): void {
    words.required = why()?.value === "";
    const boxes = all<HTMLInputElement>("#refused-images input");
    for (const box of boxes) box.required = !boxes.some(({ checked }) => checked);
  }
  dialog.addEventListener("change", check);
  dialog.querySelector("form")!.addEventListener("submit", (event) => {
    if ((event.submitter as HTMLButtonElement | null)?.value !== "refuse") return; // cancel closes it
    event.preventDefault();
    void deed(refuse);
  });
  dialog.addEventListener("click", ({ target }) => {
    const image = (target as HTMLElement).closest<HTMLElement>("[data-take-back]")?.dataset.takeBack;
    if (!image) return;
    void deed(async () => {
      await send(url(image), null, "DELETE");
      done = true;
    });
  });
  dialog.addEventListener("close", () => done && changed());
  on({ "study.refuse": open });
}
