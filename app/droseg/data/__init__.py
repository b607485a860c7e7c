"""The data room: datalists, their checks and splits, and the generated phantom cohort."""

from droseg.data.datalist import Case, Datalist, read_datalist, write_datalist

__all__ = ["Case", "Datalist", "read_datalist", "write_datalist"]
