"""Loading, in the order of the data.

::

    record.py   URL → commit record, or what is wrong there
    source.py   read item → where its bytes lie, for frames of any writer
    plan.py     sources → placements → range requests                      pure
    target.py   placements → the tensors and objects of the state dict
    fetch.py    requests → bytes, received where they belong, checked, tried again
"""
