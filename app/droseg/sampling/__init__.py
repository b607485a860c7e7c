"""Loss history and batch samplers of hardness-weighted training."""

from droseg.sampling.batch_sampler import Draw, HardnessWeightedBatchSampler, ShuffledBatchSampler
from droseg.sampling.effective_size import effective_sample_size, robust_risk, solve_beta
from droseg.sampling.history import HistoryMismatchError, LossHistory, hardness_probabilities

__all__ = [
    "Draw",
    "HardnessWeightedBatchSampler",
    "HistoryMismatchError",
    "LossHistory",
    "ShuffledBatchSampler",
    "effective_sample_size",
    "hardness_probabilities",
    "robust_risk",
    "solve_beta",
]
