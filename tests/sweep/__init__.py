"""Every fault at every request of real saves and loads, and what came of it.

::

    requests.py   names of requests that do not depend on the order in which two ranks send them
    faults.py     what may happen to one request, and what is expected then
    cases.py      what the ranks do: a small state, saves and loads
    world.py      two ranks as processes, which may be killed
    warm.py       what is done before they are forked
    points.py     one fault, death or set of faults each; all of them, and samples
    judge.py      what must hold after each point
    run.py        runs points against one server of one cloud
    tally.py      counts, and the table of them in docs/reliability.md

``tests/faults/test_sweep.py`` runs it; what it promises is in docs/reliability.md.
"""
