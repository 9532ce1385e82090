"""What the stores of HTTP have in common: errors, responses, ranges, connections.

::

    cloud_store.py        what the stores of all clouds do alike
    clients.py            the client of the SDK, opened on first use and again when credentials are stale
    error_table.py        from an SDK's errors to ours; verdicts.py has those that all stores share
    responses.py          successful responses, checked where they enter
    ranges.py             the Range and Content-Range headers

    range_reader.py       the body of one range request, received into the caller's buffer
    pools.py              connection pools whose sends have the stall limit
    in_flight.py          requests under way, and how another thread ends one
    tls.py                large responses over TLS, read from the socket itself
    receive_low_water.py  the socket's low-water mark during large responses
    urllib3_private.py    the private names of urllib3 and http.client
"""
