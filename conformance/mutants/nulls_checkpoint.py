"""Null mutants of files: weights arrive as they are, whatever they were stored in.

Each file that a mutant misreads is read rightly here.
"""

from __future__ import annotations

from collections.abc import Callable

from conformance.adapters import sd1_impl_files as files
from conformance.adapters.torch_module import TorchPort
from conformance.mutants import checkpoint_files
from conformance.mutants.mutant import Mutant, NotRun


def _null(name: str, component: str, way: str, port: Callable[[], TorchPort]) -> Mutant:
    return Mutant(
        id=f"null-ckpt-{name}", component=component, wrong=f"Nothing: weights come from {way}",
        cases=("tiny/base", "odd/base"), evidence="null", size="none", port=port,
    )  # fmt: skip


MUTANTS: tuple[Mutant, ...] = (
    _null("compvis", "unet", "a single file, safetensors", files.compvis),
    _null("torch", "vae_encoder", "a single file, torch's", files.ckpt),
    _null("folder", "text_encoder", "a folder", files.diffusers),
    _null("plain-of-two", "unet", "a file with averaged ones beside",
          checkpoint_files.plain_of_two),
    _null("averaged-of-two", "unet", "the averaged ones of a file with both",
          checkpoint_files.averaged_of_two),
    _null("old-names", "vae_decoder", "a folder with old names", checkpoint_files.old_names),
    _null("shared-storages", "text_encoder", "a file whose tensors share storages",
          checkpoint_files.shared_storages),
)  # fmt: skip

NOT_RUN: tuple[NotRun, ...] = ()
