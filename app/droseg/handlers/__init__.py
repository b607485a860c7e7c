"""ignite handlers of robust training: hardness update, case metrics, checkpoints, TensorBoard, progress."""

from droseg.handlers.case_metrics import WORST, CaseMetricsHandler
from droseg.handlers.checkpoint import RunCheckpoint
from droseg.handlers.hardness import HardnessHandler
from droseg.handlers.progress import ProgressHandler
from droseg.handlers.roles import agree, is_writer, rank, world_size
from droseg.handlers.tensorboard import TensorBoardHandler, tensorboard_line
from droseg.handlers.validation import FinalValidationHandler

__all__ = [
    "WORST",
    "CaseMetricsHandler",
    "FinalValidationHandler",
    "HardnessHandler",
    "ProgressHandler",
    "RunCheckpoint",
    "TensorBoardHandler",
    "agree",
    "is_writer",
    "rank",
    "tensorboard_line",
    "world_size",
]
