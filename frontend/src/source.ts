/** Hands our frames to cornerstone3D: as `wetread:IMAGE`, or `wetread:IMAGE#n` with the sender's n-th tone already applied. */
import { Enums, cache, imageLoader, metaData, utilities, type Types } from "@cornerstonejs/core";
import { fetchFrame, held, onLeave, type Frame } from "./frame";

const SCHEME = "wetread";

/** What cornerstone calls an image; a tone that is a table is applied to the values themselves. */
export function idOf(image: string, tone = -1): string {
  return `${SCHEME}:${image}${tone < 0 ? "" : `#${tone}`}`;
}

function apart(imageId: string): { image: string; tone: number } {
  const [image, tone] = imageId.slice(SCHEME.length + 1).split("#") as [string, string?];
  return { image, tone: tone === undefined ? -1 : Number(tone) };
}

/** The values that are drawn: the frame's own, or its greys by a table. */
function drawn({ pixels, tones }: Frame, tone: number): Uint8Array | Uint16Array {
  const table = tones[tone]?.table;
  if (!table) return pixels;
  const grey = new Uint16Array(pixels.length);
  for (let i = 0; i < pixels.length; i++) grey[i] = table[pixels[i]!]!;
  return grey;
}

function load(imageId: string): { promise: Promise<Types.IImage> } {
  const { image, tone } = apart(imageId);
  return { promise: fetchFrame(image).then((frame) => made(imageId, frame, drawn(frame, tone))) };
}

function made(imageId: string, frame: Frame, scalarData: Uint8Array | Uint16Array): Types.IImage {
  const { rows, columns } = frame;
  const [rowSpacing, columnSpacing] = frame.spacing ?? [1, 1];
  const voxelManager = utilities.VoxelManager.createImageVoxelManager({ scalarData, width: columns, height: rows, numberOfComponents: 1 });
  const top = 2 ** (8 * scalarData.BYTES_PER_ELEMENT) - 1;
  return {
    imageId,
    rows,
    columns,
    height: rows,
    width: columns,
    rowPixelSpacing: rowSpacing,
    columnPixelSpacing: columnSpacing,
    minPixelValue: 0,
    maxPixelValue: top,
    windowCenter: (top + 1) / 2,
    windowWidth: top + 1,
    voiLUTFunction: Enums.VOILUTFunctionType.LINEAR,
    slope: 1,
    intercept: 0,
    // Larger is brighter already, whatever the file's polarity; nothing here may invert again.
    invert: false,
    photometricInterpretation: "MONOCHROME2",
    color: false,
    rgba: false,
    numberOfComponents: 1,
    dataType: scalarData.constructor.name,
    sizeInBytes: scalarData.byteLength,
    voxelManager,
    getPixelData: () => voxelManager.getScalarData(),
  } as unknown as Types.IImage;
}

/**
 * Have a viewport draw the values of a frame where they lie. By itself it copies them, then walks through all of them for
 * their range, which decides about half floats: those hold no 16 bits, so it is said to be all that the type holds.
 */
export function uncopied(viewport: Types.IStackViewport): void {
  const own = viewport as unknown as { createVTKImageData: (about: Vtk) => Vtk["made"] };
  const make = own.createVTKImageData;
  own.createVTKImageData = (about) => {
    const made = make.call(viewport, about);
    const scalars = made.getPointData().getScalars();
    scalars.setData(about.pixelArray, about.numberOfComponents);
    scalars.setRange({ min: 0, max: 2 ** (8 * about.pixelArray.BYTES_PER_ELEMENT) - 1 }, 0);
    return made;
  };
}

/** As much as we use of how cornerstone makes an image of vtk.js. */
interface Vtk {
  pixelArray: Uint8Array | Uint16Array;
  numberOfComponents: number;
  made: {
    getPointData(): {
      getScalars(): { setData(values: ArrayLike<number>, components: number): void; setRange(range: { min: number; max: number }, component: number): void };
    };
  };
}

function metadata(type: string, imageId: string): unknown {
  if (typeof imageId !== "string" || !imageId.startsWith(`${SCHEME}:`)) return undefined;
  const { image, tone } = apart(imageId);
  const frame = held(image);
  if (!frame) return undefined;
  const [rowSpacing, columnSpacing] = frame.spacing ?? [1, 1];
  const bits = tone < 0 ? frame.bits : 16;
  switch (type) {
    case "imagePixelModule":
      return {
        rows: frame.rows,
        columns: frame.columns,
        samplesPerPixel: 1,
        photometricInterpretation: "MONOCHROME2",
        bitsAllocated: bits,
        bitsStored: bits,
        highBit: bits - 1,
        pixelRepresentation: 0,
      };
    case "imagePlaneModule":
      return {
        frameOfReferenceUID: image,
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
      return { modality: "DX", seriesInstanceUID: image };
    default:
      return undefined;
  }
}

export function register(): void {
  imageLoader.registerImageLoader(SCHEME, load as Parameters<typeof imageLoader.registerImageLoader>[1]);
  metaData.addProvider(metadata, 1000);
  onLeave((frame) => {
    for (const tone of [-1, ...frame.tones.keys()]) {
      const imageId = idOf(frame.image, tone);
      if (cache.getImageLoadObject(imageId)) cache.removeImageLoadObject(imageId);
    }
  });
}
