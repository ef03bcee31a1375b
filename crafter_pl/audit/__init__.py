"""Audit: what features hide (attacks, judged by a panel of oracles) and what they keep (attributes)."""
