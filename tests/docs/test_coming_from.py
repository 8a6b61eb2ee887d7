"""The page for those who come from the sources: its examples run, and its names exist."""

import doctest
import importlib
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import numba_lamb as nl
from numba_lamb import schedules

PAGE = Path(__file__).parents[2] / "docs" / "coming-from.md"
TEXT = PAGE.read_text(encoding="utf-8")
CODE = re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", TEXT, flags=re.DOTALL))
"""What stands between backticks in the prose and tables."""

SOURCE_NAMES = """
nn.Lamb nn.LARS nn.Momentum Parameter trainable_params params lr weight_decay grad_centralization order_params
global_step get_lr get_lr_parameter get_weight_decay ops.assign LearningRateScheduler lamb_m lamb_v moments
lars_filter use_nesterov loss_scale LearningRateSchedule
nn.ExponentialDecayLR nn.NaturalExpDecayLR nn.InverseDecayLR nn.CosineDecayLR nn.PolynomialDecayLR nn.WarmUpLR
nn.piecewise_constant_lr nn.exponential_decay_lr nn.natural_exp_decay_lr nn.inverse_decay_lr nn.cosine_decay_lr
nn.polynomial_decay_lr nn.warmup_lr
ConstantWarmUpLR LinearWithWarmUpLR CosineWithWarmUpLR CosineWithRestartsAndWarmUpLR PolynomialWithWarmUpLR
CosineAnnealingLR CosineAnnealingWarmRestarts ConstantWithCoolDownLR WarmUpStableDecayLR LearningRateWiseLayer
learning_rate_schedule learning_rate_a learning_rate_b learning_rate_decay_a learning_rate_decay_b
learning_rate_args "constant" "poly" "caffe_poly" "exp" "discexp" "linear" "manual" "pass_manual"
paddle.optimizer.Lamb lamb_weight_decay exclude_from_weight_decay_fn always_adapt
paddle.incubate.optimizer.LarsMomentumOptimizer lars_coeff lars_weight_decay exclude_from_weight_decay
paddle.optimizer.Momentum CosineAnnealingWarmbootingLR
"""
"""Names of the sources that someone may look for."""


def test_the_examples_run() -> None:
    flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    results = doctest.testfile(str(PAGE), module_relative=False, optionflags=flags, encoding="utf-8")
    assert results.failed == 0
    assert results.attempted > 60


@pytest.mark.parametrize("name", SOURCE_NAMES.split())
def test_each_name_of_the_sources_has_a_place(name: str) -> None:
    assert re.search(rf"(?<!\w){re.escape(name)}(?!\w)", " ".join(CODE))


def test_each_public_schedule_is_named() -> None:
    named = {code.partition("(")[0].rpartition(".")[2] for code in CODE}
    assert set(schedules.__all__) <= named


def mentioned() -> list[str]:
    return sorted(set(re.findall(r"\b(?:numba_lamb|nl)(?:\.[A-Za-z_]\w*)+", TEXT)))


@pytest.mark.parametrize("name", mentioned())
def test_each_name_of_ours_exists(name: str) -> None:
    if ".torch" in name:
        pytest.importorskip("torch", reason="the peers extra is not installed")
    found = nl
    for part in name.split(".")[1:]:
        if not hasattr(found, part) and hasattr(found, "__path__"):
            importlib.import_module(f"{found.__name__}.{part}")
        found = getattr(found, part)


def ones(*shape: int) -> np.ndarray:
    return np.ones(shape or (2,))


REFUSED = {
    "int32": (TypeError, lambda: nl.Lamb([ones().astype(np.int32)], 0.1)),
    "two dimensions of rates": (ValueError, lambda: nl.Lamb([ones()], np.array([[0.1]]))),
    "negative table value": (ValueError, lambda: nl.Lamb([ones()], [-0.1])([ones()])),
    "wrong number of gradients": (ValueError, lambda: nl.Lamb([ones()], 0.1)([ones(), ones()])),
    "epsilon": (ValueError, lambda: nl.LARS(nl.Momentum([ones()], 0.1, 0.9), epsilon=-1.0)),
    "coefficient": (ValueError, lambda: nl.LARS(nl.Momentum([ones()], 0.1, 0.9), coefficient=-1.0)),
    "dense centralization": (
        ValueError,
        lambda: nl.Lamb([{"params": [("conv", ones(16, 16))], "grad_centralization": True}], 0.1),
    ),
    "unknown keyword": (TypeError, lambda: schedules.ConstantWarmUpLR(0.1, 5, unknown=1)),
}
"""What the page says is refused, where its examples do not show it."""


