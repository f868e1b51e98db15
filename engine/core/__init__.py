"""The mind: it decides what runs next; it knows no torch, no socket, no thread and no clock."""
