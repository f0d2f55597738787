/** What the pointer does: window, pan, zoom, and measuring a length. */
import { BaseTool, Enums, LengthTool, ToolGroupManager, addTool, annotation, cancelActiveManipulations } from "@cornerstonejs/tools";
import { _, number } from "./language";
import type { Pane } from "./pane";
import type { Frame } from "./frame";

const GROUP = "radiographs";
const { Primary, Auxiliary, Secondary, Wheel } = Enums.MouseBindings;

/** What a length is measured in; what the file does not say is not guessed. */
export function unit(kind: Frame["spacingKind"]): string {
  return { calibrated: _("mm, calibrated"), detector: _("mm at detector"), stated: _("mm, calibration not stated"), none: _("px, no spacing in the file") }[kind ?? "none"];
}

/** A length between two points in world units: mm where the file gives a spacing, else pixels. */
export function length(from: number[], to: number[], frame: Frame): string {
  const distance = Math.hypot(to[0]! - from[0]!, to[1]! - from[1]!);
  return `${number(distance.toFixed(frame.spacing ? 1 : 0))} ${unit(frame.spacing ? frame.spacingKind : null)}`;
}

/** Where the tools find the pane of an element: cornerstone makes its tools itself. */
let panesOf: () => Pane[] = () => [];

type Point = [number, number];

/** What an event of cornerstone's tells, as far as it is used here; CSS px in the element. */
interface Dragged {
  detail: { element: HTMLElement; deltaPoints: { canvas: Point }; startPoints: { canvas: Point }; currentPoints: { canvas: Point } };
}

/** A tool of the mouse alone: fingers are touch.ts's. */
abstract class MouseTool extends BaseTool {
  constructor(props = {}) {
    super(props, { supportedInteractionTypes: ["Mouse"], configuration: {} });
  }

  protected pane(element: HTMLElement): Pane | undefined {
    return panesOf().find((pane) => pane.element === element && pane.frame);
  }
}

/** Dragging changes the window: sideways its width, up and down its level, at a speed that fits the sender's window. */
class WindowTool extends MouseTool {
  static override toolName = "WetreadWindow";

  mouseDragCallback({ detail: { element, deltaPoints } }: Dragged): void {
    this.pane(element)?.drag(...deltaPoints.canvas);
  }
}

/** Dragging moves the picture with the pointer. */
class MoveTool extends MouseTool {
  static override toolName = "WetreadMove";

  mouseDragCallback({ detail: { element, deltaPoints, currentPoints } }: Dragged): void {
    const [[x, y], [across, down]] = [currentPoints.canvas, deltaPoints.canvas];
    this.pane(element)?.carry([x - across, y - down], [x, y]);
  }
}

/** Dragging down zooms in where the drag began, the wheel where the pointer is. */
class ZoomTool extends MouseTool {
  static override toolName = "WetreadZoom";

  mouseDragCallback({ detail: { element, deltaPoints, startPoints } }: Dragged): void {
    this.pane(element)?.carry(startPoints.canvas, startPoints.canvas, Math.exp((5 * deltaPoints.canvas[1]) / element.clientHeight));
  }

  mouseWheelCallback({ detail: { element, points, wheel } }: { detail: { element: HTMLElement; points: { canvas: Point }; wheel: { direction: number } } }): void {
    this.pane(element)?.carry(points.canvas, points.canvas, 1.1 ** -wheel.direction);
  }
}

interface Measured {
  handles: { points: number[][] };
}

export class Tools {
  private readonly group = ToolGroupManager.createToolGroup(GROUP);
  measuring = false;
  /** Dragging moves the picture instead of changing its window. */
  moving = false;
  /** The lengths that were there when a finger came down. */
  private before = new Set<string>();

  constructor(panes: () => Pane[]) {
    const { group } = this;
    if (!group) throw new Error(_("the viewer's tools could not start; reload the page"));
    panesOf = panes;
    for (const tool of [WindowTool, MoveTool, ZoomTool, LengthTool]) addTool(tool);
    group.addTool(WindowTool.toolName);
    group.addTool(MoveTool.toolName);
    group.addTool(ZoomTool.toolName);
    group.addTool(LengthTool.toolName, {
      actions: {}, // its own keys; ours are in keys.ts
      getTextLines: ({ handles: { points } }: Measured, target: string) => {
        const frame = panes().find(({ image }) => image && target.includes(image))?.frame;
        return frame && points[1] ? [length(points[0]!, points[1], frame)] : [];
      },
    });
    group.setToolActive(ZoomTool.toolName, { bindings: [{ mouseButton: Secondary }, { mouseButton: Wheel }] });
    this.measure(false);
  }

  /** Whether dragging measures, or else changes the window. What was measured stays, and can be moved while measuring. */
  measure(on: boolean): void {
    this.measuring = on;
    this.moving &&= !on;
    this.bind();
  }

  /** Whether dragging moves the picture, or else changes the window. */
  move(on: boolean): void {
    this.moving = on;
    this.measuring &&= !on;
    this.bind();
  }

  private bind(): void {
    const group = this.group!;
    const always = [{ mouseButton: Auxiliary }, { mouseButton: Primary, modifierKey: Enums.KeyboardBindings.Shift }];
    const primary = [{ mouseButton: Primary }];
    for (const { toolName } of [MoveTool, LengthTool]) group.setToolPassive(toolName, { removeAllBindings: true });
    group.setToolDisabled(WindowTool.toolName);
    group.setToolActive(MoveTool.toolName, { bindings: this.moving ? [...always, ...primary] : always });
    if (this.measuring) group.setToolActive(LengthTool.toolName, { bindings: primary });
    else if (!this.moving) group.setToolActive(WindowTool.toolName, { bindings: primary });
  }

  /** A finger came down: what it may begin to measure is new. */
  begin(): void {
    this.before = new Set(annotation.state.getAllAnnotations().map(({ annotationUID }) => annotationUID!));
  }

  /** A second finger came: what the first began to measure was not meant. */
  abandon(pane: Pane): void {
    const begun = cancelActiveManipulations(pane.element);
    if (begun && !this.before.has(begun)) annotation.state.removeAnnotation(begun);
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
