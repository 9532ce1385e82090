"""What differs between releases of torch, and every name of torch's that is not public.

Nothing else in the library uses such a name; a test holds that. ``c`` is ``torch.distributed.checkpoint``.

=========================================  =======  ==================================================
name                                       since    without it
=========================================  =======  ==================================================
``c.filesystem._StorageInfo``,             2.0      ``UnsupportedError`` on import: what is written
``c.metadata._MEM_FORMAT_ENCODING``                 would not be what stock torch reads
``c.filesystem.CURRENT_DCP_VERSION``       2.9      records have no version, like stock ones before
``c._extension``                           2.7      ``UnsupportedError`` when an item is loaded that
                                                    went through a stream transform (a compression)
``c.state_dict_saver._storage_setup``,     2.2      ``UnsupportedError`` from
``c.state_dict_loader._storage_setup``              ``use_url_checkpoint_ids()``
``c.filesystem.FileSystem.init_path``      2.3      torch's writers of local folders make folders of URLs
``c.state_dict_saver.``                    2.7      saves in a process of their own have to be given a
``_ProcessBasedAsyncCheckpointExecutor``            writer: URLs as ids do not reach them
``torch.serialization._save``,             1.6      frames come from the public ``torch.save``, which
``torch._C.PyTorchFileWriter``                      reads blank elements for zip CRCs: 0.3 CPU seconds
                                                    a GiB, once a process for each dtype and shape
``torch.serialization.``                   2.7      the file writer's own default, 64 bytes
``_get_storage_alignment``
``torch.distributed._functional_``         2.1      tensors that a collective is still bringing are
``collectives.AsyncCollectiveTensor``               refused as those of an unknown subclass
``torch.accelerator.current_accelerator``  2.6      (2.6 raises where there is no accelerator)
``torch.Stream.__enter__``                 2.7      the stream is made current, then the one before
``c.staging.DefaultStager``                2.9      the older, public stager copies states for
                                                    ``async_save``
``WriteItem.bytes_io_data``                2.8      non-tensor items are planned with 0 bytes
errors gathered with plain tracebacks      2.12     Python is told how to pickle a ``FrameSummary``,
                                                    where it could not
``rank=`` for writers and readers          2.9      the rank in the default process group
``torch.distributed.distributed_c10d.``    2.0      ranks learn of each other's failures only when torch
``_get_default_store``                              gathers results
``torch._C._len_torch_dispatch_stack``,    2.1      work of other threads goes past such modes of the
``torch._C._len_torch_function_stack``,             caller, and past its default device
``torch._C._get_function_stack_at``
``torch.utils._python_dispatch.``          2.0      modes of the caller see buffers of ours being made
``_disable_current_modes``,
``torch._C.DisableTorchFunction``
``torch._C.DisableTorchFunctionSubclass``  2.0      a subclass's own functions look at its storage
``torch._C.``                              2.0      subclasses that change nothing are copied by their
``_disabled_torch_function_impl``,                  own type instead of received in place
``torch._C._disabled_torch_dispatch_impl``
=========================================  =======  ==================================================
"""

from __future__ import annotations

from dcp_core.runtime.torch_private.archives import transforming, undo_transforms, write_archive, write_zip
from dcp_core.runtime.torch_private.errors import differs
from dcp_core.runtime.torch_private.modes import (
    changes_operations,
    current_accelerator,
    default_device_mode,
    has_foreign_modes,
    is_fake,
    on_stream,
    subclasses_off,
    waited_for,
    without_modes,
)
from dcp_core.runtime.torch_private.records import (
    MEMORY_FORMAT_ENCODING,
    PASSES_RANK,
    RECORD_VERSION,
    StorageInfo,
    group_rank,
    planned_object_bytes,
)
from dcp_core.runtime.torch_private.seams import (
    default_store,
    look_at_folders,
    staged_copy,
    wrap_process_saves,
    wrap_storage_setup,
)

__all__ = [
    "MEMORY_FORMAT_ENCODING",
    "PASSES_RANK",
    "RECORD_VERSION",
    "StorageInfo",
    "changes_operations",
    "current_accelerator",
    "default_device_mode",
    "default_store",
    "differs",
    "group_rank",
    "has_foreign_modes",
    "is_fake",
    "look_at_folders",
    "on_stream",
    "planned_object_bytes",
    "staged_copy",
    "subclasses_off",
    "transforming",
    "undo_transforms",
    "waited_for",
    "without_modes",
    "wrap_process_saves",
    "wrap_storage_setup",
    "write_archive",
    "write_zip",
]
