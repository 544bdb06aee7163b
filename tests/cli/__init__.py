"""The command line as its users have it: a process, its streams, its exit status."""
