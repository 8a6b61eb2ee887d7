"""Options where they would have no effect, as keys of groups and as attributes: refused, with the right name."""

from collections.abc import Iterator
from inspect import signature
from string import ascii_lowercase
from typing import Any

import pytest

import numba_lamb as nl
from numba_lamb.methods.names import NUMPY_OPTIONS, OPTIONS, TORCH_OPTIONS, is_one_edit
from numba_lamb.torch import Lamb, Lans, Lars, Momentum
from tests.torch.helpers import assert_same, fill, parameter, snapshot, steps

KINDS = (Lamb, Lans, Lars, Momentum)
kinds = pytest.mark.parametrize("kind", KINDS)
RIGHT = {
    **{"weigth_decay": "weight_decay", "weight_deca": "weight_decay", "Weight-Decay": "weight_decay"},
    **{"LR": "lr", "rl": "lr", "learning_rate": "lr", "nonfinte": "nonfinite", "maximise": "maximize"},
}
RIGHT_OF: dict[Any, dict[str, str]] = {
    Lamb: {**RIGHT, "epsilon": "eps", "beta1": "betas", "beta": "betas", "use_clip": "trust_clip"},
    Lans: {**RIGHT, "epsilon": "eps", "beta1": "betas", "decay_filer": "decay_filter"},
    Lars: {**RIGHT, "epsilon": "eps", "use_nesterov": "nesterov", "coefficient": "trust_coefficient"},
    Momentum: {**RIGHT, "use_nesterov": "nesterov", "momentun": "momentum"},
}
CASES = [(kind, key, right) for kind, found in RIGHT_OF.items() for key, right in found.items()]

OTHERS = [
    # torch.optim and its schedulers
    *(
        "initial_lr",
        "max_lr",
        "min_lr",
        "base_momentum",
        "max_momentum",
        "swa_lr",
        "step",
        "foreach",
        "fused",
    ),
    *("capturable", "differentiable", "amsgrad", "dampening", "decoupled_weight_decay"),
    # timm
    *("lr_scale", "group_name", "initial_weight_decay", "initial_lr_scale", "max_lr_snapshot", "caution"),
    *("corrected_weight_decay", "trust_coeff", "use_muon", "use_fallback", "simple", "layer_id"),
    # DeepSpeed, Megatron, Apex
    *(
        "name",
        "moe",
        "is_expert_parallel",
        "set_grad_none",
        "adam_w_mode",
        "max_coeff",
        "min_coeff",
        "use_nvlamb",
    ),
    *(
        "wd_mult",
        "lr_mult",
        "pre_lr_mult",
        "pre_wd_mult",
        "is_decoupled_lr",
        "start_wd",
        "end_wd",
        "weight_sum",
    ),
    # Hugging Face, Lightning, fairseq, detectron2, schedule-free, GaLore
    *("rank", "update_proj_gap", "scale", "proj_type", "warmup_init", "relative_step", "scale_parameter"),
    *("decay_mult", "bias_lr_factor", "r", "k", "d", "train_mode", "lr_max", "scheduled_lr", "tag", "id"),
]


@pytest.mark.parametrize(("kind", "key", "right"), CASES)
def test_a_key_that_is_no_option_names_the_right_one(kind: Any, key: str, right: str) -> None:
    p, q = parameter(3), parameter(2)
    message = f"^'{key}' is no option of a group of {kind.__name__}; did you mean '{right}'"
    later = message.replace(" is", " of group 1 is")
    with pytest.raises(ValueError, match=message):
        kind([{"params": [p], key: 0.5}], lr=0.1)
    opt = kind([p], lr=0.1)
    fill([p])
    opt.step()
    group = {"params": [q], key: 0.5}
    with pytest.raises(ValueError, match=later):
        opt.add_param_group(group)
    assert len(opt.param_groups) == 1
    before, saved = snapshot(opt), opt.state_dict()
    saved["param_groups"][0][key] = 0.5
    with pytest.raises(ValueError, match=message):
        opt.load_state_dict(saved)
    opt.param_groups[0][key] = 0.5
    for _ in range(2):
        with pytest.raises(ValueError, match=message):
            opt.step()
    assert_same(snapshot(opt), before)
    del opt.param_groups[0][key]
    opt.step()
    assert opt.state[p]["step"].item() == 2


