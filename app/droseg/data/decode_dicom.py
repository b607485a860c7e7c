"""A process that decodes compressed DICOM files: paths as JSON on stdin, one .npy each on stdout.

The arrays have the shape (frames, rows, columns). It imports nothing of droseg, so that it starts fast.
"""

from __future__ import annotations

import json
import sys

import numpy as np

MAX_VOXELS = 2**30  # as droseg.data.grids


def main() -> None:
    """Decode; an error ends the process with its message on stderr."""
    import itk

    for path in json.load(sys.stdin):
        reader = itk.GDCMImageIO.New()
        reader.SetFileName(path)
        reader.ReadImageInformation()
        size = [reader.GetDimensions(axis) for axis in range(reader.GetNumberOfDimensions())]
        if np.prod(size, dtype=float) > MAX_VOXELS:
            sys.exit(f"{path}: {size} voxels")
        image = itk.imread(path, imageio=reader)
        array = np.asarray(itk.array_view_from_image(image))
        slope, intercept = reader.GetRescaleSlope(), reader.GetRescaleIntercept()
        if (slope, intercept) != (1.0, 0.0):  # GDCM has applied it; the values that are stored are wanted
            array = np.rint((array - intercept) / slope).astype(np.int32)
        np.save(sys.stdout.buffer, array.reshape(-1, *array.shape[-2:]))


if __name__ == "__main__":
    main()
