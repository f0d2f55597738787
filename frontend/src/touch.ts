/**
 * Fingers on a picture, as a tablet's reader expects: one does what dragging does now (window, move, magnifier), two zoom
 * and move together, a double tap resets. Measuring with one finger is cornerstone's own.
 */
import type { Pane } from "./pane";

type Point = [number, number];

/** What one finger does. */
export type Finger = "window" | "move" | "nothing";

const STILL = 8; // CSS px that a finger may tremble without dragging
const TAP_MS = 350; // of a tap, and between two
const NEAR = 40; // CSS px between two taps that are one double tap

export class Touch {
  private readonly fingers = new Map<number, Point>();
  private dragging = false;
  /** A second finger was down: the one that stays longer does nothing more. */
  private spent = false;
  private down: { at: number; point: Point } | null = null;
  private tapped: { at: number; point: Point } | null = null;

  /** `finger` says what one does, `second` is told when another comes. */
  constructor(
    private readonly pane: Pane,
    private readonly does: { finger: () => Finger; second: (pane: Pane) => void; doubleTap: () => void },
  ) {
    const listen = (kind: "pointerdown" | "pointermove" | "pointerup" | "pointercancel", answer: (event: PointerEvent) => void) =>
      pane.element.addEventListener(kind, (event) => {
        if (event.pointerType === "touch") answer.call(this, event);
      });
    listen("pointerdown", this.start);
    listen("pointermove", this.move);
    listen("pointerup", this.end);
    listen("pointercancel", this.end);
  }

  /** Where an event is in the picture's element, CSS px. */
  private place(event: PointerEvent): Point {
    const { left, top } = this.pane.element.getBoundingClientRect();
    return [event.clientX - left, event.clientY - top];
  }

  private start(event: PointerEvent): void {
    if (event.isPrimary) this.fingers.clear(); // whose end was missed
    this.fingers.set(event.pointerId, this.place(event));
    if (this.fingers.size === 1) {
      this.dragging = this.spent = false;
      this.down = { at: event.timeStamp, point: this.place(event) };
    } else {
      if (!this.spent) this.does.second(this.pane);
      this.spent = true;
      this.down = this.tapped = null;
    }
  }

  private move(event: PointerEvent): void {
    const { pane } = this;
    const before = this.fingers.get(event.pointerId);
    if (!before || !pane.frame) return;
    const now = this.place(event);
    if (this.fingers.size === 2) {
      const other = [...this.fingers].find(([id]) => id !== event.pointerId)![1];
      pane.carry(middle(before, other), middle(now, other), Math.max(1, apart(now, other)) / Math.max(1, apart(before, other)));
    } else if (this.fingers.size === 1 && !this.spent) {
      this.dragging ||= !this.down || apart(this.down.point, now) > STILL;
      if (!this.dragging) return; // from where it began, once it is a drag
      const finger = this.does.finger();
      if (finger === "window") pane.drag(now[0] - before[0], now[1] - before[1]);
      else if (finger === "move") pane.carry(before, now);
    }
    this.fingers.set(event.pointerId, now);
  }

  private end(event: PointerEvent): void {
    if (!this.fingers.delete(event.pointerId) || this.spent || this.dragging || event.type === "pointercancel") return;
    const [at, point] = [event.timeStamp, this.place(event)];
    if (!this.down || at - this.down.at > TAP_MS) return;
    const before = this.tapped;
    this.tapped = { at, point };
    if (!before || this.down.at - before.at > TAP_MS || apart(before.point, point) > NEAR) return;
    this.tapped = null;
    this.does.doubleTap();
  }
}

const middle = (a: Point, b: Point): Point => [(a[0] + b[0]) / 2, (a[1] + b[1]) / 2];
const apart = (a: Point, b: Point): number => Math.hypot(a[0] - b[0], a[1] - b[1]);
