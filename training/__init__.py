"""The loop that makes adapters. May use adapters/, must not know gateway/, and never imports torch or vllm:
training itself runs in an environment of its own, as a child process."""
