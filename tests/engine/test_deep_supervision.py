"""Networks with several outputs train with one loss per case too."""

from __future__ import annotations

import pytest
import torch
from monai.inferers import SimpleInferer
from monai.losses import DeepSupervisionLoss, DiceCELoss
from monai.networks.nets import DynUNet
from torch import nn

from droseg.engine import AutocastInferer
from droseg.losses import PerCaseDeepSupervisionLoss, PerCaseDiceCELoss


class TwoScales(nn.Module):
    """Gives its output at full and at half resolution, as a list."""

    def __init__(self) -> None:
        super().__init__()
        self.fine = nn.Conv3d(1, 3, 3, padding=1)
        self.coarse = nn.Conv3d(3, 3, 2, stride=2)

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        fine = self.fine(image)
        return [fine, self.coarse(fine)]


def dyn_unet() -> nn.Module:
    """Stacks its outputs in one 6-D tensor while it trains."""
    sizes = [3, 3, 3]
    return DynUNet(3, 1, 3, sizes, [1, 2, 2], [2, 2], filters=[4, 6, 8], deep_supervision=True, deep_supr_num=1)


@pytest.mark.parametrize("make_network", [TwoScales, dyn_unet])
def test_the_history_gets_monais_supervised_loss_of_each_case(trainer_factory, items, make_network):
    torch.manual_seed(0)
    network = make_network()
    monai = DeepSupervisionLoss(DiceCELoss(include_background=False, to_onehot_y=True, softmax=True))
    trainer = trainer_factory(
        "erm", loss_function=PerCaseDeepSupervisionLoss(PerCaseDiceCELoss()), network=network, learning_rate=0.0
    )
    trainer.inferer = AutocastInferer(SimpleInferer(), "cpu", "fp32")
    trainer.run()
    seen = [index for index in range(len(items)) if trainer.objective.history.visits[index]]
    assert seen
    for index in seen:
        with torch.no_grad():
            out = network.train()(items[index]["image"][None])
            outputs = list(torch.unbind(out, dim=1)) if isinstance(out, torch.Tensor) else out
            expected = float(monai(outputs, items[index]["label"][None]))
        assert trainer.objective.history.loss[index] == pytest.approx(expected, rel=1e-5)
