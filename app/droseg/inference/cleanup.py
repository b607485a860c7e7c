"""What a bundle may do to a label map after the network: keep the largest piece of some structures."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from numpy.typing import NDArray
from scipy import ndimage

from droseg.data.regions import Structures, label_values, mask_of, written_values
from droseg.errors import BundleError

ALL_NEIGHBORS = np.ones((3, 3, 3), dtype=bool)


class KeepLargestComponentd(MapTransform):
    """Turns all but the largest connected piece (26 neighbors, by voxels) of the named structures into what is around.

    That is background, or the smallest region around one of several values: what is left of a tumor core outside of
    its largest piece becomes the rest of the whole tumor. Of regions inside each other name the outer one first.

    MONAI's `KeepLargestConnectedComponentd` does the same, but needs scikit-image.

    Args:
        keys: of label maps, (1, H, W, D).
        structures: name -> value in the label map, or several values.
        names: of the structures that are one piece in every patient, cleaned in this order; none changes nothing.
        region_values: see `droseg.data.regions.written_values`.

    Raises:
        BundleError: if a name is not among the structures, or the value of the region around is not clear.
    """

    def __init__(
        self,
        keys: KeysCollection,
        structures: Structures,
        names: Sequence[str],
        region_values: Mapping[str, int] | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        unknown = [name for name in names if name not in structures]
        if unknown:
            raise BundleError(
                f"keep_largest names {', '.join(unknown)}, but the structures are {', '.join(structures)}; correct it."
            )
        values = label_values(structures)
        self._steps = [(values[name], _value_around(name, values, region_values)) for name in names]

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of the items with the label maps cleaned; their affine stays."""
        items = dict(data)
        if self._steps:
            for key in self.key_iterator(items):
                pred = items[key].clone()
                for values, around in self._steps:
                    rest = smaller_pieces(mask_of(pred[0].cpu().numpy(), values))
                    pred[torch.as_tensor(rest)[None].to(pred.device)] = around
                items[key] = pred
        return items


def _value_around(name: str, values: Mapping[str, tuple[int, ...]], region_values: Mapping[str, int] | None) -> int:
    """Return the value of the smallest region that holds all of a structure; 0 if there is none."""
    holders = [other for other, those in values.items() if set(values[name]) < set(those)]
    if not holders:
        return 0
    return written_values(values, region_values)[min(holders, key=lambda other: len(values[other]))]


def smaller_pieces(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return where a mask (H, W, D) is, without its largest piece; of several as large, the first one stays."""
    rest = np.zeros_like(mask)
    where = ndimage.find_objects(mask.astype(np.uint8))
    if not where:
        return rest
    pieces, count = ndimage.label(mask[where[0]], ALL_NEIGHBORS)
    if count > 1:
        largest = 1 + int(np.bincount(pieces.ravel())[1:].argmax())
        rest[where[0]] = (pieces != 0) & (pieces != largest)
    return rest
