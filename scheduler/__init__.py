"""What starts work: planning, runs, embedded services and the command line."""
