"""One engine loop in a child process, and how others reach it: values over a local socket."""
