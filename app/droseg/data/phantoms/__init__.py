"""A generated cohort of 3D "brains" with known subgroups, worth training on where no patient data may go."""

from droseg.data.phantoms.anatomy import ANATOMIES, STRUCTURES
from droseg.data.phantoms.cohort import generate_phantoms
from droseg.data.phantoms.scan import PROTOCOLS

__all__ = ["ANATOMIES", "PROTOCOLS", "STRUCTURES", "generate_phantoms"]
