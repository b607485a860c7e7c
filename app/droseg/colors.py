"""One color per structure, the same in TensorBoard and in the report."""

from typing import Final

# Told apart with any color vision (Okabe and Ito 2008, Tol 2021); repeats after ten structures.
PALETTE: Final = (
    "#56B4E9", "#E69F00", "#009E73", "#F0E442", "#CC79A7", "#D55E00", "#0072B2", "#AA4499", "#DDCC77", "#88CCEE",
)  # fmt: skip
