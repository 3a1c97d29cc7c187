"""Optimizers that save memory: what a step does to a weight, worked out by hand, and states that come back bit for bit."""

from __future__ import annotations

import copy
import io
import math
from typing import Any

import pytest
import torch
from swift_core.config.memory import MemorySection
from swift_core.config.sections import OptimSection
from swift_core.errors import ConfigError, ModelError
from swift_core.registry import OPTIMIZERS, import_target
from swift_core.train.optim import Request, evaluated_weights, set_training
from swift_tuners.optimizers.apollo import GROWTH, Apollo
from swift_tuners.optimizers.galore import GaLore
from swift_tuners.optimizers.lion import Lion
from swift_tuners.optimizers.matrices import Together
from swift_tuners.optimizers.packing import pack
from swift_tuners.optimizers.projection import Projection, ProjectionSettings
from swift_tuners.specs import OPTIMIZERS as SPECS
from torch import nn

ADAM = {"betas": (0.9, 0.95), "eps": 1e-8}


def galore(
    weights: list[nn.Parameter], *, rank: int, per_parameter: bool = False, lr: float = 0.1, decay: float = 0.0, **more: Any
) -> GaLore:
    groups = [{"params": weights, "lr": lr, "weight_decay": decay}]
    settings = ProjectionSettings(rank=rank, gap=more.pop("gap", 3), **more)
    inner = lambda inner_groups: torch.optim.AdamW(inner_groups, lr=lr, **ADAM)  # noqa: E731
    return GaLore(groups, inner, {id(one) for one in weights}, settings, per_parameter=per_parameter)


