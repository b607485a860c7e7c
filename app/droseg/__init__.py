"""3D MRI segmentation that holds up on the patients where segmentation usually fails."""

__version__ = "0.1.0"
