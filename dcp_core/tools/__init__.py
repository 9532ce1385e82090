"""Looking at checkpoints, comparing, copying and removing them, at paths and URLs.

::

    places.py        a path or URL → the store, and what is committed there
    tree.py          the tensors as a tree of dotted names
    difference.py    two checkpoints held against each other
    elements.py      elements of tensors by range reads, in bounded memory
    statistics.py    a few values of a tensor, and what all of them are like
    usage.py         bytes by checkpoint, leftovers apart
    removal.py       a checkpoint taken away, its commit record first
    copying.py       a checkpoint copied, its commit record last
"""
