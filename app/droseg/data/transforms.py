"""What MONAI's transforms lack: label values of some structures to class indices, and names by case."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from monai.utils import ImageMetaKey

from droseg.keys import CASE_ID


class LabelsToClassesd(MapTransform):
    """Turns label values into class indices: structure i of `structures` becomes i + 1, all else 0.

    `MapLabelValued` leaves values that it is not told of as they are; a structure that a training leaves out would
    then collide with a class index.

    Args:
        keys: of label maps, any shape.
        structures: name -> value in the label map, in the order of the network's classes.
    """

    def __init__(self, keys: KeysCollection, structures: Mapping[str, int], allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.values = tuple(int(value) for value in structures.values())

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of the items with the label maps replaced; the affine stays."""
        items = dict(data)
        for key in self.key_iterator(items):
            label = torch.round(items[key])
            classes = torch.zeros_like(label)
            for index, value in enumerate(self.values, start=1):
                classes[label == value] = index
            items[key] = classes
        return items


def class_indices(structures: Mapping[str, int]) -> dict[str, int]:
    """Return name -> class index of the network, in the order of `structures`; 0 is background."""
    return {name: index for index, name in enumerate(structures, start=1)}


class NameAfterCased(MapTransform):
    """Lets `SaveImaged` name a file by the case, not by an image file that may be called `image.nii.gz` in each."""

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the items with the image's recorded file name set to `CASE_ID.nii.gz`."""
        items = dict(data)
        for key in self.key_iterator(items):
            items[key].meta[ImageMetaKey.FILENAME_OR_OBJ] = f"{items[CASE_ID]}.nii.gz"
        return items
