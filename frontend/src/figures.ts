/** The pages of figures: charts drawn from the tables beside them, which say the same in words; and what stays live. */
import htmx from "htmx.org";
import {
  BarController,
  BarElement,
  CategoryScale,
  Chart,
  type ChartConfiguration,
  type ChartDataset,
  Legend,
  type LegendItem,
  LinearScale,
  LineController,
  LineElement,
  PointElement,
  Tooltip,
} from "chart.js";
import { _, locale } from "./language";
import { clock, tick } from "./page";

/** One number of a table: what is drawn, from where to where it may be, and what is read. */
interface Cell {
  value: number | null;
  range: [number, number] | null;
  words: string;
}

interface Series {
  name: string;
  cells: Cell[];
}

/** Dots on the ranges that the bars are: the value itself, which need not be in the middle. */
const dots = {
  id: "dots",
  afterDatasetsDraw(chart: Chart): void {
    for (const [n, dataset] of chart.data.datasets.entries()) {
      const values = (dataset as { dots?: (number | null)[] }).dots;
      if (!values || !chart.isDatasetVisible(n)) continue;
      for (const [row, bar] of chart.getDatasetMeta(n).data.entries()) {
        const value = values[row];
        if (value === null || value === undefined) continue;
        const { ctx } = chart;
        ctx.beginPath();
        ctx.arc(chart.scales.x!.getPixelForValue(value), bar.y, 4, 0, 2 * Math.PI);
        ctx.fillStyle = n ? style("--ground") : style("--mark");
        ctx.strokeStyle = n ? style("--mark-2") : style("--mark");
        ctx.lineWidth = 2;
        ctx.fill();
        ctx.stroke();
      }
    }
  },
};

Chart.register(BarController, BarElement, CategoryScale, Legend, LinearScale, LineController, LineElement, PointElement, Tooltip, dots);

Chart.defaults.locale = locale;

/** From so many points on, a line has no shapes on it, and an axis only the days. */
const MANY = 48;

const drawn = new Map<HTMLElement, Chart>();

/** A colour of the style sheet as the theme in force has it: `light-dark()` is decided only where a colour is used. */
function style(name: string): string {
  const probe = document.body.appendChild(document.createElement("span"));
  probe.style.color = `var(${name})`;
  const { color } = getComputedStyle(probe);
  probe.remove();
  return color;
}

/** Percent are kept as shares. */
const scaled = (value: number, unit: string) => (unit === "%" ? 100 * value : value);

/** Take a table apart: a name for each row, and the columns that are to be drawn. */
function read(table: HTMLTableElement, unit: string): { names: string[]; series: Series[] } {
  const heads = [...table.tHead!.rows[0]!.cells];
  const rows = [...table.tBodies[0]!.rows].filter((row) => row.dataset.skip === undefined);
  const cell = (row: HTMLTableRowElement, column: number): Cell => {
    const found = row.cells[column]!;
    const { value, low, high } = found.dataset;
    return {
      value: value === undefined ? null : scaled(Number(value), unit),
      range: low === undefined || high === undefined ? null : [scaled(Number(low), unit), scaled(Number(high), unit)],
      words: found.textContent!.trim(),
    };
  };
  return {
    names: rows.map((row) => row.cells[0]!.textContent!.replace(/\s+/g, " ").trim()),
    series: heads.flatMap((head, column) =>
      head.dataset.series === undefined ? [] : [{ name: head.textContent!.trim(), cells: rows.map((row) => cell(row, column)) }],
    ),
  };
}

function datasets(kind: string, series: Series[]): ChartDataset<"bar" | "line", (number | [number, number] | null)[]>[] {
  return series.map((one, n) => {
    const values = one.cells.map((cell) => cell.value);
    const colour = style(n ? "--mark-2" : "--mark");
    if (kind === "line")
      return {
        type: "line" as const, label: one.name, data: values, borderColor: colour, backgroundColor: colour, borderWidth: 2,
        borderDash: n ? [6, 4] : [], pointStyle: n ? "triangle" : "circle", pointRadius: values.length > MANY ? 0 : 3, spanGaps: false,
      }; // prettier-ignore
    const ranges = one.cells.map((cell) => cell.range);
    if (kind === "interval")
      return { type: "bar" as const, label: one.name, data: ranges, dots: values, backgroundColor: colour, borderSkipped: false, categoryPercentage: 0.6, barPercentage: 0.15, minBarLength: 2 } as ChartDataset<"bar", ([number, number] | null)[]>;
    return { type: "bar" as const, label: one.name, data: values, backgroundColor: colour, maxBarThickness: 24 };
  });
}

