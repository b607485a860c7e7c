"""DROTrainer in real MONAI trainings, against MONAI's own trainer and loss."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
from ignite.engine import Events
from monai.data import DataLoader, Dataset, MetaTensor
from monai.engines import IterationEvents, SupervisedTrainer
from monai.losses import DiceCELoss
from monai.transforms import Compose, RandGaussianNoised, RandSpatialCropSamplesd

from droseg.errors import DrosegError, InputError
from droseg.losses import PerCaseDeepSupervisionLoss, PerCaseDiceCELoss, PerCaseDiceLoss
from droseg.losses.scaled import scaled_scores

MONAI_LOSS = {"include_background": False, "to_onehot_y": True, "softmax": True}


@pytest.mark.parametrize(("objective", "num_workers"), [("hardness", 0), ("hardness", 2), ("erm", 0)])
def test_training_puts_the_loss_of_each_drawn_case_into_the_history(trainer_factory, items, objective, num_workers):
    trainer = trainer_factory(objective, epochs=2, num_workers=num_workers)
    history, monai, seen = trainer.objective.history, DiceCELoss(**MONAI_LOSS), []

    @trainer.on(Events.ITERATION_STARTED)
    def remember_the_network() -> None:
        trainer.before = (copy.deepcopy(trainer.network), history.loss.copy(), history.visits.copy())

    @trainer.on(Events.ITERATION_COMPLETED)
    def compare() -> None:
        network, loss, visits = trainer.before
        drawn = trainer.state.batch["index"].tolist()
        for index in drawn:
            image, label = items[index]["image"][None], items[index]["label"][None]
            with torch.no_grad():
                loss[index] = float(monai(network.train()(image), label))
        visits[drawn] += 1
        assert history.loss.tolist() == pytest.approx(loss.tolist(), rel=1e-5)
        assert history.visits.tolist() == visits.tolist()
        assert trainer.state.output["case_loss"].shape == (2,)
        assert trainer.state.output["case_loss"].tolist() == pytest.approx(loss[drawn].tolist(), rel=1e-5)
        assert trainer.state.output["case_weight"].tolist() == [1.0, 1.0]
        seen.extend(drawn)

    trainer.run()
    assert len(seen) == 16
    assert set(seen) == set(range(8)), "the high initial loss brings every case early"
    assert not trainer.objective.sampler.pending


def test_with_weights_of_1_the_gradient_is_monais(trainer_factory, network_factory, items):
    trainer = trainer_factory(num_batches=1, learning_rate=0.0, batch_size=3)
    trainer.run()
    ours = [p.grad for p in trainer.network.parameters()]

    network = network_factory()
    batch = [items[index] for index in trainer.state.batch["index"].tolist()]
    SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=1,
        train_data_loader=DataLoader(Dataset(batch), batch_size=3),
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=0.0),
        loss_function=DiceCELoss(**MONAI_LOSS),
    ).run()
    for gradient, parameter in zip(ours, network.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-4, atol=1e-6)
    assert float(trainer.state.output["loss"].detach()) == pytest.approx(
        float(trainer.state.output["case_loss"].mean())
    )


def test_the_gradient_is_the_mean_of_the_weighted_case_gradients(trainer_factory, network_factory, items):
    trainer = trainer_factory(num_batches=1, learning_rate=0.0, importance_weighting=True, beta=2.0)
    trainer.objective.update(range(8), [1.5] * 8)
    trainer.run()
    indices = trainer.state.batch["index"].tolist()

    network, monai, losses = network_factory(), DiceCELoss(**MONAI_LOSS), []
    for index in indices:
        losses.append(monai(network(items[index]["image"][None]), items[index]["label"][None]))
    weights = [math.exp(2.0 * (float(loss.detach()) - 1.5)) for loss in losses]
    assert trainer.state.output["case_weight"].tolist() == pytest.approx(weights, rel=1e-4)
    assert abs(weights[0] - 1) > 0.01
    (sum(w * loss for w, loss in zip(weights, losses, strict=True)) / 2).backward()
    for trained, parameter in zip(trainer.network.parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(trained.grad, parameter.grad, rtol=1e-3, atol=1e-6)


def test_several_patches_of_a_case_are_one_visit_with_their_mean(trainer_factory):
    crop = RandSpatialCropSamplesd(["image", "label"], roi_size=[4, 4, 4], num_samples=3, random_size=False)
    trainer = trainer_factory(transform=crop, num_batches=6)
    history = trainer.objective.history

    @trainer.on(IterationEvents.LOSS_COMPLETED)
    def compare() -> None:
        indices, losses = trainer.state.batch["index"], trainer.state.output["case_loss"]
        assert trainer.state.batch["image"].shape == (6, 1, 4, 4, 4)
        for index in set(indices.tolist()):
            assert history.loss[index] == pytest.approx(float(losses[indices == index].mean()), rel=1e-6)

    trainer.run()
    assert history.visits.sum() == 12


def test_a_training_lowers_the_loss(trainer_factory):
    trainer = trainer_factory(epochs=12, target_ess=0.7, learning_rate=0.1)
    losses = []
    trainer.add_event_handler(
        IterationEvents.LOSS_COMPLETED, lambda: losses.append(trainer.state.output["loss"].item())
    )
    trainer.run()
    assert len(losses) == 48
    assert sum(losses[-8:]) < 0.7 * sum(losses[:8])
    assert trainer.objective.beta != 10.0, "solved for the target"


@pytest.mark.parametrize("batch_size", [1, 2])
def test_a_loss_without_one_value_per_case_is_refused_with_the_reason(trainer_factory, batch_size):
    trainer = trainer_factory(loss_function=DiceCELoss(**MONAI_LOSS), batch_size=batch_size)
    with pytest.raises(InputError, match=r"returned shape \(\).*one loss per case.*PerCaseDiceCELoss"):
        trainer.run()


@pytest.mark.parametrize("deep", [False, True])
def test_febs_scales_by_the_dice_of_the_groups_without_cross_entropy(trainer_factory, deep):
    groups = [{"anatomy": "rare" if index < 4 else "typical"} for index in range(8)]
    loss = PerCaseDeepSupervisionLoss(PerCaseDiceCELoss()) if deep else PerCaseDiceCELoss()
    trainer = trainer_factory("febs", loss_function=loss, groups=groups, batch_size=4, epochs=2)
    differ = []

    def expected(group_losses: torch.Tensor) -> float:
        output, rare = trainer.state.output, trainer.state.batch["index"] < 4
        by_group = [float(group_losses[each].mean()) for each in (rare, ~rare)]
        of = [math.tanh(min(by_group) / each) for each in by_group]
        with torch.no_grad(), scaled_scores(loss, torch.where(rare, of[0], of[1])):
            return float(loss(output["pred"], output["label"]).mean())

    @trainer.on(IterationEvents.LOSS_COMPLETED)
    def compare() -> None:
        output, rare = trainer.state.output, trainer.state.batch["index"] < 4
        if bool(rare.any()) and not bool(rare.all()):
            pred, label = output["pred"].detach(), output["label"]
            dice = PerCaseDiceLoss()(pred, label)
            assert float(output["loss"].detach()) == pytest.approx(expected(dice), rel=1e-5)
            differ.append(abs(expected(dice) - expected(loss(pred, label))))

    trainer.run()
    assert len(differ) > 2
    assert max(differ) > 1e-4, "the whole loss would give another scale"


def test_what_the_loss_refuses_is_said_with_the_cases_of_the_step(trainer_factory, items):
    items[3]["label"] = items[3]["label"] + 5
    trainer = trainer_factory("erm", items=items, epochs=5)
    with pytest.raises(InputError, match=r"^step \d \(.*case3.*\): the loss PerCaseDiceCELoss: item \d of the batch"):
        trainer.run()


def test_a_data_loader_without_the_objectives_sampler_is_refused(trainer_factory, items):
    trainer = trainer_factory()
    trainer.data_loader = DataLoader(Dataset(items), batch_size=2, shuffle=True)
    with pytest.raises(RuntimeError, match=r"batch_sampler=objective\.sampler"):
        trainer.run()


def test_items_without_their_row_are_refused(trainer_factory, items):
    for item in items:
        del item["index"]
    with pytest.raises(KeyError, match="every item of the training data its row"):
        trainer_factory(items=items).run()


def test_a_loss_that_is_not_finite_stops_before_it_spoils_the_network(trainer_factory, items):
    items[5]["image"] = torch.full_like(items[5]["image"], float("nan"))
    trainer = trainer_factory(items=items, epochs=20)
    with pytest.raises(DrosegError, match="the loss of case5 is not finite"):
        trainer.run()
    assert all(torch.isfinite(parameter).all() for parameter in trainer.network.parameters())
    assert trainer.objective.history.visits[5] == 0


def test_a_step_with_a_loss_that_is_not_finite_is_left_out_on_request(trainer_factory, items, caplog):
    items[5]["image"] = torch.full_like(items[5]["image"], float("nan"))
    trainer = trainer_factory("erm", items=items, epochs=2)  # two passes over the eight cases
    trainer.on_nonfinite = "skip"
    weights = []

    @trainer.on(Events.ITERATION_COMPLETED)
    def remember() -> None:
        drawn = trainer.state.batch["index"].tolist()
        weights.append((5 in drawn, torch.cat([p.detach().flatten() for p in trainer.network.parameters()])))

    with caplog.at_level("WARNING"):
        trainer.run()
    changed = [not torch.equal(before[1], after[1]) for before, after in itertools.pairwise(weights)]
    assert changed == [not with_case_5 for with_case_5, _ in weights[1:]]
    assert torch.isfinite(weights[-1][1]).all()
    assert trainer.objective.history.visits[5] == 0
    assert trainer.objective.history.loss[5] == 4.0
    assert trainer.objective.history.visits.sum() == 14
    assert "is left out: the loss of case5 is not finite" in caplog.text


@pytest.mark.parametrize("objective", ["hardness", "erm", "group_balanced", "two_level", "group_dro"])
def test_a_case_that_is_never_finite_is_taken_out_after_three_steps(trainer_factory, items, caplog, objective):
    items[5]["image"] = torch.full_like(items[5]["image"], float("nan"))
    groups = [{"anatomy": "rare" if index in (4, 5) else "typical"} for index in range(8)]
    trainer = trainer_factory(objective, items=items, epochs=15, beta=20.0, groups=groups)
    trainer.on_nonfinite = "skip"  # its initial loss of 4 draws it into every batch
    with caplog.at_level("WARNING"):
        trainer.run()
    assert trainer.state.iteration == 60
    assert trainer.state.steps_left_out == 3
    assert trainer.objective.history.excluded == {5}
    assert trainer.objective.history.loss[5] == 4.0, "its previous loss stays"
    assert trainer.objective.probabilities()[5] == 0.0
    assert float(trainer.objective.probabilities().sum()) == pytest.approx(1.0)
    assert caplog.text.count("case5 is taken out of the draws: its loss was not finite in 3 steps") == 1
    assert trainer.state.metrics["history/unvisited"] == 0
    assert trainer.state.metrics["history/mean_loss"] < 3.0, "a constant of ours is no loss"
    if objective == "hardness":
        assert math.isfinite(trainer.objective.risk())
        assert trainer.objective.risk() < 3.0


@pytest.mark.filterwarnings("ignore:.*CUDA")
@pytest.mark.parametrize("enabled", [True, False])
def test_a_broken_case_is_taken_out_with_a_gradient_scaler_too(trainer_factory, items, enabled):
    items[5]["image"] = torch.full_like(items[5]["image"], float("nan"))
    trainer = trainer_factory("hardness", items=items, epochs=5, beta=20.0)
    trainer.on_nonfinite, trainer.amp = "skip", True
    trainer.scaler = torch.amp.GradScaler("cpu", enabled=enabled)  # without a GPU, MONAI's own is not enabled
    trainer.run()
    assert trainer.objective.history.excluded == {5}
    assert trainer.state.steps_left_out == 3
    assert all(torch.isfinite(parameter).all() for parameter in trainer.network.parameters())


def test_a_training_whose_losses_are_never_finite_stops_though_it_may_skip(trainer_factory, items):
    for item in items:
        item["image"] = torch.full_like(item["image"], float("nan"))
    trainer = trainer_factory("erm", items=items, epochs=20)
    trainer.on_nonfinite = "skip"
    with pytest.raises(DrosegError, match=r"the losses of 2 of 8 cases were not finite in 3 steps each \(case"):
        trainer.run()
    assert all(torch.isfinite(parameter).all() for parameter in trainer.network.parameters())


def test_meta_tensors_are_trained_like_tensors(trainer_factory, items):
    plain = trainer_factory(items=items)
    plain.run()
    affine = torch.diag(torch.tensor([1.0, 1.0, 3.0, 1.0]))
    meta = [
        {**item, "image": MetaTensor(item["image"], affine=affine), "label": MetaTensor(item["label"], affine=affine)}
        for item in items
    ]
    trainer = trainer_factory(items=meta)
    trainer.run()
    assert trainer.objective.history.loss.tolist() == plain.objective.history.loss.tolist()


def test_a_finished_training_does_not_start_over_and_goes_on_for_more_epochs(trainer_factory):
    trainer = trainer_factory(epochs=2)
    trainer.run()
    trained = copy.deepcopy(trainer.network.state_dict())
    trainer.run()
    assert trainer.state.epoch == 2
    assert all(torch.equal(value, trained[name]) for name, value in trainer.network.state_dict().items())
    trainer.state.max_epochs = 3
    trainer.run()
    assert (trainer.state.epoch, trainer.state.iteration) == (3, 12)


def test_one_seed_gives_one_training(trainer_factory):
    noise = Compose([RandGaussianNoised("image", prob=1.0)])
    losses = []
    for _ in range(2):
        torch.manual_seed(3)
        trainer = trainer_factory(transform=noise, epochs=2)
        trainer.run()
        losses.append(trainer.objective.history.loss.tolist())
    assert losses[0] == losses[1]


def test_the_per_case_loss_also_serves_monais_own_trainer(network_factory, items):
    # The loss is MONAI's where nobody keeps the single values: a bundle can be trained by either trainer.
    network = network_factory()
    before = [parameter.detach().clone() for parameter in network.parameters()]
    SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=1,
        train_data_loader=DataLoader(Dataset(items), batch_size=2),
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=0.05),
        loss_function=PerCaseDiceCELoss(),
    ).run()
    after = [parameter.detach() for parameter in network.parameters()]
    assert all(torch.isfinite(parameter).all() for parameter in after)
    assert any(not torch.equal(*pair) for pair in zip(before, after, strict=True))
