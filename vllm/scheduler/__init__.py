"""What runs next. Sees sequences and counts of blocks; never a tensor, a score or a tier."""
