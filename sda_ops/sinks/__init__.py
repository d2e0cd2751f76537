"""One store a file: each makes a sink operator. What a sink acknowledges is durable."""
