"""Measure: where a client is (geo), what its round trips should be (prior), what they are (probe)."""
