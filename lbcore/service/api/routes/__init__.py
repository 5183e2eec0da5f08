"""The routes of the management API, by subject. None of them knows how a service works: that is the Plane's."""
