"""What was found where a prediction and the runs do not agree, written after them."""

#: By (network, probe).
FINDINGS = {}
