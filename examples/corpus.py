"""Real text without a download: the Python reference, as `pydoc` carries it in the standard library."""

from pydoc_data.topics import topics

import torch
from torch import Tensor
from torch.utils.data import Dataset


class Windows(Dataset):
    """Pieces of a text for next-character prediction, one every `stride` characters."""

    def __init__(self, text: Tensor, length: int, stride: int):
        self.text, self.length, self.stride = text, length, stride

    def __len__(self) -> int:
        return (len(self.text) - self.length - 1) // self.stride + 1

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        piece = self.text[index * self.stride :][: self.length + 1]
        return {"input_ids": piece[:-1], "labels": piece[1:]}


def load(length: int) -> tuple[list[str], Windows, Windows]:
    """Return the alphabet, a training set of all windows of the first 90 %, and a held-out set of the rest."""
    text = "\n\n".join(topics[name] for name in sorted(topics))
    alphabet = sorted(set(text))
    codes = {character: code for code, character in enumerate(alphabet)}
    encoded = torch.tensor([codes[character] for character in text])
    cut = len(encoded) * 9 // 10
    return alphabet, Windows(encoded[:cut], length, stride=1), Windows(encoded[cut:], length, stride=length)
