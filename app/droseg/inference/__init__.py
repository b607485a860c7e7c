"""New MRI volumes in, segmentations on their own grid out."""

from droseg.inference.cases import CaseResult, predict_cases
from droseg.inference.inputs import FoundInputs, InputCase, SkippedInput, find_inputs, image_files, image_items
from droseg.inference.predictor import Predictor, Prepared, Segmentation
from droseg.inference.quality import Evidence, Flag, OutOfDomainError, QualityRules
from droseg.inference.reading import ImageError, read_image
from droseg.inference.weights import load_weights, weights_file
from droseg.inference.writing import OutputError, label_dtype, writable_folder

__all__ = [
    "CaseResult",
    "Evidence",
    "Flag",
    "FoundInputs",
    "ImageError",
    "InputCase",
    "OutOfDomainError",
    "OutputError",
    "Predictor",
    "Prepared",
    "QualityRules",
    "Segmentation",
    "SkippedInput",
    "find_inputs",
    "image_files",
    "image_items",
    "label_dtype",
    "load_weights",
    "predict_cases",
    "read_image",
    "weights_file",
    "writable_folder",
]
