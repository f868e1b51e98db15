"""What is learned from the traffic served: how long answers are; it serves and decides nothing."""
