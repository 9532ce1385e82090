"""The command ``dcp-cloud``. Needs the extra ``cli``.

::

    app.py          the program: its commands, errors of one line, exit codes
    arguments.py    what several commands take
    output.py       terminals, plain lines, JSON
    all others      one command each
"""

from dcp_core.cli.app import main

__all__ = ["main"]
