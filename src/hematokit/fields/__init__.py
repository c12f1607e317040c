"""Whole fields: detection, tiles in the store, classified cells, and the differential count."""
