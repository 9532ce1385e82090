"""Starts LocalStack with two of its constants changed. Runs inside LocalStack's own environment.

- LocalStack's web server takes only the port of ``GATEWAY_LISTEN`` and listens on every interface. It checks
  no credentials, so here it listens on loopback.
- Its S3 keeps objects in one fixed folder for all instances, and leaves them there. Here each instance has
  its own.
"""

from __future__ import annotations

import functools
import os

from localstack.runtime.main import main
from localstack.services.s3 import provider
from twisted.internet import endpoints

endpoints.TCP4ServerEndpoint = functools.partial(endpoints.TCP4ServerEndpoint, interface="127.0.0.1")
provider.DEFAULT_S3_TMP_DIR = os.environ["DCP_CLOUD_S3_FOLDER"]

if __name__ == "__main__":
    main()
