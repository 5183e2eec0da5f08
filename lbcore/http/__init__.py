"""The HTTP edge: requests go to the closest healthy gateway. `lbcore.http.transport` has the transports for httpx."""
