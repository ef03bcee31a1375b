"""The verb `look`: one page of pictures for people who would rather look than read."""
