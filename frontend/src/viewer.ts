/** The radiograph on screen: a cornerstone3D stack viewport over frames that our own server sends decompressed. */
import {
  Enums,
  RenderingEngine,
  imageLoader,
  init as initCore,
  metaData,
  setUseCPURendering,
  utilities,
  type Types,
} from "@cornerstonejs/core";
import {
  Enums as ToolEnums,
  PanTool,
  ToolGroupManager,
  WindowLevelTool,
  ZoomTool,
  addTool,
  init as initTools,
} from "@cornerstonejs/tools";

const SCHEME = "wetread";
const VIEWPORT = "radiograph";

/** A window as the lowest and the highest pixel value shown. */
export interface Window {
  lower: number;
  upper: number;
}

export interface Frame {
  rows: number;
  columns: number;
  bits: number;
  /** Millimetres between rows and between columns; null when the file does not say. */
  spacing: [number, number] | null;
  pixels: Uint8Array | Uint16Array;
}

const frames = new Map<string, Frame>();

/** Fetch one frame: raw little-endian pixels, dense tissue bright whatever the polarity of its file. */
export async function fetchFrame(image: string): Promise<Frame> {
  const known = frames.get(image);
  if (known) return known;
  const response = await fetch(`/api/v1/images/${encodeURIComponent(image)}/frame`, { credentials: "same-origin" });
  if (!response.ok) {
    const problem: unknown = await response.json().catch(() => null);
    const detail = problem && typeof problem === "object" && "detail" in problem ? String(problem.detail) : "";
    throw new Error(detail || `the server answered ${response.status}`);
  }
  const header = (name: string) => response.headers.get(`Wetread-${name}`) ?? "";
  const [rows, columns, bits] = [Number(header("Rows")), Number(header("Columns")), Number(header("Bits"))];
  const buffer = await response.arrayBuffer();
  if (buffer.byteLength !== rows * columns * (bits / 8)) {
    throw new Error(`the frame has ${buffer.byteLength} bytes instead of ${rows * columns * (bits / 8)}; reload the page`);
  }
  const spacing = header("Spacing").split(",").map(Number);
  const frame: Frame = {
    rows,
    columns,
    bits,
    spacing: spacing.length === 2 && spacing.every((s) => s > 0) ? [spacing[0]!, spacing[1]!] : null,
    pixels: bits === 16 ? new Uint16Array(buffer) : new Uint8Array(buffer),
  };
  frames.set(image, frame);
  return frame;
}

/** The pixel values below which the given fractions of the frame lie. */
export function quantiles(frame: Frame, fractions: number[]): number[] {
  const counts = new Uint32Array(2 ** frame.bits);
  for (const value of frame.pixels) counts[value]!++;
  return fractions.map((fraction) => {
    let rest = fraction * frame.pixels.length;
    for (let value = 0; value < counts.length; value++) {
      rest -= counts[value]!;
      if (rest <= 0) return value;
    }
    return counts.length - 1;
  });
}

/** Windows by what a reader looks for. "original" is the one that the sender chose. */
export function presets(frame: Frame): Record<"original" | "lungs" | "mediastinum", Window> {
  const top = 2 ** frame.bits - 1;
  const [dark, low, middle, bright] = quantiles(frame, [0.02, 0.3, 0.7, 0.995]) as [number, number, number, number];
  const window = (lower: number, upper: number): Window => ({ lower, upper: Math.max(upper, lower + 1) });
  return {
    original: window(0, top),
    lungs: window(dark, middle),
    mediastinum: window(low, bright),
  };
}

function loadFrame(imageId: string): { promise: Promise<Types.IImage> } {
  const image = imageId.slice(SCHEME.length + 1);
  const promise = fetchFrame(image).then((frame) => {
    const top = 2 ** frame.bits - 1;
    const [rowSpacing, columnSpacing] = frame.spacing ?? [1, 1];
    const voxelManager = utilities.VoxelManager.createImageVoxelManager({
      scalarData: frame.pixels,
      width: frame.columns,
      height: frame.rows,
      numberOfComponents: 1,
    });
    return {
      imageId,
      rows: frame.rows,
      columns: frame.columns,
      height: frame.rows,
      width: frame.columns,
      rowPixelSpacing: rowSpacing,
      columnPixelSpacing: columnSpacing,
      minPixelValue: 0,
      maxPixelValue: top,
      // DICOM's linear window: width counts the values from the lowest to the highest, both included.
      windowCenter: (top + 1) / 2,
      windowWidth: top + 1,
      voiLUTFunction: Enums.VOILUTFunctionType.LINEAR,
      slope: 1,
      intercept: 0,
      // The server has already inverted MONOCHROME1; nothing here may do so again.
      invert: false,
      photometricInterpretation: "MONOCHROME2",
      color: false,
      rgba: false,
      numberOfComponents: 1,
      dataType: frame.bits === 16 ? "Uint16Array" : "Uint8Array",
      sizeInBytes: frame.pixels.byteLength,
      voxelManager,
      getPixelData: () => voxelManager.getScalarData(),
    } as unknown as Types.IImage;
  });
  return { promise };
}

