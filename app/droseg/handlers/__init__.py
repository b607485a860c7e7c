"""ignite handlers of robust training: hardness update, case metrics, checkpoints, TensorBoard, progress."""

from droseg.engine.roles import agree, is_writer, rank, world_size
from droseg.handlers.audit import AuditHandler, read_audit
from droseg.handlers.case_metrics import WORST, CaseMetricsHandler
from droseg.handlers.checkpoint import RunCheckpoint
from droseg.handlers.early import EarlyLossHandler
from droseg.handlers.hardness import HardnessHandler
from droseg.handlers.progress import ProgressHandler
from droseg.handlers.refresh import HistoryRefreshHandler
from droseg.handlers.restart import RestartHandler
from droseg.handlers.tensorboard import TensorBoardHandler, tensorboard_line
from droseg.handlers.validation import FinalValidationHandler

__all__ = [
    "WORST",
    "AuditHandler",
    "CaseMetricsHandler",
    "EarlyLossHandler",
    "FinalValidationHandler",
    "HardnessHandler",
    "HistoryRefreshHandler",
    "ProgressHandler",
    "RestartHandler",
    "RunCheckpoint",
    "TensorBoardHandler",
    "agree",
    "is_writer",
    "rank",
    "read_audit",
    "tensorboard_line",
    "world_size",
]
