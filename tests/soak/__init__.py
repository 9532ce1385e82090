"""Saves, loads, overwrites, conflicts and faults on several threads for minutes, and crashes over and over.

::

    PYTHONPATH=tests:localstack python -m soak --minutes 10 --cycles 1000 --summary summary.json

    traffic.py     one process that saves and loads on several threads, and what it holds meanwhile
    trouble.py     random faults, one after the other
    resources.py   memory, threads, sockets and descriptors, and whether they are flat
    crashes.py     a job that dies at some request, and starts again from what it finds
    __main__.py    all of it, against SeaweedFS; writes a summary, exits with 1 if anything is wrong
"""