class Words(nn.Module):
    """An embedding, two layers with a norm between them, and a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(11, 12)
        self.first = nn.Linear(12, 20)
        self.norm = nn.LayerNorm(20)
        self.second = nn.Linear(20, 12, bias=False)
        self.head = nn.Linear(12, 11, bias=False)

    def get_input_embeddings(self) -> nn.Module:
        return self.embed

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.second(torch.tanh(self.norm(self.first(self.embed(ids))))))


def train(model: Words, optimizer: torch.optim.Optimizer, steps: range) -> list[float]:
    losses = []
    for step in steps:
        ids = torch.arange(8) + step % 3
        loss = nn.functional.cross_entropy(model(ids), ids + 1)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


def build(name: str, model: nn.Module, **memory: Any) -> torch.optim.Optimizer:
    spec = next(spec for spec in SPECS if spec.name == name)
    if spec.requires:
        pytest.importorskip(spec.requires[0])
    settings = {"galore_rank": 4, "galore_update_proj_gap": 3, "apollo_update_proj_gap": 3} | (
        {"apollo_rank": 4} if "adamw" in name else {}
    )
    section = OptimSection(optim=name, learning_rate=0.1 if name.endswith("sgd") else 3e-3)
    return import_target(spec.target, needed_for="a test")(Request(model, section, MemorySection(**settings | memory), warmup=2))


# ---- GaLore ----


@pytest.mark.parametrize("per_parameter", [False, True])
def test_galore_with_nothing_to_project_is_adamw(per_parameter: bool) -> None:
    torch.manual_seed(0)
    start = torch.randn(6, 4)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    optimizer = galore([ours], rank=4, decay=0.1, per_parameter=per_parameter)
    oracle = torch.optim.AdamW([theirs], lr=0.1, weight_decay=0.1, **ADAM)
    for _ in range(5):
        gradient = torch.randn(6, 4)
        for weight, one in ((ours, optimizer), (theirs, oracle)):
            (weight * gradient).sum().backward()
            one.step()
            one.zero_grad()
        assert torch.equal(ours, theirs)


def test_first_step_of_galore_by_hand() -> None:
    # The gradient is 6 u v^T with unit vectors; of rank 1 the left projection is +-u and the low gradient +-6 v^T, whose first
    # Adam step is its sign. So the weight moves by lr * scale * u sign(v)^T, whichever sign the singular vectors have.
    u, v = torch.tensor([0.6, 0.8]), torch.tensor([2.0, -1.0, 2.0]) / 3
    weight = nn.Parameter(torch.zeros(2, 3))
    weight.grad = 6 * torch.outer(u, v)
    galore([weight], rank=1, scale=0.5, lr=0.1).step()
    assert torch.allclose(weight.detach(), -0.1 * 0.5 * torch.outer(u, v.sign()), atol=1e-6)


def test_weight_decay_of_galore_acts_on_the_weight() -> None:
    weight = nn.Parameter(torch.full((2, 3), 2.0))
    weight.grad = torch.zeros(2, 3)
    galore([weight], rank=1, lr=0.1, decay=0.5).step()
    assert torch.allclose(weight.detach(), torch.full((2, 3), 2.0 * (1 - 0.1 * 0.5)))


@pytest.mark.parametrize(
    ("shape", "kind", "low"),
    [
        ((8, 5), "std", (8, 2)),
        ((5, 8), "std", (2, 8)),
        ((8, 5), "reverse_std", (2, 5)),
        ((5, 8), "left", (2, 8)),
        ((5, 8), "right", (5, 2)),
        ((5, 8), "full", (2, 2)),
    ],
)
def test_projections_keep_the_leading_part(shape: tuple[int, int], kind: str, low: tuple[int, int]) -> None:
    torch.manual_seed(1)
    gradient = torch.randn(shape[0], 2) @ torch.randn(2, shape[1])  # of rank 2
    projection = Projection(torch.Size(shape), ProjectionSettings(rank=2, gap=1, kind=kind))
    projection.renew(gradient)
    assert tuple(projection.down(gradient).shape) == low == projection.low_shape
    assert torch.allclose(projection.up(projection.down(gradient)), gradient, atol=1e-5)


def test_projection_is_renewed_every_gap_updates() -> None:
    projection = Projection(torch.Size((4, 6)), ProjectionSettings(rank=1, gap=2))
    dues = []
    for _ in range(5):
        dues.append(projection.due)
        if projection.due:
            projection.renew(torch.randn(4, 6))
        projection.advance()
    assert dues == [True, False, True, False, True]


@pytest.mark.parametrize("turning", [False, True])
def test_gap_of_q_galore_grows_while_the_projection_stands_still(turning: bool) -> None:
    settings = ProjectionSettings(rank=1, gap=4, bits=8, group=8, threshold=0.9, growth=3, queue=2)
    projection = Projection(torch.Size((4, 6)), settings)
    for number in range(3):
        vector = torch.zeros(4)
        vector[number if turning else 0] = (-1.0) ** number
        projection.renew(torch.outer(vector, torch.arange(1.0, 7)))
    assert projection.gap == (4 if turning else 12)


@pytest.mark.parametrize(("bits", "error"), [(8, 1 / 255), (4, 1 / 15)])
def test_packed_numbers_are_off_by_half_a_code_at_most(bits: int, error: float) -> None:
    torch.manual_seed(0)
    values = torch.randn(7, 13)
    packed = pack(values, bits=bits, group=16)
    groups = nn.functional.pad(values.flatten(), (0, 5)).view(-1, 16)
    spread = float((groups.amax(1) - groups.amin(1)).max())
    assert float((packed.unpack() - values).abs().max()) <= spread * error / 2 + 1e-6
    assert packed.codes.numel() == 96 * bits // 8 and packed.codes.dtype == torch.uint8


def test_projecting_in_the_backward_pass_frees_gradients_and_gives_the_same_weights() -> None:
    results = []
    for per_parameter in (False, True):
        model = Words()
        optimizer = build("galore_adamw", model, galore_optim_per_parameter=per_parameter)
        for step in range(5):
            ids = torch.arange(8) + step % 3
            nn.functional.cross_entropy(model(ids), ids + 1).backward()
            assert (model.first.weight.grad is None) == per_parameter
            assert model.head.weight.grad is not None
            optimizer.step()
            optimizer.zero_grad()
        results.append(model.state_dict())
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


def test_passes_of_a_step_add_up_in_the_subspace_and_are_clipped_there() -> None:
    torch.manual_seed(0)
    weight = nn.Parameter(torch.zeros(4, 6))
    optimizer = galore([weight], rank=2, per_parameter=True, gap=100)
    first, second = torch.randn(4, 6), torch.randn(4, 6)
    for gradient in (first, second):
        (weight * gradient).sum().backward()
    reference = Projection(weight.shape, ProjectionSettings(rank=2, gap=100))
    reference.renew(first)
    expected = float(reference.down(first + second).norm())
    assert optimizer.clip_gradients(expected / 2) == pytest.approx(expected, rel=1e-5)
    assert optimizer.clip_gradients(math.inf) == pytest.approx(expected / 2, rel=1e-4)


def test_galore_state_has_the_size_of_the_projected_gradients() -> None:
    model = Words()
    optimizer = build("galore_adamw", model)
    train(model, optimizer, range(2))
    inner = optimizer.inner  # type: ignore[attr-defined]
    shapes = sorted(tuple(state["exp_avg"].shape) for state in inner.state.values() if state["exp_avg"].ndim == 2)
    # [20, 12] and [12, 20] at rank 4; embedding and head as they are.
    assert shapes == [(4, 20), (11, 12), (11, 12), (20, 4)]


def test_galore_takes_only_matrices_that_are_named() -> None:
    model = Words()
    optimizer = build("galore_adamw", model, galore_target_modules=["first"], galore_with_embedding=True)
    assert len([1 for members in optimizer._projected for _ in members]) == 1  # type: ignore[attr-defined]
    with pytest.raises(ModelError, match="'atn' is in the name of no matrix"):
        build("galore_adamw", model, galore_target_modules=["atn"])


# ---- APOLLO, Lion, Muon ----


def test_first_steps_of_apollo_by_hand() -> None:
    # The first Adam step of any R is its sign, so with one row in the subspace a channel is scaled by 1 / |R_j|.
    weight = nn.Parameter(torch.zeros(2, 3))
    gradient = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    optimizer = Apollo([{"params": [weight], "lr": 0.1, "weight_decay": 0.0}], rank=1, scale=4.0, **ADAM)
    weight.grad = gradient.clone()
    optimizer.step()
    (_, row) = optimizer._drawn[0]
    update = gradient / (row @ gradient).abs() * 2
    assert torch.allclose(weight.detach(), -0.1 * update, rtol=1e-5)
    before = weight.detach().clone()
    # The same gradient gives the same update, but it may only grow by one percent over the one before.
    optimizer.state[weight]["norm"] = float(update.norm()) / 2
    weight.grad = gradient.clone()
    optimizer.step()
    assert float((weight.detach() - before).norm()) == pytest.approx(0.1 * GROWTH * float(update.norm()) / 2, rel=1e-4)


def test_apollo_mini_scales_a_matrix_as_a_whole() -> None:
    weight = nn.Parameter(torch.zeros(5, 3))
    gradient = torch.arange(1.0, 16).view(5, 3)
    optimizer = Apollo([{"params": [weight], "lr": 1.0, "weight_decay": 0.0}], rank=1, per="tensor", **ADAM)
    weight.grad = gradient.clone()
    optimizer.step()
    ratio = weight.detach() / gradient
    assert torch.allclose(ratio, ratio[0, 0].expand(5, 3)) and float(ratio[0, 0]) < 0


def test_lion_by_hand() -> None:
    weight = nn.Parameter(torch.tensor([1.0, -1.0]))
    optimizer = Lion([{"params": [weight]}], lr=0.1, betas=(0.9, 0.5), weight_decay=0.5)
    weight.grad = torch.tensor([2.0, -4.0])
    optimizer.step()
    assert weight.tolist() == pytest.approx([0.95 - 0.1, -0.95 + 0.1])
    # The average is half of the gradient, [1, -2]; the direction is the sign of 0.9 [1, -2] + 0.1 [-12, 12].
    weight.grad = torch.tensor([-12.0, 12.0])
    optimizer.step()
    assert weight.tolist() == pytest.approx([0.85 * 0.95 + 0.1, -0.85 * 0.95 + 0.1])


def test_muon_trains_matrices_and_adamw_the_rest() -> None:
    optimizer = build("muon", Words())
    assert isinstance(optimizer, Together)
    kinds = {type(part).__name__: sum(len(group["params"]) for group in part.param_groups) for part in optimizer.parts}
    assert kinds == {"Muon": 2, "AdamW": 5}
    optimizer.param_groups[0]["lr"] = 0.5
    assert optimizer.parts[0].param_groups[0]["lr"] == 0.5


# ---- all of them ----


QUANTISED = {"galore_quantization": True, "galore_proj_group_size": 8}
CASES = [
    *(pytest.param(spec.name, {}, id=spec.name) for spec in SPECS if not spec.paged),
    pytest.param("galore_adamw", QUANTISED, id="q-galore"),
    pytest.param("galore_adamw_8bit", QUANTISED | {"galore_optim_per_parameter": True}, id="q-galore, 8 bits, in the backward pass"),
    pytest.param("galore_adamw", {"galore_proj_type": "full"}, id="galore, projected on both sides"),
]


@pytest.mark.parametrize(("name", "memory"), CASES)
def test_loss_falls_and_a_run_resumed_from_a_file_goes_the_same_way(name: str, memory: dict[str, Any]) -> None:
    whole = Words()
    optimizer = build(name, whole, **memory)
    set_training(optimizer, True)
    losses = train(whole, optimizer, range(4))
    file = io.BytesIO()
    with evaluated_weights(optimizer):
        torch.save({"weights": whole.state_dict(), "optimizer": optimizer.state_dict()}, file)
        saved = copy.deepcopy(optimizer.state_dict())
    resumed = Words()
    with torch.no_grad():
        for parameter in resumed.parameters():
            parameter.add_(1.0)
    again = build(name, resumed, **memory)
    file.seek(0)
    read = torch.load(file, weights_only=True)
    resumed.load_state_dict(read["weights"])
    again.load_state_dict(read["optimizer"])
    assert differences(again.state_dict(), saved) == []
    set_training(again, True)
    losses += train(whole, optimizer, range(4, 5))
    train(resumed, again, range(4, 5))
    assert differences(resumed.state_dict(), whole.state_dict()) == [], "the first step after the break"
    losses += train(whole, optimizer, range(5, 9))
    train(resumed, again, range(5, 9))
    assert differences(resumed.state_dict(), whole.state_dict()) == []
    assert losses[-1] < losses[0]


def differences(found: Any, expected: Any, path: str = "") -> list[str]:
    """Return where two states differ: other keys, kinds, number types or numbers."""
    if isinstance(expected, torch.Tensor):
        same = isinstance(found, torch.Tensor) and found.dtype == expected.dtype and torch.equal(found, expected)
        return [] if same else [path]
    if isinstance(expected, dict | list | tuple):
        entries = expected.items() if isinstance(expected, dict) else enumerate(expected)
        if type(found) is not type(expected) or len(found) != len(expected):
            return [path]
        return [one for key, value in entries for one in differences(found[key], value, f"{path}.{key}")]
    return [] if found == expected else [path]


def test_settings_that_are_flags_are_not_taken_as_arguments() -> None:
    section = OptimSection(optim="apollo_adamw", optim_args={"rank": 3})
    if "apollo_adamw" not in OPTIMIZERS:
        pytest.skip("the entry points of this package are not installed")
    with pytest.raises(ConfigError, match="--apollo_"):
        import_target(OPTIMIZERS.get("apollo_adamw").target, needed_for="a test")(Request(Words(), section))
    muon = Request(Words(), OptimSection(optim="muon", optim_args={"momentun": 0.9}))
    with pytest.raises(ConfigError, match=r"no argument 'momentun'.*momentum"):
        import_target("swift_tuners.optimizers.muon:muon", needed_for="a test")(muon)
