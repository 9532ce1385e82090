"""What the server has done before ranks are forked from it, so that none of them has to."""

from __future__ import annotations

import torch
import torch._dynamo

import dcp_azure  # noqa: F401
import dcp_gcs  # noqa: F401
from dcp_s3 import S3Options
from dcp_s3.client import open_client
from support import scenarios

# a forked process does not have the threads of this one
torch.set_num_threads(1)
scenarios.noise(0, (9,))
# reads the description of S3's API
open_client(S3Options(region="us-east-1", anonymous=True), 1).close()
