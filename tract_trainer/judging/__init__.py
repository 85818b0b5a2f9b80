"""Records become judgments.

Takes records and an engine; gives a `Judgment` (score, distribution, rationale) per record. Users, `evaluation`,
`rationales` and the training callback call it.
"""
