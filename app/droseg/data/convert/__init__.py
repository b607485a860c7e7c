"""DICOM trees -> NIfTI, label maps of DICOM SEG objects, and a table of how each series was scanned."""

from droseg.data.convert.plan import Plan, plan_conversion
from droseg.data.convert.run import Outcome, convert

__all__ = ["Outcome", "Plan", "convert", "plan_conversion"]
