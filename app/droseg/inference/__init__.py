"""New MRI volumes in, segmentations on their own grid out."""

from droseg.data.dicom import DicomSeries
from droseg.data.volumes import ImageSource
from droseg.data.writing import OutputError, label_dtype, writable_folder
from droseg.inference.cases import CaseResult, predict_cases
from droseg.inference.inputs import FoundInputs, InputCase, SkippedInput, find_inputs, image_files, image_items
from droseg.inference.listing import inputs_table
from droseg.inference.predictor import Predictor, Prepared, Segmentation
from droseg.inference.quality import Evidence, Flag, OutOfDomainError, QualityRules
from droseg.inference.reading import ImageError, read_image
from droseg.inference.weights import load_weights, weights_file

__all__ = [
    "CaseResult",
    "DicomSeries",
    "Evidence",
    "Flag",
    "FoundInputs",
    "ImageError",
    "ImageSource",
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
    "inputs_table",
    "label_dtype",
    "load_weights",
    "predict_cases",
    "read_image",
    "weights_file",
    "writable_folder",
]
