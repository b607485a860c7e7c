"""Datalists from folders and tables: `droseg data new`."""

from droseg.data.from_folders.axes import Axis
from droseg.data.from_folders.axis_options import parse_axes
from droseg.data.from_folders.bins import Bins
from droseg.data.from_folders.build import Request, Tables, build_datalist
from droseg.data.from_folders.channels import ChannelOption, parse_channels
from droseg.data.from_folders.findings import Finding, Findings
from droseg.data.from_folders.matching import Leniency
from droseg.data.from_folders.structures import parse_background, parse_structures, read_background, read_structures

__all__ = [
    "Axis",
    "Bins",
    "ChannelOption",
    "Finding",
    "Findings",
    "Leniency",
    "Request",
    "Tables",
    "build_datalist",
    "parse_axes",
    "parse_background",
    "parse_channels",
    "parse_structures",
    "read_background",
    "read_structures",
]
