"""Joins the ranks, once all have come, and parts them at the end of a run that went well."""

from __future__ import annotations

import torch

from mrm_stream.distributed.rendezvous import meet
from mrm_stream.distributed.runtime import Runtime
from mrm_stream.errors import MrmStreamError, TrainingError


def connect(runtime: Runtime, run: str, limit_s: float, refusal: MrmStreamError | None = None) -> None:
    """Join the other ranks; returns when all have come, see `meet`, for `refusal` too; does nothing where it has."""
    if torch.distributed.is_initialized():
        return
    meeting = meet(runtime, run, limit_s, refusal)
    import deepspeed
    import deepspeed.ops
    from deepspeed.constants import default_pg_timeout

    # Start-up would compile an operator that only inference uses: 82 s instead of 16 s on two cores.
    deepspeed.ops.__compatible_ops__.clear()
    meeting.gather("imported DeepSpeed")  # Takes seconds and memory; who dies of it would be waited for below.
    on_gpu = runtime.device.type == "cuda"
    try:
        torch.distributed.init_process_group(
            "nccl" if on_gpu else "gloo",
            store=meeting.store,
            rank=runtime.rank,
            world_size=runtime.world,
            timeout=default_pg_timeout,
            device_id=runtime.device if on_gpu and runtime.world > 1 else None,
        )
    except RuntimeError as error:
        raise TrainingError(
            f"all ranks have come, but cannot be connected: {str(error).splitlines()[0]}",
            where=f"rank {runtime.rank}",
            remedy="See what ended another rank; or name the network to use: GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME.",
        ) from error
    deepspeed.init_distributed("nccl" if on_gpu else "gloo", verbose=False)


def disconnect() -> None:
    """Leave the other ranks, at the end of a run that went well; all ranks together.

    Threads of a group that is still there now and then abort the interpreter at its exit, and the run seems to fail.
    """
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
