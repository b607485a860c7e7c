"""Between bundle configs and Python; the only room that knows config ids."""

from droseg.workflow.launch import monai_line, train
from droseg.workflow.loss_check import checked_loss
from droseg.workflow.start import start_training
from droseg.workflow.training import prepare_network, run_training

__all__ = ["checked_loss", "monai_line", "prepare_network", "run_training", "start_training", "train"]
