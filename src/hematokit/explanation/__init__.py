"""Why a cell was given its class: running explainers over cells, and the checks that make them believable."""