@pytest.mark.parametrize(("error", "call"), REFUSED.values(), ids=REFUSED)
def test_refused_as_the_page_says(error: type[Exception], call: Callable[[], object]) -> None:
    with pytest.raises(error):
        call()


def test_memory_that_parameters_share_is_refused() -> None:
    memory = np.ones(4)
    with pytest.raises(ValueError, match="share memory"):
        nl.Lamb([memory[:3], memory[1:]], 0.1)


def test_accepted_as_the_page_says() -> None:
    shared = iter([0.5, 0.25])
    groups = [{"params": iter([ones()]), "lr": shared}, {"params": [ones()], "lr": shared}]
    opt = nl.Lamb(groups, np.float32(0.5), weight_decay=[0.5, 0.25])
    opt.step([ones(), ones()])
    assert opt.get_lr() == (0.25, 0.25)
    assert opt.get_weight_decay() == (0.25, 0.25)
    momentum = nl.Momentum([ones()], 0.1, 0.9, weight_decay=0.5, loss_scale=1024.0)
    assert momentum.get_weight_decay() == 0.5


def test_clip_takes_each_layers_own_rate() -> None:
    groups = [{"params": {"a": ones()}, "lr": lambda step: 0.0}, {"params": {"b": ones()}, "lr": 0.25}]
    opt = nl.LARS(nl.Momentum(groups, 0.1, 0.9), epsilon=0.0, coefficient=0.125, use_clip=True)
    opt.step([ones(), ones()])
    # The ratio is 0.125 for both: over rate 0 it is cut to 1, over rate 0.25 it is a half.
    assert opt.stats()["trust_ratio/a"] == 1.0
    assert opt.stats()["trust_ratio/b"] == 0.5
    zero = nl.LARS(nl.Momentum([np.zeros(2)], 0.0, 0.9), use_clip=True)
    zero.step([ones()])
    assert zero.stats()["trust_ratio/param_0"] == 0.0


def test_the_counter_advances_once_under_lars_with_dynamic_decay() -> None:
    opt = nl.LARS(nl.Momentum([ones()], 0.1, 0.9, weight_decay=schedules.WarmUpLR(0.1, 5)))
    for _ in range(5):
        opt.step([ones()])
    assert opt.global_step == 5


@pytest.mark.parametrize("value", [-3.0, 3.0])
def test_the_norm_of_one_element_has_no_sign(value: float) -> None:
    opt = nl.Lamb([np.array([value])], 0.1)
    opt.step([np.array([1.0])])
    assert opt.stats()["weight_norm/param_0"] == 3.0
    assert opt.stats()["trust_ratio/param_0"] == pytest.approx(3.0, rel=1e-5)


def test_stepped_schedulers_have_the_values_of_their_counterparts() -> None:
    steps = range(12)
    pairs = [
        (schedules.ExponentialDecayLR(0.5, 0.5, 3, is_stair=True), lambda t: 0.5 * 0.5 ** (t // 3)),
        (schedules.ExponentialDecayLR(0.5, 0.9, 1), lambda t: 0.5 * 0.9**t),
        (schedules.PolynomialDecayLR(0.5, 0.0, 8, 2.0), lambda t: 0.5 * (1 - min(t, 8) / 8) ** 2),
    ]
    for ours, theirs in pairs:
        np.testing.assert_allclose(ours(steps), [theirs(t) for t in steps], rtol=1e-12)


def test_each_attribute_of_an_optimizer_exists() -> None:
    opt = nl.Lamb({"w": np.ones(2)}, 0.1)
    for name in set(re.findall(r"(?<![.\w])opt(?:im)?\.(\w+)", TEXT)):
        assert hasattr(opt, name), name


def test_links_within_the_page_lead_somewhere() -> None:
    headings = re.findall(r"^#+ (.+)$", TEXT, re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    assert set(re.findall(r"\]\(#([^)]+)\)", TEXT)) <= anchors
    for target in re.findall(r"\]\(([^)#]+)\)", TEXT):
        assert (PAGE.parent / target).exists()


def test_no_row_of_a_table_lacks_a_cell() -> None:
    for table in re.findall(r"(?:^\|.*\n)+", TEXT, re.MULTILINE):
        widths = {row.count("|") for row in table.splitlines()}
        assert len(widths) == 1, table
