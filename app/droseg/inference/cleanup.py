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

from droseg.errors import BundleError

ALL_NEIGHBORS = np.ones((3, 3, 3), dtype=bool)


class KeepLargestComponentd(MapTransform):
    """Turns all but the largest connected piece (26 neighbors, by voxels) of the named structures into background.

    MONAI's `KeepLargestConnectedComponentd` does the same, but needs scikit-image.

    Args:
        keys: of label maps, (1, H, W, D).
        structures: name -> value in the label map.
        names: of the structures that are one piece in every patient; none changes nothing.

    Raises:
        BundleError: if a name is not among the structures.
    """

    def __init__(
        self,
        keys: KeysCollection,
        structures: Mapping[str, int],
        names: Sequence[str],
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        unknown = [name for name in names if name not in structures]
        if unknown:
            raise BundleError(
                f"keep_largest names {', '.join(unknown)}, but the structures are {', '.join(structures)}; correct it."
            )
        self.values = tuple(int(structures[name]) for name in names)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of the items with the label maps cleaned; their affine stays."""
        items = dict(data)
        if self.values:
            for key in self.key_iterator(items):
                pred = items[key].clone()
                for value in self.values:
                    pred[torch.as_tensor(smaller_pieces(pred[0].cpu().numpy() == value))[None].to(pred.device)] = 0
                items[key] = pred
        return items


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