function provideMetadata(type: string, imageId: string): unknown {
  if (typeof imageId !== "string" || !imageId.startsWith(`${SCHEME}:`)) return undefined;
  const frame = frames.get(imageId.slice(SCHEME.length + 1));
  if (!frame) return undefined;
  const [rowSpacing, columnSpacing] = frame.spacing ?? [1, 1];
  switch (type) {
    case "imagePixelModule":
      return {
        rows: frame.rows,
        columns: frame.columns,
        samplesPerPixel: 1,
        photometricInterpretation: "MONOCHROME2",
        bitsAllocated: frame.bits,
        bitsStored: frame.bits,
        highBit: frame.bits - 1,
        pixelRepresentation: 0,
      };
    case "imagePlaneModule":
      return {
        frameOfReferenceUID: imageId,
        rows: frame.rows,
        columns: frame.columns,
        rowCosines: [1, 0, 0],
        columnCosines: [0, 1, 0],
        imageOrientationPatient: [1, 0, 0, 0, 1, 0],
        imagePositionPatient: [0, 0, 0],
        rowPixelSpacing: rowSpacing,
        columnPixelSpacing: columnSpacing,
        pixelSpacing: [rowSpacing, columnSpacing],
        usingDefaultValues: frame.spacing === null,
      };
    case "generalSeriesModule":
      return { modality: "DX", seriesInstanceUID: imageId };
    default:
      return undefined;
  }
}

export class Viewer {
  private readonly engine: RenderingEngine;
  private readonly viewport: Types.IStackViewport;
  private frame: Frame | null = null;
  image = "";

  private constructor(readonly element: HTMLDivElement) {
    this.engine = new RenderingEngine("wetread");
    this.engine.enableElement({
      viewportId: VIEWPORT,
      type: Enums.ViewportType.STACK,
      element,
      defaultOptions: { background: [0, 0, 0] },
    });
    this.viewport = this.engine.getViewport(VIEWPORT) as Types.IStackViewport;
    const group = ToolGroupManager.createToolGroup(VIEWPORT);
    if (!group) throw new Error("the viewer's tools could not start; reload the page");
    const { Primary, Auxiliary, Secondary, Wheel } = ToolEnums.MouseBindings;
    for (const tool of [WindowLevelTool, PanTool, ZoomTool]) {
      addTool(tool);
      group.addTool(tool.toolName);
    }
    group.setToolActive(WindowLevelTool.toolName, { bindings: [{ mouseButton: Primary }] });
    group.setToolActive(PanTool.toolName, {
      bindings: [{ mouseButton: Auxiliary }, { mouseButton: Primary, modifierKey: ToolEnums.KeyboardBindings.Shift }],
    });
    group.setToolActive(ZoomTool.toolName, { bindings: [{ mouseButton: Secondary }, { mouseButton: Wheel }] });
    group.addViewport(VIEWPORT, "wetread");
    element.addEventListener("contextmenu", (event) => event.preventDefault());
    new ResizeObserver(() => this.engine.resize(true, true)).observe(element);
  }

  static start(element: HTMLDivElement): Viewer {
    initCore();
    initTools();
    // Without WebGL (a remote desktop, an old driver) cornerstone draws on the CPU instead.
    if (!document.createElement("canvas").getContext("webgl2")) setUseCPURendering(true);
    imageLoader.registerImageLoader(SCHEME, loadFrame as Parameters<typeof imageLoader.registerImageLoader>[1]);
    metaData.addProvider(provideMetadata, 1000);
    return new Viewer(element);
  }

  /** Show an image, whole and as its sender meant it. */
  async show(image: string): Promise<void> {
    this.frame = await fetchFrame(image);
    this.image = image;
    await this.viewport.setStack([`${SCHEME}:${image}`]);
    this.reset();
  }

  /** Whole image, the sender's window, and the polarity of a radiograph: bone bright, air dark. */
  reset(): void {
    this.viewport.resetCamera();
    this.window("original");
    this.viewport.setProperties({ invert: false });
    this.viewport.render();
  }

  window(name: keyof ReturnType<typeof presets>): void {
    if (!this.frame) return;
    const invert = this.inverted;
    this.viewport.setProperties({ voiRange: presets(this.frame)[name] });
    if (this.inverted !== invert) this.viewport.setProperties({ invert });
    this.viewport.render();
  }

  get inverted(): boolean {
    return Boolean(this.viewport.getProperties().invert);
  }

  /** The window as DICOM writes it, in pixel values of the frame. */
  get level(): { center: number; width: number } {
    const { lower, upper } = this.viewport.getProperties().voiRange ?? { lower: 0, upper: 0 };
    return { center: Math.round((lower + upper + 1) / 2), width: Math.round(upper - lower + 1) };
  }

  invert(): void {
    this.viewport.setProperties({ invert: !this.inverted });
    this.viewport.render();
  }

  get zoom(): number {
    return this.viewport.getZoom();
  }

  zoomBy(factor: number): void {
    this.viewport.setZoom(Math.min(20, Math.max(0.25, this.viewport.getZoom() * factor)));
    this.viewport.render();
  }

  panBy(x: number, y: number): void {
    const [left, top] = this.viewport.getPan();
    this.viewport.setPan([left + x, top + y]);
    this.viewport.render();
  }

  /** Position on screen, in CSS px within the element, of a point given as fractions of the image's width and height. */
  toScreen(x: number, y: number): [number, number] {
    if (!this.frame) return [0, 0];
    const [rowSpacing, columnSpacing] = this.frame.spacing ?? [1, 1];
    // World coordinates are those of pixel centres; the image begins half a pixel before the first.
    const world: Types.Point3 = [(x * this.frame.columns - 0.5) * columnSpacing, (y * this.frame.rows - 0.5) * rowSpacing, 0];
    return this.viewport.worldToCanvas(world) as [number, number];
  }

  onRendered(callback: () => void): void {
    this.element.addEventListener(Enums.Events.IMAGE_RENDERED, callback);
  }
}
