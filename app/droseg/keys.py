"""Every batch, output and metadata key that passes between the rooms."""

from typing import Final

IMAGE: Final = "image"
LABEL: Final = "label"
PRED: Final = "pred"
REFERENCE: Final = "reference"
"""The label on its own grid, out of reach of the preprocessing."""

CASE_ID: Final = "case_id"
PATIENT_ID: Final = "patient_id"
INDEX: Final = "index"
"""Row of the case in its datalist section, hence also its row in the loss history."""

PRESENT: Final = "present_channels"
"""In the meta data of an image of which a channel is missing: which channels are there, (C,) of bool."""

CASE_LOSS: Final = "case_loss"
"""Per-case losses of a training batch, shape (B,), in `engine.state.output`."""
CASE_WEIGHT: Final = "case_weight"
"""Importance weights of a training batch, shape (B,), in `engine.state.output`."""

TRAINING: Final = "training"
VALIDATION: Final = "validation"
TESTING: Final = "testing"
SECTIONS: Final = (TRAINING, VALIDATION, TESTING)

CASES_FILE: Final = "case_metrics.csv"
RECORD_FILE: Final = "evaluation.json"
"""How the cases file beside it was made."""
