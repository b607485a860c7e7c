"""Connected components and Betti numbers of one mask: corners connect the structure, only faces what is around it."""

from __future__ import annotations

import importlib.util

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from droseg.errors import DrosegError


def count_components(mask: NDArray[np.bool_]) -> int:
    """Return the number of components, voxels that share a face, edge or corner being connected (26 in 3D, 8 in 2D)."""
    return int(ndimage.label(mask, np.ones((3,) * mask.ndim))[1])


def count_cavities(mask: NDArray[np.bool_]) -> int:
    """Return the number of parts of the background, connected by faces, that the mask shuts off from the outside."""
    return int(ndimage.label(~np.pad(mask, 1))[1]) - 1


def betti_numbers(mask: NDArray[np.bool_]) -> tuple[int, ...]:
    """Return the Betti numbers of the mask as a union of closed voxels: (components, holes) or, in 3D, also cavities.

    In 3D these are components, tunnels and cavities. Tunnels follow from the Euler characteristic,
    chi = b0 - b1 + b2, which scikit-image counts; cavities from Alexander duality: bounded parts of the complement.

    Raises:
        DrosegError: for a 3D mask without scikit-image.
    """
    components, cavities = count_components(mask), count_cavities(mask)
    if mask.ndim == 2:
        return components, cavities
    require_topology()
    from skimage.measure import euler_number

    return components, components + cavities - int(euler_number(mask, connectivity=3)), cavities


def require_topology() -> None:
    """Raise if the library that counts tunnels is not there.

    Raises:
        DrosegError: with the command that installs it.
    """
    if importlib.util.find_spec("skimage") is None:
        raise DrosegError(
            "betti1_error and betti2_error need scikit-image, which is not installed: pip install 'droseg[topology]'; "
            "betti0_error and the counts of components do without."
        )
