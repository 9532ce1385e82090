"""Saving, in the order of the data.

::

    plan.py     how large parts are, what the commit must find        pure
    frame.py    plan item → frame: header, elements where they lie, tail
    stage.py    elements that cannot be sent from where they are → bounded buffers
    parts.py    frames → parts of one object, cut at part and block borders   pure
    upload.py   a rank's plan → its data objects
    objects.py  parts → one object in the bucket, or nothing
    results.py  what a rank wrote → the coordinator
    commit.py   results of all ranks → the commit record
    record.py   the record → the bucket, or what is there instead
"""
