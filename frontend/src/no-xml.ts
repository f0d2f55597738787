/** Stands for xmlbuilder2, which vtk.js imports for VTK's XML files. We read none, and it needs Node's modules. */
export function create(): never {
  throw new Error("VTK's XML files are not read here");
}