/** Filled and hollow, as the dots are. */
function legend(chart: Chart): LegendItem[] {
  return chart.data.datasets.map((dataset, n) => ({
    text: dataset.label ?? "", datasetIndex: n, pointStyle: "circle", lineWidth: 2, fontColor: style("--quiet"),
    fillStyle: style(n ? "--ground" : "--mark"), strokeStyle: style(n ? "--mark-2" : "--mark"),
  })); // prettier-ignore
}

function draw(figure: HTMLElement): void {
  const plot = figure.querySelector<HTMLElement>(".plot")!;
  const unit = figure.dataset.unit ?? "";
  const kind = figure.dataset.chart ?? "bar";
  const { names, series } = read(figure.querySelector("table")!, unit);
  const across = kind === "interval";
  drawn.get(figure)?.destroy();
  const canvas = document.createElement("canvas");
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", _("%(title)s: a chart; the table below says the same", { title: figure.querySelector("figcaption")!.textContent! }));
  plot.replaceChildren(canvas);
  const text = { color: style("--quiet"), font: { family: getComputedStyle(document.body).fontFamily, size: 12 } };
  // Long names of findings are whole, numbers of the other axis are few.
  const days = names.length > MANY;
  const category = {
    grid: { display: false }, border: { color: style("--grid") },
    ticks: {
      ...text, color: style("--text"), autoSkip: !across && !days, maxRotation: 0,
      callback: (_: unknown, n: number) => (days ? (names[n]!.endsWith(" 00:00") ? names[n]!.slice(0, -6) : null) : names[n]),
    },
  }; // prettier-ignore
  const value = {
    beginAtZero: true, grid: { color: style("--grid") }, border: { display: false }, ticks: { ...text, precision: unit ? undefined : 0, maxTicksLimit: 6 },
    title: { display: unit !== "", text: unit, ...text }, ...(unit === "%" ? { max: 100 } : {}),
  }; // prettier-ignore
  const configuration: ChartConfiguration<"bar" | "line", (number | [number, number] | null)[]> = {
    type: kind === "line" ? "line" : "bar",
    data: { labels: names, datasets: datasets(kind, series) },
    options: {
      animation: false,
      maintainAspectRatio: false,
      indexAxis: across ? "y" : "x",
      layout: { padding: across ? { right: 8 } : 0 },
      interaction: { mode: "index", axis: across ? "y" : "x", intersect: false },
      scales: across ? { x: value, y: category } : { x: category, y: value },
      plugins: {
        legend: { display: series.length > 1, align: "start", labels: { ...text, usePointStyle: true, boxHeight: 8, ...(across ? { generateLabels: legend } : {}) } },
        tooltip: {
          animation: false, backgroundColor: style("--raised"), titleColor: style("--text"), bodyColor: style("--text"), displayColors: series.length > 1,
          callbacks: { label: (item) => `${series.length > 1 ? `${item.dataset.label}: ` : ""}${series[item.datasetIndex]!.cells[item.dataIndex]!.words}` },
        }, // prettier-ignore
      },
    },
  };
  drawn.set(figure, new Chart(canvas, configuration as ChartConfiguration));
  figure.dataset.drawn = String(names.length);
}

/** Draw what there is; what left the page is put away. */
function all(): void {
  for (const [figure, chart] of drawn) {
    if (figure.isConnected) continue;
    chart.destroy();
    drawn.delete(figure);
  }
  for (const figure of document.querySelectorAll<HTMLElement>("figure[data-chart]")) draw(figure);
}

all();
// Another theme has other shades: the system's, or one that the reader chose meanwhile in another tab.
matchMedia("(prefers-color-scheme: light)").addEventListener("change", all);
new MutationObserver(all).observe(document.documentElement, { attributeFilter: ["class"] });

// Parts of the page fetch themselves anew (htmx); whoever has a table open keeps it open.
const live = document.querySelector<HTMLElement>("#live");
const opened = () => [...document.querySelectorAll<HTMLDetailsElement>("figure details")];
let open: boolean[] = [];

function say(words: string): void {
  if (live && live.textContent !== words) live.textContent = words;
}

htmx.on("htmx:beforeSwap", () => {
  open = opened().map((details) => details.open);
});
htmx.on("htmx:afterSwap", (event) => {
  for (const [n, details] of opened().entries()) details.open = open[n] ?? false;
  tick();
  if ((event as CustomEvent<{ target: HTMLElement }>).detail.target.id !== "now") all();
  say(_("live"));
});
for (const failure of ["htmx:sendError", "htmx:responseError", "htmx:timeout"])
  htmx.on(failure, () => say(_("not live since %(time)s: the server does not answer; it is asked again", { time: clock(new Date()) })));
