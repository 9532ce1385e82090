"""A folder of this machine as a store, so that what works on buckets works on paths.

::

    backend.py     a path or file:// URL → location and store
    store.py       objects, conditions, listings
    uploads.py     multipart uploads
    files.py       files that are there whole or not at all; names, versions, errors
"""
