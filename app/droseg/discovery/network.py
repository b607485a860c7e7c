"""Features of the network: what its narrowest layer makes of an image, in a few columns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from droseg.keys import CASE_ID


def network_features(
    network: nn.Module, segment: Callable[[Any], Any], images: Mapping[str, Any], num_columns: int = 4
) -> pd.DataFrame:
    """Return `network_1`, `network_2`, ... per case: principal components of the pooled bottleneck activations.

    The bottleneck is the module whose output has the fewest voxels (of several, the last to finish). Its channels'
    means and standard deviations over space, averaged over all windows of an image, are standardized over the cases;
    the components with the largest variance remain. The metric has no part in it.

    Args:
        network: the network that `segment` runs.
        segment: called once per image, e.g. a `Predictor`, with its `network`.
        images: case_id -> what `segment` takes.
        num_columns: how many components, at most the number of cases - 1.

    Raises:
        ValueError: if no module of the network gives a map (B, C, H, W, D).
    """
    rows = []
    with _pooled_bottleneck(network) as pooled:
        for image in images.values():
            pooled.clear()
            segment(image)
            if not pooled:
                raise ValueError("no module of the network gives maps (B, C, H, W, D); there is no bottleneck to read.")
            rows.append(np.concatenate(pooled).mean(axis=0))
    components = _principal_components(np.array(rows), num_columns)
    names = [f"network_{number}" for number in range(1, components.shape[1] + 1)]
    return pd.DataFrame(components, index=pd.Index(images, name=CASE_ID), columns=names)


@contextmanager
def _pooled_bottleneck(network: nn.Module) -> Iterator[list[NDArray[np.float64]]]:
    """Give the list that each forward pass adds its pooled activations to, (windows, 2 x channels)."""
    passes: list[NDArray[np.float64]] = []
    smallest: list[Tensor] = []

    def keep_smallest(_module: nn.Module, _inputs: Any, output: Any) -> None:
        is_map = isinstance(output, Tensor) and output.ndim == 5
        if is_map and (not smallest or output[0, 0].numel() <= smallest[0][0, 0].numel()):
            smallest[:] = [output.detach()]

    def pool(_module: nn.Module, _inputs: Any, _output: Any) -> None:
        if smallest:
            flat = smallest.pop().flatten(2).double()
            statistics = torch.cat([flat.mean(2), flat.std(2, correction=0)], dim=1)
            passes.append(statistics.cpu().numpy())

    handles = [module.register_forward_hook(keep_smallest) for module in network.modules()]
    handles.append(network.register_forward_hook(pool))
    try:
        yield passes
    finally:
        for handle in handles:
            handle.remove()


def _principal_components(table: NDArray[np.float64], num_columns: int) -> NDArray[np.float64]:
    """Return (cases, components), largest variance first, the sign such that the largest weight is positive."""
    centered = table - table.mean(axis=0)
    spread = centered.std(axis=0)
    left, singular, weights = np.linalg.svd(centered[:, spread > 0] / spread[spread > 0], full_matrices=False)
    count = min(num_columns, len(table) - 1, len(singular))
    largest = np.abs(weights[:count]).argmax(axis=1)
    signs = np.sign(weights[np.arange(count), largest])
    return np.asarray(left[:, :count] * singular[:count] * signs)
