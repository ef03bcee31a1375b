"""The verb `tune`: what settings an attack should have, learnt on features of public people alone."""