@kinds
def test_options_of_other_classes_are_refused(kind: Any) -> None:
    own = set(kind([parameter(3)]).defaults)
    for key in sorted((OPTIONS - own) | {"order_params"}):
        with pytest.raises(ValueError, match=f"^'{key}' is no option of a group of {kind.__name__}; "):
            kind([{"params": [parameter(3)], key: True}])


def misspelt(name: str) -> Iterator[str]:
    """Every name that is one edit away."""
    letters = ascii_lowercase + "_"
    for k in range(len(name) + 1):
        yield from (name[:k] + letter + name[k:] for letter in letters)
    for k in range(len(name)):
        yield name[:k] + name[k + 1 :]
        yield from (name[:k] + letter + name[k + 1 :] for letter in letters)
        yield name[:k] + name[k + 1 : k + 2] + name[k] + name[k + 2 :]


def test_every_single_edit_of_every_option_is_noticed() -> None:
    from numba_lamb.methods.names import meant

    own = sorted(TORCH_OPTIONS)
    for name in own:
        for key in misspelt(name):
            assert is_one_edit(key, name), (key, name)
            assert len(key) < 2 or meant(key, own) is not None
    for one, other in (("lr", "lars"), ("eps", "step"), ("abcd", "badc"), ("nesterov", "nestreovs")):
        assert not is_one_edit(one, other)
        assert not is_one_edit(other, one)


@kinds
def test_keys_that_others_write_pass(kind: Any) -> None:
    p = parameter(3)
    opt = kind([{"params": [p], **dict.fromkeys(OTHERS, 0.5)}], lr=0.1)
    steps(opt, [p])
    opt.load_state_dict(opt.state_dict())
    steps(opt, [p])
    assert opt.param_groups[0].items() >= dict.fromkeys(OTHERS, 0.5).items()


def test_the_names_are_those_of_the_signatures() -> None:
    def named(*classes: Any) -> set[str]:
        return {key for kind in classes for key in signature(kind).parameters}

    assert named(*KINDS) - {"params"} == TORCH_OPTIONS
    assert named(nl.Lamb, nl.Lars, nl.Momentum) - {"params", "optimizer"} | {"lr"} == NUMPY_OPTIONS


@kinds
def test_options_are_no_attributes(kind: Any) -> None:
    p = parameter(3)
    opt = kind([p], lr=0.1)
    for name in sorted(OPTIONS):
        before = dict(vars(opt))
        way = rf"param_groups\[k\]\['{name}'\]" if name in opt.defaults else f"^'{name}' is no attribute of "
        with pytest.raises(AttributeError, match=way):
            setattr(opt, name, 0.0)
        with pytest.raises(AttributeError, match=way):
            getattr(opt, name)
        assert not hasattr(opt, name)
        assert vars(opt) == before
    for name in ("grad_scale", "found_inf", "_step_count", "_opt_called", "is_fsdp", "step_was_skipped"):
        setattr(opt, name, None)
        delattr(opt, name)
    steps(opt, [p])


def test_a_subclass_may_have_an_attribute_of_that_name() -> None:
    class Mine(Lamb):
        @property
        def lr(self) -> Any:
            return self.param_groups[0]["lr"]

        @lr.setter
        def lr(self, value: Any) -> None:
            self.param_groups[0]["lr"] = value

    opt = Mine([parameter(3)], lr=0.1)
    opt.lr = 0.5
    assert opt.param_groups[0]["lr"] == opt.lr == 0.5
