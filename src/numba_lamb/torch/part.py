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
        return Part.of(self.plain.clone(), self.first, self.whole)

    def __reduce_ex__(self, protocol: object) -> Any:
        return rebuilt, (self.plain, self.first, self.whole)

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


def rebuilt(values: torch.Tensor, first: int, whole: int) -> Part:
    """Return a part that was pickled."""
    return Part.of(values, first, whole)


# So that torch.load(weights_only=True) takes a file of them.
torch.serialization.add_safe_globals([rebuilt])
