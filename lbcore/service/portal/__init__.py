"""The portal: pages for whoever operates the service, and for whoever calls its APIs. Served by the primary alone.

    views    what each page shows, as typed data        pages    views to HTML, parts of it, server-sent events
    map      regions and flows on the world, as SVG     charts   figures over time, as SVG
    form     the Locations table as the page sends it   words    figures, times and states as people read them
    fill     views of what the service has stored       assets   the files that pages load

Nothing here opens a socket or asks the service: a page is a function of its view.
"""

from lbcore.service.portal.assets import Asset, files
from lbcore.service.portal.pages import HEADERS, destination, event, part, render

__all__ = ["HEADERS", "Asset", "destination", "event", "files", "part", "render"]
