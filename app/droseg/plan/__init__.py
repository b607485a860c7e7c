"""Plans a bundle from the fingerprint of a data set and the memory at hand, and writes it with its reasons."""

from droseg.plan.budget import Budget, find_budget
from droseg.plan.choose import Choice, Plan, make_plan
from droseg.plan.fingerprint import CaseMeasures, Fingerprint, take_fingerprint
from droseg.plan.write import write_bundle

__all__ = [
    "Budget",
    "CaseMeasures",
    "Choice",
    "Fingerprint",
    "Plan",
    "find_budget",
    "make_plan",
    "take_fingerprint",
    "write_bundle",
]
