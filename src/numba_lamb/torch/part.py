"""Part: a run of a flat tensor that lies on several ranks, as torch.distributed.checkpoint saves and loads it."""

from typing import Any

import torch


class Part(torch.Tensor):
    """A 1-d tensor that knows which elements of a longer one it holds.

    Attributes
    ----------
    first : int
        Where it begins.
    whole : int
        Elements of the longer tensor.
    """

    first: int
    whole: int
    # What is computed with it is a plain tensor.
    __torch_function__: Any = torch._C._disabled_torch_function_impl

    @staticmethod
    def of(values: torch.Tensor, first: int, whole: int) -> "Part":
        """Return `values`, not copied, as a part of `whole` elements."""
        part: Part = values.as_subclass(Part)
        part.first, part.whole = first, whole
        return part

    @property
    def plain(self) -> torch.Tensor:
        """The same values as a plain tensor."""
        return self.as_subclass(torch.Tensor)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Part":
        return self.clone()

    # What PyTorch copies a state dict by.

    def clone(self, *args: Any, **kwargs: Any) -> "Part":
        """Return a copy."""
        return Part.of(self.plain.clone(*args, **kwargs), self.first, self.whole)

    def detach(self) -> "Part":
        """Return the same part."""
        return Part.of(self.plain.detach(), self.first, self.whole)

    def to(self, *args: Any, **kwargs: Any) -> "Part":
        """Return the part elsewhere or of another dtype."""
        return Part.of(self.plain.to(*args, **kwargs), self.first, self.whole)

    def cpu(self, *args: Any, **kwargs: Any) -> "Part":
        """Return the part in the CPU's memory."""
        return Part.of(self.plain.cpu(*args, **kwargs), self.first, self.whole)

    def __reduce_ex__(self, protocol: object) -> Any:
        return rebuilt, (self.plain, self.first, self.whole)

    # -- what torch.distributed.checkpoint.async_save copies it by ---------------------------------------------

    def new_empty(self, size: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """Return a tensor that becomes a part when it gets this one's attributes."""
        size = self.plain.size() if size == self.size() else size
        return self.plain.new_empty(size, **kwargs).as_subclass(Part)

    def set_(  # type: ignore[override]
        self, source: Any, offset: int = 0, size: Any = (), stride: Any = ()
    ) -> Any:
        """Have this tensor's values in a storage, of which a part has all."""
        count = source.nbytes() // self.plain.element_size() - offset
        return torch.Tensor.set_(self, source, offset, (count,), (1,))

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Part({self.plain!r}, first={self.first}, whole={self.whole})"

    # -- what torch.distributed.checkpoint asks for --------------------------------------------------------------

    def size(self, dim: int | None = None) -> Any:
        """Return the size of the longer tensor, which a checkpoint's is compared with."""
        return torch.Size([self.whole]) if dim is None else self.whole

    def __create_chunk_list__(self) -> list[Any]:
        from torch.distributed.checkpoint.metadata import ChunkStorageMetadata

        if not self.numel():
            return []
        return [ChunkStorageMetadata(torch.Size([self.first]), torch.Size([self.numel()]))]

    def __create_write_items__(self, fqn: str, part: "Part") -> list[Any]:
        from torch.distributed.checkpoint.metadata import MetadataIndex, TensorProperties
        from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType

        properties = TensorProperties.create_from_tensor(self.plain)
        return [
            WriteItem(
                index=MetadataIndex(fqn, chunk.offsets),
                type=WriteItemType.SHARD,
                tensor_data=TensorWriteData(chunk, properties, torch.Size([self.whole])),
            )
            for chunk in self.__create_chunk_list__()
        ]

    def __get_tensor_shard__(self, index: Any) -> torch.Tensor:
        return self.plain


ORDER = "memory_order"
"""In which order parts have a parameter's elements: its axes, the one that is slowest in memory first."""


def order_in(tensor: torch.Tensor) -> list[int]:
    """Return the axes of a parameter in the order of memory, slowest first; an axis of one element stays."""
    moving = [axis for axis in range(tensor.ndim) if tensor.shape[axis] > 1]
    slowest = iter(sorted(moving, key=lambda axis: -tensor.stride()[axis]))
    return [next(slowest) if axis in moving else axis for axis in range(tensor.ndim)]


def order_of(tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return what a checkpoint of parts says of their order; nothing where there is one alone."""
    return {ORDER: torch.tensor(order_in(tensor))} if tensor.ndim > 1 else {}


def check_order(index: int, tensor: torch.Tensor, given: Any) -> None:
    """Raise if parts of a parameter were saved in another order."""
    if isinstance(given, torch.Tensor) and given.tolist() != order_in(tensor):
        raise ValueError(
            f"state of parameter number {index} must be in the order of its memory, {order_in(tensor)}, got "
            f"{given.tolist()}; give the model the memory format of the one that was saved, or load a "
            "full_state_dict()"
        )


def rebuilt(values: torch.Tensor, first: int, whole: int) -> Part:
    """Return a part that was pickled."""
    return Part.of(values, first, whole)


# So that torch.load(weights_only=True) takes a file of them.
torch.serialization.add_safe_globals([rebuilt])
