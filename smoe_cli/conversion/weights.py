"""Names and shapes of transformers' encoder-decoders -> ours. What both families share; the convolutions are their own."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from smoe_cli.errors import CheckpointError
from smoe_cli.routing import DENSE

NORMS = {"self_attn_layer_norm": "attention_norm", "encoder_attn_layer_norm": "memory_norm", "final_layer_norm": "ffn_norm"}
FFN = f"ffn.experts.{DENSE}"


class Weights:
    """Tensors that are taken one by one, so that none is forgotten.

    Args:
        tensors: Of the folder.
        where: The folder, for errors.
    """

    def __init__(self, tensors: Mapping[str, Tensor], where: str) -> None:
        self.left, self.where = dict(tensors), where
        self.made: dict[str, Tensor] = {}

    def take(self, name: str) -> Tensor:
        """A tensor, which is then no longer left.

        Raises:
            CheckpointError: If there is none of this name.
        """
        if name not in self.left:
            raise CheckpointError(f"`{self.where}` has no weight `{name}`", "convert a whole model ...ForConditionalGeneration")
        return self.left.pop(name)

    def drop(self, *names: str) -> None:
        """Leave out tensors that follow from the settings, if they are there at all."""
        for name in names:
            self.left.pop(name, None)

    def move(self, theirs: str, ours: str) -> None:
        """A layer's weight and bias."""
        for part in ("weight", "bias"):
            self.made[f"{ours}.{part}"] = self.take(f"{theirs}.{part}")

    def fuse(self, theirs: str, parts: tuple[str, ...], ours: str) -> None:
        """Several projections as one; one without bias (Whisper's keys) has a bias of zero."""
        weights = [self.take(f"{theirs}.{part}_proj.weight") for part in parts]
        biases = [self.left.pop(f"{theirs}.{part}_proj.bias", torch.zeros(len(weights[0]))) for part in parts]
        self.made[f"{ours}.weight"], self.made[f"{ours}.bias"] = torch.cat(weights), torch.cat(biases)

    def ffn(self, theirs: str, ours: str, width: int) -> None:
        """A feed-forward network; what is beyond `width` becomes the second network, which ours has beside the first."""
        first, bias = self.take(f"{theirs}.fc1.weight"), self.take(f"{theirs}.fc1.bias")
        second, second_bias = self.take(f"{theirs}.fc2.weight"), self.take(f"{theirs}.fc2.bias")
        for name, part in ((FFN, slice(0, width)), ("ffn.shared", slice(width, None))):
            if len(first[part]):
                self.made[f"{ours}.{name}.0.weight"], self.made[f"{ours}.{name}.0.bias"] = first[part], bias[part]
                self.made[f"{ours}.{name}.3.weight"] = second[:, part].contiguous()
                self.made[f"{ours}.{name}.3.bias"] = second_bias if name == FFN else torch.zeros_like(second_bias)

    def layers(self, stack: str, count: int, width: int) -> None:
        """All layers of a stack (`encoder` or `decoder`), whose feed-forward networks are so wide, and the norm after them."""
        for number in range(count):
            theirs, ours = f"model.{stack}.layers.{number}", f"{stack}.layers.{number}"
            self.fuse(f"{theirs}.self_attn", ("q", "k", "v"), f"{ours}.attention.in_proj")
            self.move(f"{theirs}.self_attn.out_proj", f"{ours}.attention.out_proj")
            if stack == "decoder":
                self.fuse(f"{theirs}.encoder_attn", ("q",), f"{ours}.memory_attention.q_proj")
                self.fuse(f"{theirs}.encoder_attn", ("k", "v"), f"{ours}.memory_attention.kv_proj")
                self.move(f"{theirs}.encoder_attn.out_proj", f"{ours}.memory_attention.out_proj")
            self.ffn(theirs, ours, width)
            for name, own in NORMS.items():
                if stack == "decoder" or name != "encoder_attn_layer_norm":
                    self.move(f"{theirs}.{name}", f"{ours}.{own}")
        self.move(f"model.{stack}.layer_norm", f"{stack}.norm")

    def vocabulary(self, head: str, tied: bool, scale: float) -> bool:
        """Embedding and output projection.

        Args:
            head: Name of the output projection.
            tied: Whether both are one tensor.
            scale: What theirs multiplies embeddings with, over what ours does.

        Returns:
            Whether ours are tied: not if only one of them is scaled.
        """
        embedding = self.take("model.decoder.embed_tokens.weight")
        output = self.left.pop(f"{head}.weight", embedding)
        if not tied and output is embedding:
            raise CheckpointError(f"`{self.where}` has no weight `{head}.weight`", "convert a whole model ...ForConditionalGeneration")
        self.made["decoder.embedding.weight"] = embedding * scale
        if tied and scale == 1.0:
            return True
        self.made["decoder.output.weight"] = embedding.clone() if tied else output
        return False

    def finish(self) -> dict[str, Tensor]:
        """Everything that was made.

        Raises:
            CheckpointError: If a tensor is left that nothing has taken.
        """
        if self.left:
            some = ", ".join(f"`{name}`" for name in sorted(self.left)[:3])
            raise CheckpointError(
                f"`{self.where}` has {len(self.left)} weights that no part of the model takes: {some}", "convert a model without additions"
            )
        return self.made
