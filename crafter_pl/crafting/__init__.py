"""The maths of the defence: best response, implicit gradient, Algorithm 1. Plain torch, no files."""
