"""Context probes: data sets that show which context a block lets a detector use."""
