"""The loss of each training case on its whole volume without augmentation: random patches are a noisy measure of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from monai.inferers import Inferer
from monai.networks.utils import eval_mode
from torch import Tensor, nn

from droseg import keys
from droseg.engine.roles import gather_objects, rank, world_size
from droseg.errors import DrosegError


class WholeVolumeLosses:
    """Measures all training cases; the ranks share them, and all of them get all the losses.

    Args:
        case_ids: in the order of the data set.
        dataset: the training cases, whole and not augmented; items with image and label.
        inferer: for whole volumes, e.g. `SlidingWindowInferer`.
        loss_function: (pred, label) -> (B,), the one that is trained with.
        key: of the training config, which switches the measurement off at 0; to name it where memory ends.
    Raises:
        ValueError: if the data set has another number of cases.
    """

    def __init__(
        self,
        case_ids: Sequence[str],
        dataset: Any,
        inferer: Inferer,
        loss_function: Callable[[Tensor, Tensor], Tensor],
        key: str,
    ) -> None:
        if len(dataset) != len(case_ids):
            raise ValueError(
                f"the data set to measure has {len(dataset)} cases, the loss history {len(case_ids)}; "
                "give it the training cases in the order of the history."
            )
        self.case_ids, self.dataset, self.key = case_ids, dataset, key
        self.inferer, self.loss_function = inferer, loss_function

    def measure(
        self, network: nn.Module, device: torch.device, between_cases: Callable[[], None] = lambda: None
    ) -> Tensor:
        """Return the loss of each case, shape (N,), float64, the same on every rank.

        Args:
            network: without or with a DistributedDataParallel wrapper; its mode and the generators stay as they are.
            device: of the network.
            between_cases: called before each case of this rank.
        """
        # Not through DistributedDataParallel: its forward may be collective, and the ranks have different numbers.
        bare = network.module if isinstance(network, nn.parallel.DistributedDataParallel) else network
        own = {}
        with eval_mode(bare):
            for row in range(rank(), len(self.dataset), world_size()):
                between_cases()
                own[row] = self._loss(row, bare, device)
        found = {row: loss for share in gather_objects(own) for row, loss in share.items()}
        return torch.tensor([found[row] for row in range(len(self.dataset))], dtype=torch.float64)

    def _loss(self, row: int, network: nn.Module, device: torch.device) -> float:
        item = self.dataset[row]
        try:
            image, label = item[keys.IMAGE][None].to(device), item[keys.LABEL][None].to(device)
            return float(self.loss_function(self.inferer(image, network), label)[0])
        except torch.OutOfMemoryError as error:
            raise DrosegError(
                f"{self.case_ids[row]}: the device has too little memory for its whole volume; set {self.key} to 0, or "
                "lower roi_size."
            ) from error
