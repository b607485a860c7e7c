"""Loss history and batch samplers of hardness-weighted training."""

from droseg.sampling.batch_sampler import HardnessWeightedBatchSampler
from droseg.sampling.divergences import DIVERGENCES, KL, ChiSquare, CVaR, Divergence, build_divergence
from droseg.sampling.effective_size import (
    effective_sample_size,
    kl_to_uniform,
    robust_risk,
    solve_beta,
    solve_beta_for_kl,
)
from droseg.sampling.group_sampler import GroupBalancedBatchSampler, GroupBatchSampler, TwoLevelBatchSampler
from droseg.sampling.history import HistoryMismatchError, LossHistory, hardness_probabilities
from droseg.sampling.recording import Draw, RecordingBatchSampler, SeededIndex
from droseg.sampling.shuffled import ShuffledBatchSampler

__all__ = [
    "DIVERGENCES",
    "KL",
    "CVaR",
    "ChiSquare",
    "Divergence",
    "Draw",
    "GroupBalancedBatchSampler",
    "GroupBatchSampler",
    "HardnessWeightedBatchSampler",
    "HistoryMismatchError",
    "LossHistory",
    "RecordingBatchSampler",
    "SeededIndex",
    "ShuffledBatchSampler",
    "TwoLevelBatchSampler",
    "build_divergence",
    "effective_sample_size",
    "hardness_probabilities",
    "kl_to_uniform",
    "robust_risk",
    "solve_beta",
    "solve_beta_for_kl",
]
