"""The seam between the core and a cloud: what a backend implements, and how it is found.

::

    location.py   a checkpoint URL, parsed
    body.py       Body: bytes to send, never joined
    store.py      ObjectStore: one bucket of one cloud, one call a request
    backend.py    Backend: from a location and options to an ObjectStore
    registry.py   backends by URL scheme, found through entry points
"""
