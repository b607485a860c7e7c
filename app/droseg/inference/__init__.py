"""New MRI volumes in, segmentations on their own grid out."""

from droseg.inference.inputs import image_files, image_items
from droseg.inference.weights import load_weights, weights_file
from droseg.inference.writing import label_dtype, writable_folder

__all__ = ["image_files", "image_items", "label_dtype", "load_weights", "weights_file", "writable_folder"]
