"""Where workers run: in this process, one a rank in others, or on Ray."""
