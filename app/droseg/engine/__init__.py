"""The training engine."""

from droseg.engine.precision import AutocastInferer, channels_last, has_fast_bf16, own_device
from droseg.engine.trainer import DROTrainer, batch_indices

__all__ = ["AutocastInferer", "DROTrainer", "batch_indices", "channels_last", "has_fast_bf16", "own_device"]
