"""Whatever is done between steps, in whatever order: the training is that of the textbook optimizers."""

import copy
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.torch.helpers import MOMENTS, PAIRS, alike, assert_same, fill, parameter, randn, snapshot, values

SHAPES = [(4, 3), (5,), (), (3, 2, 2), (4, 3)]
EXTRA = [(4, 3), (5,), (70, 60)]
COUNT = len(SHAPES)
OPTIONS = {
    "lr": [0.0, 0.02, 0.1],
    "weight_decay": [0.0, 0.1],
    "maximize": [False, True],
    "max_grad_norm": [None, 0.2],
    "betas": [(0.9, 0.999), (0.5, 0.8)],
    "momentum": [0.0, 0.9],
    "nesterov": [False, True],
    "always_adapt": [None, False, True],
    "trust_clip": [False, True],
}

which = st.integers(0, COUNT - 1)
operations = st.one_of(
    st.tuples(st.just("step"), st.sets(which, max_size=3)),
    st.tuples(st.just("step"), st.sets(which, max_size=3)),
    st.tuples(st.just("step"), st.just(set())),
    st.tuples(st.just("infinity"), which),
    *(st.tuples(st.just("option"), st.just(name), st.sampled_from(OPTIONS[name])) for name in OPTIONS),
    *(
        st.tuples(st.just(name), which)
        for name in (
            *("drop_state", "clone_state", "scale_state", "swap_state", "count"),
            *("clone", "reorder", "spread", "transpose", "replace", "tie"),
        )
    ),
    *(st.tuples(st.just(name)) for name in ("load", "rebuild", "deepcopy", "pickle", "grow", "clear")),
)


class Training:
    """Parameters and an optimizer, ours or its model, to which operations are done."""

    def __init__(self, make: Any, ours: bool, names: tuple[str, ...]) -> None:
        self.make, self.ours, self.names = make, ours, names
        self.params = [parameter(*shape, seed=k) for k, shape in enumerate(SHAPES)]
        self.opt = self.made([self.params[:2], self.params[2:]])
        self.steps = self.grown = 0
        # Parameters that were updated: a step that is left out makes state too, which is zero.
        self.live: set[int] = set()

    def made(self, groups: Any) -> Any:
        own = {"nonfinite": "skip"} if self.ours else {}
        return self.make([{"params": list(group)} for group in groups], lr=0.05, **own)

    def do(self, name: str, *given_values: Any) -> None:
        getattr(self, name)(*given_values)

    def step(self, missing: Any) -> None:
        fill(self.params, self.steps)
        for k in missing:
            self.params[k].grad = None
        self.opt.step()
        self.steps += 1
        self.live |= {*range(len(self.params))} - set(missing)

    def infinity(self, k: int) -> None:
        """A step that is left out, of which the model knows nothing."""
        if not self.ours:
            return
        fill(self.params, 0)
        self.params[k].grad.view(-1)[0] = float("inf")
        before, skipped = snapshot(self.opt)[0], self.opt.skipped_steps
        self.opt.step()
        assert_same(snapshot(self.opt)[0], before)
        assert self.opt.skipped_steps == skipped + 1
        self.opt.zero_grad()

    def option(self, name: str, value: Any) -> None:
        group = self.opt.param_groups[self.steps % len(self.opt.param_groups)]
        if name in group:
            group[name] = value

    def drop_state(self, k: int) -> None:
        self.opt.state.pop(self.params[k], None)
        self.live.discard(k)

    def clone_state(self, k: int) -> None:
        state = self.opt.state.get(self.params[k])
        if state:
            self.opt.state[self.params[k]] = {key: value.clone() for key, value in state.items()}

    def scale_state(self, k: int) -> None:
        for name in self.names:
            if self.opt.state.get(self.params[k]):
                self.opt.state[self.params[k]][name].mul_(0.5)

    def swap_state(self, k: int) -> None:
        """Moments of two parameters change places where they fit."""
        if not {0, k} <= self.live:
            return
        one, other = self.opt.state[self.params[0]], self.opt.state[self.params[k]]
        if one[self.names[0]].shape == other[self.names[0]].shape:
            for name in self.names:
                one[name], other[name] = other[name], one[name]

    def count(self, k: int) -> None:
        if k in self.live:
            self.opt.state[self.params[k]]["step"].fill_(self.steps + k)

    def clone(self, k: int) -> None:
        self.params[k].data = self.params[k].data.clone()

    def reorder(self, k: int) -> None:
        order = tuple(reversed(range(self.params[k].ndim)))
        self.params[k].data = self.params[k].data.permute(order).contiguous().permute(order)

    def spread(self, k: int) -> None:
        self.params[k].data = torch.stack([self.params[k].data] * 2, -1)[..., 0]

    def transpose(self, k: int) -> None:
        """Other values at the same address, and the moments with them."""
        p = self.params[k]
        if p.ndim != 2 or not p.is_contiguous():
            return
        p.data = torch.as_strided(p.data, p.shape, (1, p.shape[0]))
        p.grad = None

    def replace(self, k: int) -> None:
        old, new = self.params[k], torch.nn.Parameter(self.params[k].detach().clone())
        for group in self.opt.param_groups:
            group["params"] = [new if p is old else p for p in group["params"]]
        if old in self.opt.state:
            self.opt.state[new] = self.opt.state.pop(old)
        self.params[k] = new

    def tie(self, k: int) -> None:
        """A later parameter of this one's shape shares memory with it from now on, if it is whole."""
        data = self.params[k].data
        if torch.empty_like(data).stride() == data.stride():
            for p in self.params[COUNT:]:
                if p.shape == data.shape:
                    p.data = data

    def load(self) -> None:
        self.opt.load_state_dict(copy.deepcopy(self.opt.state_dict()))

    def rebuild(self) -> None:
        state = self.opt.state_dict()
        self.opt = self.made([group["params"] for group in self.opt.param_groups])
        self.opt.load_state_dict(state)

    def deepcopy(self) -> None:
        self.params, self.opt = copy.deepcopy((self.params, self.opt))

    def pickle(self) -> None:
        self.params, self.opt = pickle.loads(pickle.dumps((self.params, self.opt)))

    def grow(self) -> None:
        if self.grown < len(EXTRA):
            new = torch.nn.Parameter(randn(*EXTRA[self.grown], seed=50 + self.grown))
            self.grown += 1
            self.params.append(new)
            self.opt.add_param_group({"params": [new], "lr": 0.03})

    def clear(self) -> None:
        self.opt.state.clear()
        self.live.clear()


@pytest.mark.slow
@settings(max_examples=40)
@given(st.sampled_from(list(PAIRS)), st.lists(operations, min_size=4, max_size=25))
def test_training_between_which_anything_happens(pair: str, sequence: Any) -> None:
    def scenario(make: Any) -> Any:
        training = Training(make, make is PAIRS[pair][0], MOMENTS[pair])
        seen = []
        for name, *given_values in sequence:
            if pair in ("adamw", "sgd") and "max_grad_norm" in given_values:
                continue
            if pair == "sgd" and (
                "nesterov" in given_values or name == "count" or "momentum" in given_values
            ):
                continue
            training.do(name, *given_values)
            seen.append(values(training.params))
        training.step(set())
        return [seen, values(training.params)]

    alike(pair, scenario, 1e-8)
