"""Deletion of steps, stopped between any two requests, beside loads and saves between any two requests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import given
from hypothesis import strategies as st
from saves_in_memory import read_all

from dcp_core import ObjectNotFoundError
from dcp_core.config import TransferOptions
from dcp_core.format.checksum import crc32c
from dcp_core.run.deletion import Deletion
from dcp_core.run.layout import lease_name
from dcp_core.seam.body import Body
from dcp_core.seam.location import Location
from dcp_core.testing.memory import MemoryStore
from dcp_core.transfer.transfer import Transfer
