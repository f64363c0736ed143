"""The latency service: converts operators to TFLite, queues profiling jobs, keeps lookup tables, serves REST."""
