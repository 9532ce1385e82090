"""``python -m dcp_core.cli`` is ``dcp-cloud``."""

from dcp_core.cli.app import main

main()
