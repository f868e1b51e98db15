"""The muscle, the only room that imports torch: it computes what it is told, it decides nothing."""
