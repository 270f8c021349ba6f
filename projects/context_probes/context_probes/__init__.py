"""The context probes: what each block lets a small detector see, measured."""
