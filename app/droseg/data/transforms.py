"""What MONAI's transforms lack: label values to classes or overlapping regions and back, and names by case."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapLabelValued, MapTransform
from monai.utils import ImageMetaKey, MetaKeys, convert_to_dst_type

from droseg.data.regions import Structures, label_values, shared_values, written_values
from droseg.errors import BundleError
from droseg.keys import CASE_ID

NO_CHANNEL = "no_channel"
"""What MONAI takes for an image without a channel axis."""


class LabelsToClassesd(MapTransform):
    """Turns label values into class indices: structure i of `structures` becomes i + 1, all else 0.

    `MapLabelValued` leaves values that it is not told of as they are; a structure that a training leaves out would
    then collide with a class index.

    Args:
        keys: of label maps, any shape.
        structures: name -> value in the label map, or several values, in the order of the network's classes.

    Raises:
        BundleError: if two structures share a value.
    """

    def __init__(self, keys: KeysCollection, structures: Structures, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        refuse_overlap(structures)
        self.values = tuple(label_values(structures).values())

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of the items with the label maps replaced; the affine stays."""
        items = dict(data)
        for key in self.key_iterator(items):
            label = torch.round(items[key])
            classes = torch.zeros_like(label)
            for index, values in enumerate(self.values, start=1):
                for value in values:
                    classes[label == value] = index
            items[key] = classes
        return items


class ClassesToLabelsd(MapLabelValued):
    """Turns class indices of the network into label values: i + 1 into the value of structure i, of several the first.

    Args:
        keys: of maps of class indices, any shape.
        structures: name -> value in the label map, or several values, in the order of the network's classes.
    """

    def __init__(self, keys: KeysCollection, structures: Structures, allow_missing_keys: bool = False) -> None:
        values = [0, *(those[0] for those in label_values(structures).values())]
        super().__init__(keys, list(range(len(values))), values, allow_missing_keys=allow_missing_keys)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of the items with the maps replaced; the affine stays."""
        items: dict[Hashable, Any] = super().__call__(data)
        for key in self.key_iterator(items):
            items[key] = _as_map(items[key])
        return items


class LabelsToRegionsd(MapTransform):
    """Turns label maps (1, H, W, D) into 0/1 channels of regions that may overlap, (R, H, W, D): a sigmoid's targets.

    Args:
        keys: of label maps.
        structures: name -> its label values, in the order of the network's channels.
    """

    def __init__(self, keys: KeysCollection, structures: Structures, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.values = tuple(label_values(structures).values())

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of the items with the label maps replaced; the affine stays."""
        items = dict(data)
        for key in self.key_iterator(items):
            label = torch.round(plain(items[key])[0])
            regions = [torch.isin(label, torch.as_tensor(values).to(label)) for values in self.values]
            items[key] = convert_to_dst_type(torch.stack(regions), items[key])[0]
        return items


class RegionsToLabelsd(MapTransform):
    """Turns channels of regions, (R, H, W, D), of which 0 is outside, into one label map, (1, H, W, D).

    As nnU-Net writes regions: painted one over the other, from the one with the most label values to the one with the
    fewest, each with the value that no smaller region inside it has. A region then holds all smaller ones, also where
    the network left a hole. Where regions overlap that do not lie inside each other, a value that belongs to exactly
    the regions there wins, so that the inverse of `LabelsToRegionsd` is exact.

    Args:
        keys: of the channels.
        structures: name -> its label values, in the order of the channels.
        region_values: name -> the value to paint, where the structures do not tell, see `written_values`.

    Attributes:
        voxelwise: the value at a voxel depends on the channels there alone (see `droseg.inference.finishing`).

    Raises:
        BundleError: if a value is not clear and `region_values` does not say it, or says one that is not the region's.
    """

    voxelwise = True

    def __init__(
        self,
        keys: KeysCollection,
        structures: Structures,
        region_values: Mapping[str, int] | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        values, written = label_values(structures), written_values(structures, region_values)
        self.num_regions = len(values)
        order = sorted(enumerate(values), key=lambda entry: -len(values[entry[1]]))  # stable
        self._painted = [(channel, written[name]) for channel, name in order]
        holders = {value: [name for name, those in values.items() if value in those] for value in shared_values(values)}
        self._crossings = [
            ([name in names for name in values], value)
            for value, names in sorted(holders.items(), reverse=True)  # of two values alike the smaller one wins
            if not _nested([values[name] for name in names])
        ]

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of the items with the channels replaced by label maps; the affine stays."""
        items = dict(data)
        for key in self.key_iterator(items):
            inside = plain(items[key]) != 0
            if len(inside) != self.num_regions:
                raise ValueError(f"{key} has {len(inside)} channels, but there are {self.num_regions} regions.")
            labels = torch.zeros(inside.shape[1:], device=inside.device)
            for channel, value in self._painted:
                labels[inside[channel]] = value
            for members, value in self._crossings:
                labels[torch.stack([inside[c] == member for c, member in enumerate(members)]).all(dim=0)] = value
            items[key] = _as_map(convert_to_dst_type(labels[None], items[key], dtype=labels.dtype)[0])
        return items


def plain(values: Any) -> torch.Tensor:
    """Return a tensor without MONAI's metadata, which costs time in every operation."""
    return values.as_tensor() if isinstance(values, MetaTensor) else torch.as_tensor(values)


def class_indices(structures: Structures) -> dict[str, int]:
    """Return name -> class index of the network, in the order of `structures`; 0 is background.

    For regions of a sigmoid these count the channels, from 1 on, as `CaseMetricsHandler` takes them.
    """
    return {name: index for index, name in enumerate(structures, start=1)}


def refuse_overlap(structures: Structures) -> None:
    """Return nothing.

    Raises:
        BundleError: if structures share a value, as classes of a softmax cannot.
    """
    shared = shared_values(structures)
    if shared:
        value, names = next(iter(shared.items()))
        raise BundleError(
            f"structures: {' and '.join(names)} share the label value {value}, but a softmax gives each voxel to one "
            "structure. Overlapping regions take a sigmoid: train a bundle such as brats_mri (PerCaseDiceBCELoss, "
            "LabelsToRegionsd), or give each value to one structure."
        )


def _as_map(labels: Any) -> Any:
    """Return a label map (1, H, W, D) whose metadata say its own shape, and not that of an image of several channels.

    From the channel axis of the image's file MONAI 1.6.1 (`SaveImage`) concludes that the map has three axes less one,
    and then writes none whose axes are not in the order x, y, z.
    """
    if isinstance(labels, MetaTensor) and MetaKeys.SPATIAL_SHAPE in labels.meta:
        own = {MetaKeys.SPATIAL_SHAPE: np.array(labels.shape[1:]), MetaKeys.ORIGINAL_CHANNEL_DIM: NO_CHANNEL}
        labels.meta = {**labels.meta, **own}
    return labels


def _nested(sets: Sequence[tuple[int, ...]]) -> bool:
    """Return whether each of the sets lies inside the next larger one."""
    ordered = sorted(map(set, sets), key=len)
    return all(small < large for small, large in pairwise(ordered))


class NameAfterCased(MapTransform):
    """Lets `SaveImaged` name a file by the case, not by an image file that may be called `image.nii.gz` in each."""

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the items with the image's recorded file name set to `CASE_ID.nii.gz`."""
        items = dict(data)
        for key in self.key_iterator(items):
            items[key].meta[ImageMetaKey.FILENAME_OR_OBJ] = f"{items[CASE_ID]}.nii.gz"
        return items
