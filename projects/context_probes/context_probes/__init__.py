"""The context probes measure which context each block lets a small detector see."""
