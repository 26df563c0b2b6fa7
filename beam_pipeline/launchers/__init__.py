"""Where the pipeline runs: on this machine, on a job server, on Dataflow."""
