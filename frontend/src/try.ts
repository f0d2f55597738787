/** Try it: one image to the server and back with what the models say; nothing of it is kept, here or there. */
import { type HeatMap, picture } from "./heatmap";
import { _, number, told, word } from "./language";
import { Refusal, send } from "./page";

interface Finding {
  finding: string;
  probability: number;
  threshold: number;
  flagged: boolean;
  call: string;
  level: number;
  rows: number;
  columns: number;
  values: number[];
}

interface Said {
  model: string;
  version: string;
  point: string;
  suitable: boolean;
  code: string | null;
  reason: string;
  cautions: string[];
  box: HeatMap["box"] | null;
  findings: Finding[];
}

interface Tried {
  picture: string;
  rows: number;
  columns: number;
  view: string | null;
  models: Said[];
}

const OPACITY = 0.6;
const at = <T extends HTMLElement>(id: string) => document.getElementById(id) as T;
const say = (words: string) => (at("state").textContent = words);
const image = at<HTMLImageElement>("picture");
const overlay = at<HTMLCanvasElement>("overlay");

/** The last question counts: an answer to an earlier one that comes late is not shown. */
let asked = 0;

function element(name: string, words = ""): HTMLElement {
  const made = document.createElement(name);
  made.textContent = words;
  return made;
}

/** Draw a finding's map over the picture, or take it away. */
function show(map: HeatMap | null, button: HTMLButtonElement | null): void {
  for (const other of document.querySelectorAll<HTMLButtonElement>(".saying")) other.setAttribute("aria-pressed", String(other === button));
  at<HTMLButtonElement>("original").disabled = !map;
  at("legend").hidden = !map;
  overlay.width = image.naturalWidth;
  overlay.height = image.naturalHeight;
  if (!map) return;
  const context = overlay.getContext("2d")!;
  const [x, y, width, height] = map.box;
  context.globalAlpha = OPACITY;
  context.imageSmoothingQuality = "high";
  context.drawImage(picture(map), x * overlay.width, y * overlay.height, width * overlay.width, height * overlay.height);
}

function line(said: Said, finding: Finding): HTMLElement {
  const button = element("button") as HTMLButtonElement;
  button.type = "button";
  button.className = "saying";
  button.dataset.call = finding.call;
  button.dataset.finding = finding.finding;
  button.style.setProperty("--level", String(finding.level));
  button.setAttribute("aria-pressed", "false");
  button.title = _("probability %(probability)s, operating point %(point)s at %(threshold)s", {
    probability: number(finding.probability.toFixed(2)),
    point: said.point,
    threshold: number(finding.threshold.toFixed(2)),
  });
  button.append(element("span", `${finding.level ? "└ " : ""}${word(finding.finding, "finding")}`), element("span", word(finding.call, "call")), element("span", finding.flagged ? _("flagged") : ""));
  const map = said.box && finding.rows ? { rows: finding.rows, columns: finding.columns, values: finding.values, box: said.box } : null;
  button.disabled = !map;
  button.addEventListener("click", () => {
    const shown = button.getAttribute("aria-pressed") === "true";
    show(shown ? null : map, shown ? null : button);
  });
  return button;
}

function block(said: Said): HTMLElement {
  const made = element("section");
  const heading = element("h2");
  heading.append(element("span", _("AI triage result")), element("span", `${said.model} ${said.version}`));
  made.append(heading);
  if (!said.suitable) made.append(element("p", _("Not analysed (%(code)s): %(reason)s", { code: said.code ? word(said.code, "code") : _("refused"), reason: told(said.reason) })));
  for (const caution of said.cautions) made.append(element("p", `! ${told(caution)}`));
  made.append(...said.findings.map((finding) => line(said, finding)));
  return made;
}

function forget(): void {
  asked++;
  at("answer").hidden = true;
  at("models").replaceChildren();
  image.removeAttribute("src");
  overlay.width = overlay.height = 0;
  say("");
}

async function ask(form: FormData, what: string): Promise<void> {
  forget();
  const mine = asked;
  form.append("model", at<HTMLSelectElement>("model").value);
  say(_("%(what)s: on its way …", { what }));
  try {
    const answer = (await send("/api/v1/try", form)) as Tried;
    if (mine !== asked) return;
    image.src = `data:image/png;base64,${answer.picture}`;
    await image.decode();
    at("about").textContent = _("The original, in its sender's window: %(columns)s × %(rows)s pixels, %(view)s.", {
      columns: answer.columns,
      rows: answer.rows,
      view: answer.view ?? _("view unknown"),
    });
    at("models").replaceChildren(...answer.models.map(block));
    at("answer").hidden = false;
    show(null, null);
    say(_("%(what)s: analysed, and not kept", { what }));
  } catch (error) {
    if (mine !== asked) return;
    const code = error instanceof Refusal ? (error.answer as { code?: string } | null)?.code : undefined;
    const reason = (error as Error).message;
    say(code ? _("%(what)s: refused (%(code)s): %(reason)s", { what, code, reason }) : _("%(what)s: refused: %(reason)s", { what, reason }));
  }
}

function askFile(files: FileList | null | undefined): void {
  const file = files?.[0];
  if (!file) return;
  const most = Number(document.body.dataset.most);
  if (files.length > 1) return void say(_("one image at a time, please"));
  if (file.size > most) return void say(_("%(what)s: refused (TOO_LARGE): %(size)s bytes; at most %(most)s are read", { what: file.name, size: file.size, most }));
  const form = new FormData();
  // Its name may be a patient's and is of no use to the server.
  form.append("file", file, "image");
  void ask(form, file.name);
}

at("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const url = at<HTMLInputElement>("url");
  if (!url.value) return void say(_("choose an image, drop one, or give the address of one"));
  const form = new FormData();
  form.append("url", url.value);
  void ask(form, _("the address"));
});
at<HTMLInputElement>("file").addEventListener("change", (event) => {
  const field = event.target as HTMLInputElement;
  askFile(field.files);
  field.value = "";
});
at("original").addEventListener("click", () => show(null, null));
at("forget").addEventListener("click", () => {
  forget();
  say(_("gone"));
});
document.addEventListener("dragover", (event) => {
  if (!event.dataTransfer?.types.includes("Files")) return;
  event.preventDefault();
  at("drop").hidden = false;
});
at("drop").addEventListener("dragleave", () => (at("drop").hidden = true));
document.addEventListener("drop", (event) => {
  if (!event.dataTransfer?.types.includes("Files")) return;
  event.preventDefault();
  at("drop").hidden = true;
  askFile(event.dataTransfer.files);
});
