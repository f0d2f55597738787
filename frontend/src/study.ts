import { Viewer } from "./viewer";
import { Overlay } from "./heatmap";
const v = Viewer.start(document.querySelector("#viewport")!);
new Overlay(v, document.querySelector("#overlay")!);
