"""Sequence parallel: processes of a group share the tokens of each row, so that a text may be longer than one device holds.

It only changes what the layers see; weights, gradients and optimizer are spread by whichever engine the run has.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.distributed.device_mesh import init_device_mesh

from swift_core.config.parallel import ParallelSection
from swift_core.errors import ModelError
from swift_core.scoring.attention import register_samplewise, set_text_attention, text_attention
from swift_core.scoring.ring import RingAttention
from swift_core.scoring.sequence import SequenceShare, set_share
from swift_core.scoring.ulysses import UlyssesAttention
from swift_core.train.module import LossModule
from swift_core.train.parallel import World
from swift_core.train.task import CausalLm

_NAME = "swift_shared"


def share_sequences(module: LossModule, world: World, section: ParallelSection) -> SequenceShare:
    """Let successive processes share the tokens of each row that the model scores.

    Args:
        module: a causal language model, may be wrapped by adapters, and its task.
        world: the processes of the run.
        section: `--sequence_parallel_size` and `--sequence_parallel_mode`.

    Raises:
        ModelError: when task or model are not made for it.
    """
    if not isinstance(module.task, CausalLm):
        raise ModelError("--sequence_parallel_size: it is made for next-token prediction", fix="use --fsdp full_shard")
    model: Any = module.model
    inner: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
    size = section.sequence_parallel_size
    if not isinstance(inner, nn.Module) or not hasattr(inner, "get_output_embeddings"):
        raise ModelError(f"--sequence_parallel_size: a {type(inner).__name__} is no causal language model", fix="remove it")
    heads = inner.config.get_text_config().num_attention_heads  # pyright: ignore[reportAttributeAccessIssue, reportCallIssue]
    if text_attention(inner) not in ("sdpa", "eager", "swift_packed", _NAME):
        raise ModelError(
            f"--sequence_parallel_size: attention by {text_attention(inner)!r} does not look past its own process",
            fix="remove --attn_impl",
        )
    mode = mode_for(section, heads)
    mesh = init_device_mesh(world.device.type, (world.data_size, size), mesh_dim_names=("data", "sequence"))
    share = SequenceShare(mesh.get_group("sequence"), rank=mesh.get_local_rank("sequence"), size=size, mode=mode)
    # The function knows its group, so that backward passes that run layers again find it too.
    register_samplewise(_NAME, UlyssesAttention(share) if mode == "ulysses" else RingAttention(share))
    set_text_attention(inner, _NAME)
    set_share(inner, share)
    return share


def mode_for(section: ParallelSection, heads: int) -> str:
    """Return how attention looks past its process: as asked, else by heads where they can be dealt out, else around a ring.

    Raises:
        ModelError: when heads are to be dealt out that cannot be.
    """
    size, asked = section.sequence_parallel_size, section.sequence_parallel_mode
    if asked == "ulysses" and heads % size:
        raise ModelError(
            f"--sequence_parallel_size {size}: the model has {heads} heads, which cannot be dealt to {size} processes",
            fix=f"a divisor of {heads}, or --sequence_parallel_mode ring",
        )
    return asked or ("ring" if heads % size else "ulysses")
