"""The HTTP edge: calls go to the closest healthy gateway.

    transport   for programs that call: transports for httpx
    front       for calls of others: the front door, a server
    forward     the engine below it: a server that forwards calls as a Handler says
"""
