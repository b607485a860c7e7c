"""Per-case losses: logits (B, C, H, W, D) and a label -> (B,), one value per case; exact per-case forms of MONAI's.

| class | the batch mean equals (no class weights) | with class weights |
|---|---|---|
| `PerCaseDiceLoss` | `DiceLoss` | still equal |
| `PerCaseDiceCELoss` | `DiceCELoss` | each value is that of its case alone |
| `PerCaseDiceBCELoss` | `DiceLoss(sigmoid=True)` + `nn.BCEWithLogitsLoss` | still equal |
| `PerCaseDiceFocalLoss` | `DiceFocalLoss` | still equal |
| `PerCaseGeneralizedDiceLoss` | `GeneralizedDiceLoss` | none: each structure is weighted by its volume in the case |
| `PerCaseTverskyLoss` | `TverskyLoss` | none: alpha and beta |
| `PerCaseFocalLoss` | `FocalLoss` | still equal |
| `PerCaseCrossEntropyLoss` | `nn.CrossEntropyLoss`, `nn.BCEWithLogitsLoss` | softmax: its case alone; sigmoid: equal |
| `PerCaseDeepSupervisionLoss` | `DeepSupervisionLoss` of the reduced loss | as the loss inside |
| `EachCaseLoss` | any other loss that is a mean over cases | each value is that of its case alone |

Class weights change what a hard case is, and their scale changes how much it counts: only in cross entropy are they
divided out, everywhere else weights multiplied by k multiply the losses by k, which acts as k * beta.
Batch Dice (`batch=True`) has no value per case and is refused.
"""

from droseg.losses.base import PerCaseLoss
from droseg.losses.combined import PerCaseDiceBCELoss, PerCaseDiceCELoss, PerCaseDiceFocalLoss
from droseg.losses.overlap import PerCaseDiceLoss, PerCaseGeneralizedDiceLoss, PerCaseTverskyLoss
from droseg.losses.voxelwise import PerCaseCrossEntropyLoss, PerCaseFocalLoss
from droseg.losses.wrappers import EachCaseLoss, PerCaseDeepSupervisionLoss

__all__ = [
    "EachCaseLoss",
    "PerCaseCrossEntropyLoss",
    "PerCaseDeepSupervisionLoss",
    "PerCaseDiceBCELoss",
    "PerCaseDiceCELoss",
    "PerCaseDiceFocalLoss",
    "PerCaseDiceLoss",
    "PerCaseFocalLoss",
    "PerCaseGeneralizedDiceLoss",
    "PerCaseLoss",
    "PerCaseTverskyLoss",
]
