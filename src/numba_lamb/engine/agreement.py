"""Agreement: whether all ranks are at the same step of the same optimizer, asked before anything changes."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numba_lamb.comm import Comm, Disagreement
from numba_lamb.foreign import kind_of
from numba_lamb.layout import FlatLayout

_FACTS, _DIGEST, _TEXT, _MASK = 8, 8, 512, 1024
_SIZE = 8 + _FACTS * _DIGEST + _TEXT + _MASK
_FINE, _SKIPS, _FAILED = range(3)
UNCHANGED = "; nothing was changed"


def digest(*values: Any) -> bytes:
    """Return a short hash of values that have the same ``repr`` or bytes on all ranks."""
    found = blake2b(digest_size=_DIGEST)
    for value in values:
        found.update(value if isinstance(value, bytes) else repr(value).encode())
    return found.digest()


def described_layers(layout: FlatLayout) -> list[Any]:
    """Return what must be the same of layers."""
    return [(layer.name, layer.shape, str(layer.dtype), layer.group) for layer in layout.layers]


def plain_options(groups: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return what can be compared of groups' options; of functions and the like that there is one."""
    return [
        {
            name: value if isinstance(value, int | float | str | tuple | None) else kind_of(value)
            for name, value in group.items()
            if name not in ("params", "param_names")
        }
        for group in groups
    ]


class Agreement:
    """Asks all ranks at once.

    Parameters
    ----------
    comm : Comm
        The ranks.
    """

    def __init__(self, comm: Comm) -> None:
        self._comm = comm

    def reach(
        self, facts: Mapping[str, bytes], given: NDArray[np.bool_], skips: bool = False
    ) -> tuple[NDArray[np.bool_], bool]:
        """Return which gradients any rank has, and whether any rank leaves the step out.

        Parameters
        ----------
        facts : mapping from str to bytes
            What must be the same on all ranks, by its name in an error: what `digest` returned.
        given : bool array
            Which gradients this rank has; its length is one of the facts.
        skips : bool
            Whether this rank leaves the step out.

        Raises
        ------
        Disagreement
            On every rank, if one failed, or a fact differs.
        """
        told = self._ask(_SKIPS if skips else _FINE, "", facts, given)
        states, digests, texts, masks = told
        for rank, state in enumerate(states.tolist()):
            if state == _FAILED:
                raise Disagreement(f"rank {rank} raised {texts[rank]}{UNCHANGED}")
        # A rank that leaves the step out has not looked at all of it.
        going = np.flatnonzero(states != _SKIPS)
        for place, name in enumerate(facts):
            own = digests[going, place]
            differing = going[(own != own[:1]).any(axis=1)]
            if differing.size:
                ranks = ", ".join(map(str, differing.tolist()))
                raise Disagreement(
                    f"{name} must be the same on all ranks, got another on rank {ranks} than on rank "
                    f"{going[0]}{UNCHANGED}"
                )
        if len(given) > 8 * _MASK:
            packed = np.packbits(given)
            masks = np.zeros((self._comm.size, len(packed)), dtype=np.uint8)
            self._comm.all_gather(masks, packed)()
        any_given = np.unpackbits(np.bitwise_or.reduce(masks, axis=0))[: len(given)].astype(np.bool_)
        return any_given, bool((states == _SKIPS).any())

    def fail(self, error: BaseException) -> None:
        """Tell the others of an error that keeps this rank from the step."""
        text = f"{type(error).__name__}: {error}"
        self._ask(_FAILED, text, {}, np.zeros(0, dtype=np.bool_))

    def _ask(
        self, state: int, text: str, facts: Mapping[str, bytes], given: NDArray[np.bool_]
    ) -> tuple[NDArray[Any], NDArray[Any], list[str], NDArray[Any]]:
        own = np.zeros(_SIZE, dtype=np.uint8)
        own[0] = state
        hashes = b"".join(facts.values())
        encoded = text.encode()[:_TEXT]
        packed = np.packbits(given) if len(given) <= 8 * _MASK else np.zeros(0, dtype=np.uint8)
        for start, part in ((8, hashes), (8 + _FACTS * _DIGEST, encoded), (_SIZE - _MASK, packed.tobytes())):
            own[start : start + len(part)] = np.frombuffer(part, dtype=np.uint8)
        all_told = np.zeros((self._comm.size, _SIZE), dtype=np.uint8)
        self._comm.all_gather(all_told, own)()
        digests = all_told[:, 8 : 8 + _FACTS * _DIGEST].reshape(-1, _FACTS, _DIGEST)
        texts = [
            row.tobytes().rstrip(b"\0").decode(errors="replace")
            for row in all_told[:, 8 + _FACTS * _DIGEST : _SIZE - _MASK]
        ]
        return all_told[:, 0], digests, texts, all_told[:, _SIZE - _MASK :]


@contextmanager
def made_alike(comm: Comm | None) -> Iterator[dict[str, Any]]:
    """Make an optimizer in this: it raises on every rank if it does on any, or if ranks made others.

    What is put into what it yields is compared: values with a ``repr``, by their name in an error.
    """
    described: dict[str, Any] = {}
    agreement = None if comm is None else Agreement(comm)
    try:
        yield described
    except BaseException as error:
        if agreement is not None:
            agreement.fail(error)
        raise
    if agreement is not None:
        facts = {name: digest(value) for name, value in described.items()}
        agreement.reach(facts, np.zeros(0, dtype=np.bool_))
