"""lbcore: which region's gateway should this client use now?

    import lbcore
    lb = lbcore.Balancer([lbcore.Region("westeurope", gateway="https://weu.example"), lbcore.Region("eastus", gateway="https://eus.example")])
    lb.pick("203.0.113.7")

Importing it loads no web, DNS or HTTP library: `lbcore.sense.probe`, `lbcore.http.transport`, `lbcore.dns` and `lbcore.sim` are
imported by name.
"""

from lbcore._fast import LatencyTable, Picker
from lbcore._prefix import PrefixMap
from lbcore.balancer import Attempt, Balancer, Change
from lbcore.decision import Candidate, Decision
from lbcore.errors import ConfigError, LbcoreError, NoRegionError, NotPrimaryError, ServiceError, UnknownRegionError, Violation
from lbcore.region import Region

__all__ = [
    "Attempt",
    "Balancer",
    "Candidate",
    "Change",
    "ConfigError",
    "Decision",
    "LatencyTable",
    "LbcoreError",
    "NoRegionError",
    "NotPrimaryError",
    "Picker",
    "PrefixMap",
    "Region",
    "ServiceError",
    "UnknownRegionError",
    "Violation",
]

__version__ = "0.1.0"
