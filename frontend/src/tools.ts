/** What the pointer does: window, pan, zoom, and measuring a length. */
import {
  Enums,
  LengthTool,
  PanTool,
  ToolGroupManager,
  WindowLevelTool,
  ZoomTool,
  addTool,
  annotation,
} from "@cornerstonejs/tools";
import type { Pane } from "./pane";
import type { Frame } from "./frame";

const GROUP = "radiographs";
const { Primary, Auxiliary, Secondary, Wheel } = Enums.MouseBindings;

/** What a length is measured in; what the file does not say is not guessed. */
export function unit(kind: Frame["spacingKind"]): string {
  return { calibrated: "mm, calibrated", detector: "mm at detector", stated: "mm, calibration not stated", none: "px, no spacing in the file" }[kind ?? "none"];
}

/** A length between two points in world units: mm where the file gives a spacing, else pixels. */
export function length(from: number[], to: number[], frame: Frame): string {
  const distance = Math.hypot(to[0]! - from[0]!, to[1]! - from[1]!);
  return `${distance.toFixed(frame.spacing ? 1 : 0)} ${unit(frame.spacing ? frame.spacingKind : null)}`;
}

/** Where the tools find the pane of an element: cornerstone makes its tools itself. */
let panesOf: () => Pane[] = () => [];

/** Dragging changes the window: sideways its width, up and down its level, at a speed that fits the sender's window. */
class WindowTool extends WindowLevelTool {
  static override toolName = "WetreadWindow";

  override mouseDragCallback({ detail }: { detail: { element: HTMLElement; deltaPoints: { canvas: [number, number] } } }): void {
    const [across, down] = detail.deltaPoints.canvas;
    panesOf().find(({ element }) => element === detail.element)?.drag(across, down);
  }
}

interface Measured {
  handles: { points: number[][] };
}

export class Tools {
  private readonly group = ToolGroupManager.createToolGroup(GROUP);
  measuring = false;

  constructor(panes: () => Pane[]) {
    const { group } = this;
    if (!group) throw new Error("the viewer's tools could not start; reload the page");
    panesOf = panes;
    for (const tool of [WindowTool, PanTool, ZoomTool, LengthTool]) addTool(tool);
    group.addTool(WindowTool.toolName);
    group.addTool(PanTool.toolName);
    group.addTool(ZoomTool.toolName);
    group.addTool(LengthTool.toolName, {
      actions: {}, // its own keys; ours are in keys.ts
      getTextLines: ({ handles: { points } }: Measured, target: string) => {
        const frame = panes().find(({ image }) => image && target.includes(image))?.frame;
        return frame && points[1] ? [length(points[0]!, points[1], frame)] : [];
      },
    });
    group.setToolActive(PanTool.toolName, {
      bindings: [{ mouseButton: Auxiliary }, { mouseButton: Primary, modifierKey: Enums.KeyboardBindings.Shift }],
    });
    group.setToolActive(ZoomTool.toolName, { bindings: [{ mouseButton: Secondary }, { mouseButton: Wheel }] });
    this.measure(false);
  }

  /** Whether dragging measures, or else changes the window. What was measured stays, and can be moved while measuring. */
  measure(on: boolean): void {
    this.measuring = on;
    const [now, before] = on ? [LengthTool, WindowTool] : [WindowTool, LengthTool];
    if (on) this.group!.setToolDisabled(before.toolName);
    else this.group!.setToolPassive(before.toolName, { removeAllBindings: true });
    this.group!.setToolActive(now.toolName, { bindings: [{ mouseButton: Primary }] });
  }

  clear(panes: Pane[]): void {
    annotation.state.removeAllAnnotations();
    for (const pane of panes) pane.viewport.render();
  }

  add(pane: Pane): void {
    this.group!.addViewport(pane.id, pane.engine.id);
  }

  remove(pane: Pane): void {
    this.group!.removeViewports(pane.engine.id, pane.id);
  }
}
